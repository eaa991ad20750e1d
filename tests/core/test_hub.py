"""Fetching by Hub id from a small Hub on this machine: requests, resuming, refusals, and the cache when offline."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from qalign_fast.levels import score_of
from support.goldens import GOLDEN, PICTURES, Golden

REVISION = "0123456789abcdef0123456789abcdef01234567"
SCORE = (
    "import os, shutil, sys\n"
    "if len(sys.argv) > 1: shutil.disk_usage = lambda _: type('Usage', (), {'free': int(sys.argv[1])})\n"
    "from qalign_fast import ArtifactError, Scorer\n"
    f"picture = {str(PICTURES / 'chelsea_small.png')!r}\n"
    "try: print(Scorer.load(os.environ.get('MODEL', 'q-future/one-align')).score(picture).value)\n"
    "except ArtifactError as error: print('error:', error)"
)
NOT_FETCHED = "q-future/one-align: no such directory, and it could not be fetched from the Hub"


class Hub(ThreadingHTTPServer):
    """Serves a folder as the repository q-future/one-align. Of files in `cut` it sends only the first half."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.cut: dict[str, int] = {}  # file -> how many times
        self.asked: list[tuple[str, str | None]] = []  # file, and its Range header

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = self.path.split("?")[0]
        files = sorted(
            p.relative_to(self.server.folder).as_posix() for p in self.server.folder.rglob("*") if p.is_file()
        )
        if path.startswith("/api/models/q-future/one-align/tree/"):
            self.send_json([self.entry(name) for name in files], body=body)
        elif path.startswith("/api/models/q-future/one-align"):
            siblings = [{"rfilename": name} for name in files]
            self.send_json({"id": "q-future/one-align", "sha": REVISION, "siblings": siblings}, body=body)
        elif (name := path.removeprefix(f"/q-future/one-align/resolve/{REVISION}/")) in files:
            self.send_file(name, body=body)
        else:
            self.send_json({"error": "no such repository"}, status=404, body=body)

    def entry(self, name: str) -> dict[str, object]:
        data = (self.server.folder / name).read_bytes()
        return {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}

    def send_json(self, content: object, *, body: bool, status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header(*(("X-Repo-Commit", REVISION) if status == 200 else ("X-Error-Code", "RepoNotFound")))
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

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(narrow: Golden, tmp_path: Path) -> Iterator[Hub]:
    folder = Path(shutil.copytree(narrow.checkpoint, tmp_path / "repository"))
    (folder / "expected.npz").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"the same once more, in another form")
    server = Hub(folder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def score(hub: Hub, tmp_path: Path, *arguments: str, **environment: str) -> str:
    settings = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
    run = subprocess.run(
        [sys.executable, "-c", SCORE, *arguments],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), **settings, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return run.stdout.strip()


def test_a_model_is_fetched_once_and_found_again_offline(hub: Hub, tmp_path: Path) -> None:
    first = score(hub, tmp_path)
    assert 1 <= float(first) <= 5
    assert {name for name, _ in hub.asked} == {"config.json", "preprocessor_config.json", "model.safetensors"}
    hub.asked.clear()
    assert score(hub, tmp_path) == first
    assert score(hub, tmp_path, HF_HUB_OFFLINE="1") == first
    assert score(hub, tmp_path, HF_ENDPOINT="http://127.0.0.1:9") == first  # nobody there
    assert hub.asked == []


def test_pickled_weights_are_fetched_where_there_are_no_others(hub: Hub, tmp_path: Path) -> None:
    torch.save(load_file(hub.folder / "model.safetensors"), hub.folder / "pytorch_model.bin")
    (hub.folder / "model.safetensors").unlink()
    first = score(hub, tmp_path)
    assert 1 <= float(first) <= 5
    assert score(hub, tmp_path, HF_HUB_OFFLINE="1") == first


def test_an_adapters_tensors_that_no_other_file_has_are_fetched(hub: Hub, tmp_path: Path) -> None:
    """Although they are a pickle beside safetensors."""
    shutil.rmtree(hub.folder)
    shutil.copytree(GOLDEN / "lora-112", hub.folder)
    settings = json.loads((hub.folder / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(GOLDEN / "narrow-112")
    (hub.folder / "adapter_config.json").write_text(json.dumps(settings))
    (hub.folder / "training_args.bin").write_bytes(b"which nobody needs")
    first = float(score(hub, tmp_path))
    logits = np.load(GOLDEN / "lora-112" / "expected.npz")["merged_logits_quality_image"]
    order = list(np.load(GOLDEN / "narrow-112" / "expected.npz")["picture_names"])
    expected = score_of(logits[order.index("chelsea_small.png")], "quality").value
    assert first == pytest.approx(expected, abs=1e-4)
    assert "training_args.bin" not in {name for name, _ in hub.asked}
    assert score(hub, tmp_path, HF_HUB_OFFLINE="1") == str(first)


def test_a_download_that_was_cut_off_goes_on_where_it_was(hub: Hub, tmp_path: Path) -> None:
    large = hub.folder / "tokenizer.model"  # huggingface_hub writes 10 MB at a time
    large.write_bytes(bytes(30 << 20))
    hub.cut = {large.name: 1}
    assert 1 <= float(score(hub, tmp_path)) <= 5
    assert [wanted for name, wanted in hub.asked if name == large.name] == [None, f"bytes={10 << 20}-"]


def test_a_fetch_that_failed_is_one_error_and_the_next_asks_only_for_what_is_missing(hub: Hub, tmp_path: Path) -> None:
    """huggingface_hub keeps whole files only: since its pull request 4306 no later call continues half of one."""
    hub.cut = {"model.safetensors": 100}  # more often than the client tries again
    said = score(hub, tmp_path)
    assert said.startswith(f"error: {NOT_FETCHED} (RemoteProtocolError: ")
    assert "\n" not in said
    assert score(hub, tmp_path, HF_HUB_OFFLINE="1").startswith(f"error: {NOT_FETCHED} (OfflineModeIsEnabled: ")
    hub.cut.clear()
    hub.asked.clear()
    assert 1 <= float(score(hub, tmp_path)) <= 5
    assert hub.asked == [("model.safetensors", None)]


def test_too_little_disk_is_said_before_anything_is_fetched(hub: Hub, tmp_path: Path) -> None:
    needed = sum(path.stat().st_size for path in hub.folder.iterdir() if path.suffix != ".bin")
    said = score(hub, tmp_path, str(needed - 1))
    size = f"{needed / 1e9:.2f} GB"
    assert said == f"error: q-future/one-align: needs {size}, {size} free at {tmp_path}/cache/hub"
    assert hub.asked == []
    assert 1 <= float(score(hub, tmp_path, str(needed))) <= 5
    assert 1 <= float(score(hub, tmp_path, "0")) <= 5  # all there


def test_an_artifact_is_fetched_like_a_checkpoint(hub: Hub, narrow: Golden, tmp_path: Path) -> None:
    shutil.rmtree(hub.folder)
    shutil.copytree(narrow.artifact, hub.folder)
    assert 1 <= float(score(hub, tmp_path)) <= 5


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "OfflineModeIsEnabled"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "ConnectError"),  # nobody there
        ({"HF_ENDPOINT": "example"}, "UnsupportedProtocol"),
        ({"MODEL": "q-future/other"}, "RepositoryNotFoundError"),
        ({"MODEL": "q-future/one--align"}, "HFValidationError"),
    ],
)
def test_an_id_that_cannot_be_fetched_is_one_error(
    hub: Hub, tmp_path: Path, settings: dict[str, str], error: str
) -> None:
    said = score(hub, tmp_path, **settings)
    model = settings.get("MODEL", "q-future/one-align")
    assert said.startswith(f"error: {NOT_FETCHED.replace('q-future/one-align', model)} ({error}: ")
    assert "\n" not in said
