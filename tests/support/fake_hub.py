"""A small Hub on this machine, with one repository: its files are served, and pushed ones are taken."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

REVISION = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_of_the_tests"


class Hub(ThreadingHTTPServer):
    """Serves a folder as one repository. Of files in `cut` it sends only the first half.

    It takes what is pushed with TOKEN into the same folder: files of over 1 KB by LFS, smaller ones in the commit.
    """

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.name = folder, name
        self.cut: dict[str, int] = {}  # file -> how many times
        self.asked: list[tuple[str, str | None]] = []  # file, and its Range header
        self.private = False
        self.made: list[dict[str, Any]] = []  # what was asked of it to create
        self.commits: list[str] = []  # their messages
        self.objects: dict[str, bytes] = {}  # of LFS, by SHA-256

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def files(self) -> list[str]:
        return sorted(p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_file())


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path, name, files = self.path.split("?")[0], self.server.name, self.server.files()
        for revision in (REVISION, "main"):
            if (file := path.removeprefix(f"/{name}/resolve/{revision}/")) in files:
                return self.send_file(file, body=body)
        if path.startswith(f"/api/models/{name}/tree/"):
            return self.send_json([self.entry(name) for name in files], body=body)
        if path in (f"/api/models/{name}", *(f"/api/models/{name}/revision/{r}" for r in ("main", REVISION))):
            siblings = [{"rfilename": name} for name in files]
            facts = {"id": name, "sha": REVISION, "siblings": siblings, "private": self.server.private}
            return self.send_json(facts, body=body)
        code = "EntryNotFound" if path.startswith(f"/{name}/resolve/") else "RepoNotFound"
        return self.send_json({"error": "not found"}, status=404, body=body, code=code)

    def entry(self, name: str) -> dict[str, object]:
        data = (self.server.folder / name).read_bytes()
        return {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}

    def send_json(self, content: object, *, body: bool = True, status: int = 200, code: str = "RepoNotFound") -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header(*(("X-Repo-Commit", REVISION) if status == 200 else ("X-Error-Code", code)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def send_file(self, name: str, *, body: bool) -> None:
        data = (self.server.folder / name).read_bytes()
        wanted = self.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", REVISION)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data) - start))
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if not body:
            return
        self.server.asked.append((name, wanted))
        if self.server.cut.get(name):
            self.server.cut[name] -= 1
            self.wfile.write(data[start : len(data) // 2])
            self.close_connection = True
        else:
            self.wfile.write(data[start:])

    def do_PUT(self) -> None:
        data = self.read_body()
        self.server.objects[hashlib.sha256(data).hexdigest()] = data
        self.send_json({})

    def do_POST(self) -> None:
        path, name, data = self.path.split("?")[0], self.server.name, self.read_body()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.send_json({"error": "Invalid username or password."}, status=401, code="")
        if path == "/api/repos/create":
            self.server.made.append(json.loads(data))
            return self.send_json({"url": f"{self.server.endpoint}/{name}"})
        if path == "/api/validate-yaml":
            return self.send_json({"errors": [], "warnings": []})
        if path == f"/api/models/{name}/preupload/main":
            modes = [{"path": f["path"], "uploadMode": mode_of(f)} for f in json.loads(data)["files"]]
            return self.send_json({"files": [mode | {"shouldIgnore": False} for mode in modes]})
        if path == f"/{name}.git/info/lfs/objects/batch":
            objects = [o | {"actions": self.upload(o["oid"])} for o in json.loads(data)["objects"]]
            return self.send_json({"transfer": "basic", "objects": objects})
        if path == f"/api/models/{name}/commit/main":
            self.commit([json.loads(line) for line in data.splitlines()])
            return self.send_json({"commitUrl": f"{self.server.endpoint}/{name}/commit/1", "commitOid": REVISION})
        return self.send_json({"error": "no such way"}, status=404)

    def upload(self, oid: str) -> dict[str, Any]:
        """Where the client is to put an object, if it is not there yet."""
        return {} if oid in self.server.objects else {"upload": {"href": f"{self.server.endpoint}/objects/{oid}"}}

    def commit(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.server.commits.append(value["summary"])
                continue
            path = self.server.folder / value["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            if line["key"] == "file":
                path.write_bytes(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                path.write_bytes(self.server.objects[value["oid"]])
            else:
                assert line["key"] == "deletedFile"
                path.unlink()

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def log_message(self, *_: object) -> None:
        pass


def mode_of(file: dict[str, Any]) -> str:
    return "lfs" if file["size"] > 1024 else "regular"


@contextmanager
def running_hub(folder: Path, name: str = "q-future/one-align") -> Iterator[Hub]:
    server = Hub(folder, name)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
