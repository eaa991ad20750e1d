"""Inputs in other stores, by their URLs: which are opened, what their rows hold, and how long each may take."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import fsspec
import pytest

from qalign_fast.errors import QAlignError
from qalign_fast.jobs.inputs.taking import InputOptions
from qalign_fast.jobs.job import run_job
from support.job_inputs import SAMPLES, entries, members, scored
from support.jobs import make_tar, options, rows_of, run_options


def test_other_stores(tmp_path: Path, expected: dict[str, float]) -> None:
    memory = fsspec.filesystem("memory")
    for path in SAMPLES:
        memory.pipe_file(f"/photos/{path.name}", path.read_bytes())
    memory.pipe_file("/photos/notes.md", b"")
    rows = scored(tmp_path / "out", "memory://photos")
    assert [row["source"] for row in rows] == [f"memory:///photos/{name}" for name in expected]
    assert [row["score"] for row in rows] == list(expected.values())
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in SAMPLES:
            archive.write(path, path.name)
    rows = scored(tmp_path / "zip", f"zip://*.jpg::file://{tmp_path}/a.zip")
    assert [row["score"] for row in rows] == list(expected.values())
    memory.pipe_file("/tars/a.tar", make_tar(tmp_path / "a.tar", members()).read_bytes())
    rows = scored(tmp_path / "tar", "memory://tars/a.tar")
    assert [row["score"] for row in rows] == list(expected.values())


def test_a_list_may_name_a_store_only_where_it_is_allowed(tmp_path: Path, expected: dict[str, float]) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/one/coffee.jpg", SAMPLES[0].read_bytes())
    (tmp_path / "names.txt").write_text("memory://one/coffee.jpg\nmemory://one/gone.jpg\n")
    rows = scored(tmp_path / "refused", tmp_path / "names.txt")
    assert rows[0]["error"] == "memory://one/coffee.jpg: memory:// is not opened unless --allow memory says so"
    rows = scored(tmp_path / "out", tmp_path / "names.txt", protocols=("memory",))
    assert rows[0]["score"] == expected["coffee.jpg"]
    assert (rows[1]["status"], rows[1]["score"]) == ("unavailable", None)


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An object store's server on this machine."""
    server = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    found = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    found.start()
    host, port = found.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    yield fsspec.filesystem("s3", skip_instance_cache=True)
    found.stop()


def test_an_object_store(s3: Any, tmp_path: Path, expected: dict[str, float]) -> None:
    s3.mkdir("photos")
    for path in SAMPLES:
        s3.pipe_file(f"photos/a/{path.name}", path.read_bytes())
    s3.pipe_file("photos/t.tar", make_tar(tmp_path / "t.tar", members()).read_bytes())
    rows = scored(tmp_path / "out", "s3://photos/a")
    assert [(row["source"], row["score"]) for row in rows] == [
        (f"s3://photos/a/{name}", score) for name, score in expected.items()
    ]
    rows = scored(tmp_path / "tar", "s3://photos/t.tar")
    assert [row["score"] for row in rows] == list(expected.values())
    with pytest.raises(QAlignError, match=r"s3://photos/none: cannot be listed \(FileNotFoundError"):
        entries("s3://photos/none")


def test_a_store_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(QAlignError, match="nosuch://"):
        entries("nosuch://bucket/a")


@pytest.fixture
def silent_server(tmp_path: Path) -> Iterator[str]:
    """A web server of the samples' folder, which never answers a request for a name with "silent" in it."""
    ended = Event()

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if "silent" in self.path:
                ended.wait(60)
            else:
                super().do_GET()

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=SAMPLES[0].parent))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    ended.set()
    server.shutdown()
    server.server_close()


def test_a_server_that_never_answers_holds_a_job_up_for_the_time_limit(
    silent_server: str, tmp_path: Path, expected: dict[str, float]
) -> None:
    pytest.importorskip("aiohttp")
    names = [SAMPLES[0].name, "silent.jpg", SAMPLES[1].name]
    (tmp_path / "names.txt").write_text("".join(f"{silent_server}/{name}\n" for name in names))
    job = options(tmp_path / "names.txt", taking=InputOptions(protocols=("http",)))
    started = time.monotonic()
    outcome = run_job(tmp_path / "out", job, run_options(time_limit=3.0))
    assert time.monotonic() - started < 30
    assert (outcome.counts["ok"], outcome.counts["unavailable"]) == (2, 1)
    rows = rows_of(tmp_path / "out")
    assert [row["score"] for row in rows] == [expected[names[0]], None, expected[names[2]]]
    assert rows[1]["error"] == f"{silent_server}/silent.jpg: it did not come within 3 seconds"
