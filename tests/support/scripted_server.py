"""A server whose answers a test writes: busy, broken, early, garbage. It notes what came, and on which connection."""

from __future__ import annotations

import json
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

from qalign_fast.artifact.manifest import open_artifact
from qalign_fast.references import EMBEDDED

GOOD = [1.0, 2.0, 0.5, -1.0, 0.25]  # logits


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    connection: tuple[str, int]  # the client's side of it
    body: bytes = b""


@dataclass
class Reply:
    """An answer. raw: is sent in its place; cut: how many bytes of its body are sent before the connection ends."""

    content: Any = None  # JSON
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    reset: bool = False  # no answer: the connection is reset
    closes: bool = False  # the connection is closed behind the answer, which does not say so
    cut: int | None = None


def rows(*tasks: str, **more: Any) -> dict[str, Any]:
    found = [{"source": "sent", "task": task, "error": None, "logits": GOOD, **more} for task in tasks or ("quality",)]
    return {"model": "mini", "rows": found}


def error_rows(text: str, kind: str = "ImageError") -> Reply:
    row = {"source": "sent", "task": "quality", "score": None, "error": text, "error_type": kind}
    return Reply({"error": text, "error_type": "Validation", "rows": [row]}, 422)


def facts(**changed: Any) -> dict[str, Any]:
    """What /v1/models says of the embedded model, as far as a client reads it."""
    manifest = open_artifact(EMBEDDED, verify=False).manifest
    return {
        "id": "mini",
        "tasks": ["quality"],
        "video_tasks": ["quality"],
        "family": manifest.family.name,
        "precision": "int8",
        "kernels": "plain numpy",
        "limits": {"max_body": 64 << 20},
        **manifest.family.sizes_to_json(manifest.config),
        **changed,
    }


class ScriptedServer:
    """answer: what the test says to each request but for /v1/models. most: how many were under way at a time.

    early: bodies over 1 MB are not read, and the connection ends behind the answer.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.models: Callable[[], Reply] = lambda: Reply({"object": "list", "data": [facts()]})
        self.answer: Callable[[Request], Reply] = lambda request: Reply(rows(*request.query.get("task", ())))
        self.under_way = self.most = 0
        self.early = False
        self.lock = Lock()
        self.scheme, self.port = "http", 0

    @property
    def url(self) -> str:
        return f"{self.scheme}://localhost:{self.port}"

    @property
    def scored(self) -> list[Request]:
        return [request for request in self.requests if request.method == "POST"]

    def script(self, *replies: Reply) -> None:
        """These answers, one after the other, and then good ones."""
        left, good = list(replies), self.answer
        self.answer = lambda request: left.pop(0) if left else good(request)

    @contextmanager
    def counted(self) -> Iterator[None]:
        with self.lock:
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        try:
            yield
        finally:
            with self.lock:
                self.under_way -= 1


@contextmanager
def scripted_server(certificate: ssl.SSLContext | None = None) -> Iterator[ScriptedServer]:
    script = ScriptedServer()
    open_ones: list[socket.socket] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def _answer(self) -> None:
            parts = urlsplit(self.path)
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Request(self.command, parts.path, parse_qs(parts.query), headers, self.client_address)
            script.requests.append(request)
            if parts.path.endswith("/v1/models"):
                self._send(script.models())
                return
            with script.counted():
                length = int(headers.get("content-length", 0))
                early = length > 1 << 20 and script.early
                request.body = b"" if early else self.rfile.read(length)
                self._send(script.answer(request))

        def _send(self, reply: Reply) -> None:
            if reply.reset:
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self._drop()
                return
            body = json.dumps(reply.content).encode()
            lines = [f"HTTP/1.1 {reply.status} Because", f"content-length: {len(body)}"]
            lines += [f"{name}: {value}" for name, value in reply.headers.items()]
            whole = "\r\n".join([*lines, "", ""]).encode() + body[: reply.cut]
            self.wfile.write(reply.raw if reply.raw is not None else whole)
            self.wfile.flush()
            if reply.closes or reply.raw is not None or reply.cut is not None or script.early:
                self._drop()

        def _drop(self) -> None:
            self.close_connection = True
            with suppress(OSError):
                self.rfile.close()
                self.wfile.close()
                self.connection.close()

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def process_request(self, request: Any, client_address: Any) -> None:
            open_ones.append(request)
            super().process_request(request, client_address)

        def handle_error(self, *_: object) -> None:
            pass

    server = Quiet(("127.0.0.1", 0), Handler)
    if certificate:
        server.socket = certificate.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        script.scheme = "https"
    script.port = server.server_address[1]
    thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield script
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        for one in open_ones:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
