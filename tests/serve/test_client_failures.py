"""A Scorer on a server that is busy, broken or none at all: what it asks again, what it raises, what it never tells."""

from __future__ import annotations

import gc
import json
import os
import pickle
import random
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Barrier, Event

import numpy as np
import pytest

from qalign_fast import (
    ArtifactError,
    ImageError,
    OptionError,
    PictureLimits,
    QAlignError,
    Scorer,
    ServerError,
    TaskError,
    VideoError,
)
from qalign_fast.errors import InternalError, MissingExtraError
from qalign_fast.feed.items import ClipOptions, Item
from qalign_fast.feed.remote import connections
from qalign_fast.feed.remote import server as remote
from qalign_fast.feed.remote.address import is_address, parse_address
from qalign_fast.feed.remote.parcels import Room
from qalign_fast.feed.remote.server import retry_after
from support.feeds import threads_named, wait_for
from support.goldens import PICTURES
from support.processes import Named
from support.scripted_server import GOOD, Reply, Request, ScriptedServer, error_rows, facts, rows, scripted_server

PICTURE = PICTURES / "chelsea_small.png"
KEY = "correct-horse-battery"


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as found:
        yield found


@pytest.fixture
def scorer(server: ScriptedServer) -> Iterator[Scorer]:
    with Scorer.load(server.url) as found:
        yield found


class Clock:
    """Time in which only waits pass."""

    def __init__(self) -> None:
        self.waits: list[float] = []

    def monotonic(self) -> float:
        return 1000.0 + sum(self.waits)

    def sleep(self, seconds: float) -> None:
        raise AssertionError("no one sleeps")

    def pause(self, seconds: float, unwanted: Callable[[], bool]) -> bool:
        self.waits.append(seconds)
        return not unwanted()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(remote, "time", clock)
    monkeypatch.setattr(remote, "_pause", clock.pause)
    return clock


# --- busy


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_busy_server_is_asked_again_when_it_says(
    server: ScriptedServer, scorer: Scorer, clock: Clock, status: int
) -> None:
    server.script(Reply({"error": "full"}, status, {"Retry-After": "7"}), Reply({"error": "full"}, status))
    assert scorer.score(PICTURE).logits == tuple(GOOD)
    assert clock.waits[0] == 7
    assert 0.125 <= clock.waits[1] <= 0.25 * 2  # its second time
    assert [request.body for request in server.scored] == [PICTURE.read_bytes()] * 3


def test_without_a_header_it_waits_longer_each_time_and_not_over_8_s(
    server: ScriptedServer, scorer: Scorer, clock: Clock
) -> None:
    server.script(*[Reply({"error": "full"}, 503)] * 10)
    scorer.score(PICTURE)
    bounds = [0.25, 0.5, 1, 2, 4, 8, 8, 8, 8, 8]
    assert all(bound / 2 <= wait <= bound for wait, bound in zip(clock.waits, bounds, strict=True)), clock.waits


def test_it_gives_up_after_two_minutes_with_what_the_server_said(
    server: ScriptedServer, scorer: Scorer, clock: Clock
) -> None:
    server.answer = lambda _: Reply({"error": "the queue is full"}, 429, {"Retry-After": "25"})
    with pytest.raises(ServerError) as caught:
        scorer.score(PICTURE)
    assert str(caught.value) == f"{server.url}: 429, the queue is full"
    assert clock.waits == [25.0] * 4
    server.answer = lambda _: Reply({"error": "the queue is full"}, 429, {"Retry-After": "121"})
    with pytest.raises(ServerError):
        scorer.score(PICTURE)
    assert clock.waits == [25.0] * 4  # to wait longer than that is no use


def test_loading_waits_for_a_server_that_loads(server: ScriptedServer, clock: Clock) -> None:
    replies = [Reply({"error": "loads"}, 503, {"Retry-After": "5"}), Reply({"data": [facts()]})]
    server.models = lambda: replies.pop(0)
    assert Scorer.load(server.url).tasks() == ("quality",)
    assert clock.waits == [5.0]


NOW = datetime(2026, 11, 27, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("0", 0.0),
        (" 30 ", 30.0),
        ("Fri, 27 Nov 2026 12:00:09 GMT", 9.0),
        ("Fri, 27 Nov 2026 11:59:00 GMT", 0.0),  # past
        ("Fri, 27 Nov 2026 12:00:09 -0000", 9.0),
        ("9" * 5000, None),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after(header: str | None, seconds: float | None) -> None:
    assert retry_after(header, NOW) == seconds


def test_a_run_that_ends_asks_no_second_time(server: ScriptedServer, scorer: Scorer) -> None:
    asked = Event()

    def answer(request: Request) -> Reply:
        if request.body == b"good":
            return Reply(rows())
        asked.set()
        return Reply({"error": "full"}, 503, {"Retry-After": "1"})

    server.answer = answer
    scores = scorer.score_iter([b"good", b"busy"], batch_size=2)
    next(scores)
    assert asked.wait(20)
    scores.close()
    time.sleep(1.2)
    assert len(server.scored) == 2


# --- broken connections


def test_a_connection_that_breaks_before_the_answer_is_made_again(
    server: ScriptedServer, scorer: Scorer, clock: Clock
) -> None:
    server.script(Reply(reset=True), Reply(rows(), cut=10), Reply(rows(), cut=0), Reply(raw=b""))
    assert scorer.score(PICTURE).logits == tuple(GOOD)
    assert (len(server.scored), len(clock.waits)) == (5, 3)  # the first was a kept connection, replaced without a wait


def test_one_that_always_breaks_is_an_error(server: ScriptedServer, scorer: Scorer, clock: Clock) -> None:
    server.answer = lambda _: Reply(reset=True)
    with pytest.raises(ServerError, match="the connection broke before the answer was whole"):
        scorer.score(PICTURE)
    assert len(clock.waits) == 4


def test_connections_are_kept_and_used_again(server: ScriptedServer, scorer: Scorer) -> None:
    for _ in range(10):
        scorer.score(PICTURE)
    assert len({request.connection for request in server.requests}) == 1


def test_a_kept_connection_that_the_server_has_closed_is_replaced_at_once(
    server: ScriptedServer, scorer: Scorer, clock: Clock
) -> None:
    server.answer = lambda _: Reply(rows(), closes=True)
    for _ in range(10):
        assert scorer.score(PICTURE).logits == tuple(GOOD)
    assert clock.waits == []
    assert len(server.scored) == 10


def test_each_thread_has_a_connection_and_idle_ones_are_shared(server: ScriptedServer, scorer: Scorer) -> None:
    together = Barrier(4)
    with ThreadPoolExecutor(4) as pool:

        def score(_: int) -> tuple[float, ...]:
            together.wait(20)  # all at once
            return scorer.score(PICTURE).logits

        assert list(pool.map(score, range(40))) == [tuple(GOOD)] * 40
    assert len({request.connection for request in server.requests}) <= 4


def test_old_idle_connections_are_not_used(
    server: ScriptedServer, scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer.score(PICTURE)
    monkeypatch.setattr(connections, "_FRESH", 0.0)
    scorer.score(PICTURE)
    assert len({request.connection for request in server.requests}) == 2


def test_whatever_breaks_each_picture_gets_its_own_answer_once(
    server: ScriptedServer, scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_pause", lambda *_: True)
    monkeypatch.setattr(remote, "_BROKEN", 20)
    dice, seen = random.Random(0), set()

    def answer(request: Request) -> Reply:
        good = Reply(rows(logits=[float(request.body), 0.0, 0.0, 0.0, 0.0]))
        with server.lock:
            kind = dice.randrange(8) if request.body not in seen or dice.random() < 0.3 else 7
            seen.add(request.body)
        broken = (Reply({"error": "full"}, 429), Reply(reset=True), replace(good, cut=30), Reply(raw=b""))
        return broken[kind] if kind < 4 else replace(good, closes=kind < 6)

    server.answer = answer
    with ThreadPoolExecutor(4) as pool:
        runs = [
            pool.submit(lambda: [s.logits[0] for s in scorer.score_iter(map(bytes_of, range(150)))]) for _ in "abcd"
        ]
        assert [run.result() for run in runs] == [list(map(float, range(150)))] * 4


def bytes_of(number: int) -> bytes:
    return str(number).encode()


@pytest.mark.parametrize("status", [413, 429])
def test_an_answer_that_comes_before_the_body_was_read_is_read(
    server: ScriptedServer, scorer: Scorer, clock: Clock, status: int
) -> None:
    """The connection breaks while the body is sent, because the server closes it behind its answer."""
    server.early = True
    server.answer = lambda _: Reply({"error": "no room"}, status, {"Retry-After": "121"})
    large = PICTURE.read_bytes() + bytes(30 << 20)
    if status == 413:
        with pytest.raises(ImageError) as caught:
            scorer.score(large)
        assert str(caught.value) == f"<{len(large)} bytes>: over the limit of the server: no room"
    else:
        with pytest.raises(ServerError, match="429, no room"):
            scorer.score(large)
    assert len(server.scored) == 1
    server.early = False
    server.answer = lambda _: Reply(rows())
    assert scorer.score(PICTURE).logits == tuple(GOOD)  # on another connection


def test_head_and_body_are_one_write(server: ScriptedServer, scorer: Scorer) -> None:
    class Socket:
        def __init__(self) -> None:
            self.sent: list[bytes] = []

        def sendall(self, data: bytes) -> None:
            self.sent.append(bytes(data))

        def close(self) -> None:
            pass

    for size, writes in ((1000, 1), (1 << 20, 2)):
        connection = connections._OneWrite("localhost")
        connection.sock = found = Socket()
        connection.request("POST", "/", bytes(size), {"A": "b"})
        assert found.sent == []
        connection.flush()
        assert len(found.sent) == writes
        assert b"".join(found.sent).endswith(b"\r\n\r\n" + bytes(size))
        assert f"Content-Length: {size}".encode() in found.sent[0]


def test_small_packets_are_not_held_back(server: ScriptedServer, scorer: Scorer) -> None:
    scorer.score(PICTURE)
    [(_, kept)] = scorer.engine.model.server._connections._idle
    assert kept.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_process_has_connections_and_threads_of_its_own(server: ScriptedServer) -> None:
    code = f"""
import os, sys
from qalign_fast import Scorer
scorer = Scorer.load({server.url!r})
paths = [{str(PICTURE)!r}] * 4
list(scorer.score_iter(paths))
child = os.fork()
for _ in range(20):
    scorer.score(paths[0])
list(scorer.score_iter(paths))
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
os._exit(0)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    assert len(server.scored) == 4 + 2 * 24


# --- not there


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_server_that_cannot_be_reached_is_an_artifact_error_at_once(clock: Clock) -> None:
    port = unused_port()
    with pytest.raises(ArtifactError) as caught:
        Scorer.load(f"http://127.0.0.1:{port}")
    assert str(caught.value) == f"http://127.0.0.1:{port}: cannot be reached (Connection refused)"
    with pytest.raises(ArtifactError, match=r"http://no\.such\.host\.invalid: cannot be reached \(.+\)$"):
        Scorer.load("http://no.such.host.invalid")
    assert clock.waits == []


def test_one_that_has_gone_is_asked_again_and_then_an_error(clock: Clock) -> None:
    with scripted_server() as server:
        scorer = Scorer.load(server.url)
    with pytest.raises(ServerError, match="cannot be reached"):
        scorer.score(PICTURE)
    assert len(clock.waits) == 4
    items = [Item(0, PICTURE), Item(1, PICTURE)]
    with pytest.raises(ServerError, match="cannot be reached"):  # not in a Scored: the next one fares no better
        list(scorer.feed.run(items, ("quality",)))
    with pytest.raises(ServerError, match="cannot be reached"):
        list(scorer.score_iter([PICTURE], errors="yield"))


def test_no_answer_in_time(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    monkeypatch.setattr(connections, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(remote, "ANSWER_SECONDS", 0.2)
    free = Event()
    server.answer = lambda _: Reply(rows()) if free.wait(20) else Reply()
    with Scorer.load(server.url) as scorer, pytest.raises(ServerError, match=r"no answer within 0\.2 s"):
        scorer.score(PICTURE)
    free.set()
    assert clock.waits == []
    assert len(server.scored) == 1


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    """For localhost, signed by itself."""
    folder = tmp_path_factory.mktemp("tls")
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "certificate.pem")]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names, *files]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    return context, folder / "certificate.pem"


def test_https(certificate: tuple[ssl.SSLContext, Path], monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    context, path = certificate
    with scripted_server(context) as server:
        with pytest.raises(
            ArtifactError, match=r"cannot be reached \(its certificate is not trusted: self.signed .+\)"
        ):
            Scorer.load(server.url)
        with pytest.raises(ArtifactError):  # plain HTTP at a port for TLS
            Scorer.load(server.url.replace("https", "http"))
        monkeypatch.setenv("SSL_CERT_FILE", str(path))
        with Scorer.load(server.url) as scorer:
            for size in (0, 20 << 20):
                assert scorer.score(PICTURE.read_bytes() + bytes(size)).logits == tuple(GOOD)
            server.script(Reply(rows(), closes=True))
            assert [scorer.score(PICTURE).logits for _ in range(3)] == [tuple(GOOD)] * 3
        assert len({request.connection for request in server.scored}) == 2
        with pytest.raises(ArtifactError, match="cannot be reached"):  # a name that the certificate has not
            Scorer.load(server.url.replace("localhost", "127.0.0.1"))
    with scripted_server() as server, pytest.raises(ArtifactError, match="cannot be reached"):
        Scorer.load(server.url.replace("http", "https"))


# --- answers that are none

NO_SERVER = "what answers is not a server of qalign-fast"


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (Reply(raw=b"220 smtp.example.org ESMTP\r\n"), "does not speak HTTP as it should (220 smtp.example.org ESMTP"),
        (Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>"), NO_SERVER),
        (Reply(raw=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n[1,2]\r\n0\r\n\r\n"), NO_SERVER),
        (Reply(raw=b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 200_000), NO_SERVER),
        (Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n"), "an answer of more than 33554432 bytes"),
        (Reply({"rows": []}), NO_SERVER),
        (Reply({"rows": [1]}), NO_SERVER),
        (Reply(rows("beauty")), "its answer has not the rows that were asked for"),
        (Reply(rows(logits=None)), "its answer has not the rows that were asked for"),
        (Reply(rows(logits=[1.0, 2.0])), "its answer has not the rows that were asked for"),
        (Reply(rows(logits=["a"] * 5)), "its answer has not the rows that were asked for"),
        (Reply(rows(logits=[[1.0]] * 5)), "its answer has not the rows that were asked for"),
        (Reply(rows(warnings=3)), "its answer has not the rows that were asked for"),
        (Reply({"error": "two\n lines"}, 400), "400, two lines"),
        (Reply({"error": {"deep": 1}}, 500), "500, Because"),
        (Reply({"error": "tasks are a list"}, 422), "422, tasks are a list"),
        (
            Reply(None, 302, {"Location": "https://other.example.org/"}),
            "answers with a redirect to https://other.example",
        ),
        (Reply({"error": "no"}, 403), "refuses the request (403, no); is the API key right?"),
        (Reply({"error": "no"}, 401), "asks for an API key; give it as api_key, --api-key or QALIGN_API_KEY"),
    ],
)
def test_answers_that_are_none(server: ScriptedServer, scorer: Scorer, clock: Clock, reply: Reply, text: str) -> None:
    server.script(reply)
    with pytest.raises(ServerError) as caught:
        scorer.score(PICTURE)
    assert str(caught.value).startswith(f"{server.url}: ")
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(server.scored) == 1
    assert scorer.score(PICTURE).logits == tuple(GOOD)


@pytest.mark.parametrize(
    "content",
    [
        None,
        [],
        {},
        {"data": 3},
        {"data": []},
        {"data": [1]},
        {"data": [{"id": "gpt-4", "object": "model"}]},
        {"data": [facts(family="other")]},
        {"data": [facts(sizes={})]},
        {"data": [facts(limits=None)]},
        {"data": [facts(tasks=None)]},
    ],
)
def test_what_is_no_server_of_ours_is_an_artifact_error(server: ScriptedServer, content: object) -> None:
    server.models = lambda: Reply(content)
    with pytest.raises(ArtifactError, match=f"^{server.url}: "):
        Scorer.load(server.url)


@pytest.mark.parametrize("status", [302, 401, 403, 404, 500])
def test_a_server_that_refuses_when_it_is_loaded_is_an_artifact_error(server: ScriptedServer, status: int) -> None:
    server.models = lambda: Reply({"error": "no"}, status)
    with pytest.raises(ArtifactError, match=f"^{server.url}: "):
        Scorer.load(server.url)


def test_a_model_that_is_gone_is_an_artifact_error(server: ScriptedServer, scorer: Scorer) -> None:
    server.script(Reply({"error": "model 'mini' is not here; there are: b"}, 404))
    with pytest.raises(ArtifactError, match="model 'mini' is not here; there are: b"):
        scorer.score(PICTURE)


# --- errors about a picture


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("ImageError", ImageError),
        ("VideoError", VideoError),
        ("InternalError", InternalError),
        ("SystemExit", InternalError),
        ("one_line", InternalError),
    ],
)
def test_a_row_with_an_error_is_that_error(
    server: ScriptedServer, scorer: Scorer, kind: str, expected: type[QAlignError]
) -> None:
    server.script(error_rows("sent: truncated", kind))
    with pytest.raises(QAlignError) as caught:
        scorer.score(PICTURE)
    assert (type(caught.value), str(caught.value)) == (expected, f"{PICTURE}: truncated")


def test_an_extra_that_is_missing_is_missing_on_the_server(server: ScriptedServer, scorer: Scorer) -> None:
    server.script(error_rows("clips need PyAV: pip install 'qalign-fast[video]'", "MissingExtraError"))
    with pytest.raises(
        MissingExtraError, match=rf"^{server.url}: clips need PyAV: pip install 'qalign-fast\[video\]'$"
    ):
        scorer.score_video(PICTURE)


def test_bad_pictures_do_not_end_a_run(server: ScriptedServer, scorer: Scorer) -> None:
    good, fault = PICTURE.read_bytes(), ValueError("the caller's own")
    server.answer = lambda request: Reply(rows()) if request.body == good else error_rows("sent: no picture")

    class Odd(os.PathLike):
        def __fspath__(self) -> str:
            raise fault

    media = [good, b"junk", "missing.jpg", 3, Odd(), ImageError("from elsewhere"), b"", good]
    found = list(scorer.feed.run([Item(i, one) for i, one in enumerate(media)], ("quality",), batch_size=3))
    assert [scored.key for scored in found] == list(range(8))
    assert [scored.scores is None for scored in found] == [False, *[True] * 6, False]
    assert [type(scored.error).__name__ for scored in found[1:7]] == [
        *["ImageError"] * 3,
        "InternalError",
        *["ImageError"] * 2,
    ]
    assert str(found[1].error) == "<4 bytes>: no picture"
    assert found[4].error.__cause__ is fault
    assert len(server.scored) == 3
    with pytest.raises(ImageError, match="no picture"):
        list(scorer.score_iter([good, b"junk", good]))
    yielded = list(scorer.score_iter([good, b"junk", good], errors="yield"))
    assert [isinstance(one, ImageError) for one in yielded] == [False, True, False]


def test_a_task_that_is_not_there_needs_no_request(server: ScriptedServer, scorer: Scorer) -> None:
    for ask in (
        lambda: scorer.require(["quality", "beauty"]),
        lambda: scorer.score(PICTURE, "beauty"),
        lambda: list(scorer.score_iter([PICTURE], "beauty")),
        lambda: scorer.score_video(PICTURE, "beauty"),
    ):
        with pytest.raises(TaskError, match=r"task 'beauty' is not in this model; for (image|video)s it has: quality"):
            ask()
    assert server.scored == []
    assert scorer.score_tasks(PICTURE, ()) == {}


def test_a_timeline_is_refused(scorer: Scorer) -> None:
    with pytest.raises(OptionError, match="POST /v1/score/video has it"):
        scorer.feed.score(Item(0, PICTURE, "video", ClipOptions(timeline=True)), ("quality",)).get()


# --- what is sent


def test_what_is_sent(server: ScriptedServer) -> None:
    server.models = lambda: Reply({"data": [facts(), facts(id="large one", tasks=["quality", "aesthetics"])]})
    with Scorer.load(server.url + "/a%20b/#large%20one", api_key=KEY) as scorer:
        assert scorer.tasks() == ("quality", "aesthetics")
        scorer.score_tasks(str(PICTURE))
        scorer.score_video(PICTURE, fps=0.5, max_frames=3, sampling="time")
        scorer.score_video([PICTURE] * 2)
    models, picture, clip, frames = server.requests
    assert models.path == "/a%20b/v1/models"
    assert picture.path == "/a%20b/v1/score"
    asked = {"model": ["large one"], "logits": ["true"], "source": ["sent"]}
    assert picture.query == asked | {"task": ["quality", "aesthetics"]}
    assert picture.body == clip.body == PICTURE.read_bytes()
    assert clip.path == frames.path == "/a%20b/v1/score/video"
    options = {"task": ["quality"], "fps": ["0.5"], "max_frames": ["3"], "sampling": ["time"]}
    assert clip.query == asked | options
    assert frames.headers["content-type"].startswith("multipart/form-data")
    assert frames.body.count(b'name="frames"') == 2
    assert frames.body.count(b"P6 448 448 255\n") == 2
    assert {request.headers["authorization"] for request in server.requests} == {f"Bearer {KEY}"}
    assert str(PICTURE.name) not in repr([(request.path, request.query) for request in server.requests])


@pytest.mark.parametrize(
    "given",
    [
        {"exif_rotate": True},
        {"allow_truncated": True},
        {"background": (255, 255, 255)},
        {"tone_map": True},
        {"formats": ("heic",)},
    ],
)
def test_a_picture_that_is_read_in_another_way_is_read_here(server: ScriptedServer, given: dict) -> None:
    with Scorer.load(server.url, limits=PictureLimits(**given)) as scorer:
        scorer.score(PICTURE)
    assert server.scored[0].body.startswith(b"P6 448 448 255\n")


def test_limits_are_checked_before_anything_is_sent(server: ScriptedServer, tmp_path: Path) -> None:
    with Scorer.load(server.url, limits=PictureLimits(max_bytes=1000)) as scorer:
        for media in (PICTURE, PICTURE.read_bytes(), PICTURE.open("rb")):
            with pytest.raises(ImageError, match=r"over the limit of 1000 bytes \(max_bytes\)"):
                scorer.score(media)
        with pytest.raises(VideoError, match=r"over the limit of 1000 bytes \(max_bytes\)"):
            scorer.score_video(PICTURE)
    with Scorer.load(server.url, limits=PictureLimits(max_pixels=100)) as scorer:
        with pytest.raises(ImageError, match=r"over the limit of 100 pixels \(max_pixels\)"):
            scorer.score(PICTURE)
        with pytest.raises(ImageError, match=r"over the limit of 100 pixels \(max_pixels\)"):
            scorer.score(np.zeros((20, 20, 3), np.uint8))
        assert server.scored == []
        scorer.score(np.zeros((9, 9, 3), np.uint8))
    server.models = lambda: Reply({"data": [facts(limits={"max_body": 700_000})]})
    server.requests.clear()
    (tmp_path / "large.tif").write_bytes(bytes(700_001))
    with Scorer.load(server.url) as scorer:
        text = "over the limit of the server: 700001 bytes, and it takes 700000 (max_body)"
        with pytest.raises(ImageError) as caught:
            scorer.score(tmp_path / "large.tif")
        assert str(caught.value) == f"{tmp_path / 'large.tif'}: {text}"
        with pytest.raises(VideoError) as caught:
            scorer.score_video(bytes(700_001))
        assert str(caught.value) == f"<700001 bytes>: {text}"
        with pytest.raises(VideoError, match=r"^<list>: over the limit of the server: \d+ bytes, and it takes 700000"):
            scorer.score_video([PICTURE, PICTURE])
        scorer.score_video([PICTURE])
    assert len(server.scored) == 1


def test_frames_and_seconds_that_cannot_be(server: ScriptedServer, scorer: Scorer) -> None:
    for fps in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(VideoError, match=f"^fps is {fps}; expected a positive number"):
            scorer.score_video(b"clip", fps=fps)
    for most in (0, -1, 1000):
        for clip in (b"clip", [PICTURE], iter([PICTURE])):
            with pytest.raises(VideoError, match=f"max_frames is {most}; this model's positions hold 1 to "):
                scorer.score_video(clip, max_frames=most)
    with pytest.raises(VideoError, match="a clip needs at least one frame"):
        scorer.score_video([])
    assert server.scored == []


# --- runs


def test_results_come_in_order_and_few_are_under_way(server: ScriptedServer, scorer: Scorer) -> None:
    def answer(request: Request) -> Reply:
        number = int(request.body)
        time.sleep(0.01 * (number % 3))  # not in the order in which they came
        return Reply(rows(logits=[float(number), 0.0, 0.0, 0.0, 0.0]))

    server.answer = answer
    taken: list[int] = []

    def pictures(count: int) -> Iterator[bytes]:
        for i in range(count):
            taken.append(i)
            yield bytes_of(i)

    for batch_size, most in ((1, 1), (3, 3), (100, 32)):
        server.most = 0
        taken.clear()
        seen = []
        for score in scorer.score_iter(pictures(60), batch_size=batch_size):
            seen.append(score.logits[0])
            assert len(taken) <= len(seen) + most
        assert seen == list(range(60))
        assert most / 4 < server.most <= most


def test_pixels_are_those_that_a_picture_had_when_it_was_taken(server: ScriptedServer, scorer: Scorer) -> None:
    def frames() -> Iterator[np.ndarray]:
        frame = np.zeros((448, 448, 3), np.uint8)
        for grey in range(0, 250, 50):
            frame[:] = grey
            yield frame
        frame[:] = 255

    server.answer = lambda request: Reply(rows(logits=[float(request.body[-1]), 0.0, 0.0, 0.0, 0.0]))
    assert [score.logits[0] for score in scorer.score_iter(frames())] == [0, 50, 100, 150, 200]


def test_what_is_read_and_not_answered_is_bounded() -> None:
    room, inside, most = Room(100), [0], [0]
    lock = threading.Lock()

    def hold(size: int) -> None:
        with room.of(size):
            with lock:
                inside[0] += size
                most[0] = max(most[0], inside[0])
            time.sleep(0.001)
            with lock:
                inside[0] -= size

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(hold, [40, 60, 30, 0, 70] * 20))
        assert most[0] <= 100
        list(pool.map(hold, [1000, 1000]))  # more than there is: alone
    assert most[0] == 1000


def test_few_threads_make_pixels_at_a_time(
    server: ScriptedServer, scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qalign_fast.feed import reading

    making, most = [0], [0]
    lock, load = threading.Lock(), reading.load_pixels

    def watched(*given: object, **more: object) -> object:
        with lock:
            making[0] += 1
            most[0] = max(most[0], making[0])
        try:
            time.sleep(0.005)
            return load(*given, **more)
        finally:
            with lock:
                making[0] -= 1

    monkeypatch.setattr(reading, "load_pixels", watched)
    pictures = [np.full((30, 30, 3), i, np.uint8) for i in range(30)]
    assert len(list(scorer.score_iter(pictures, workers=2))) == 30
    assert most[0] <= 2


def test_an_error_of_the_server_ends_a_run_after_what_came_before(
    server: ScriptedServer, scorer: Scorer, clock: Clock
) -> None:
    server.answer = lambda request: Reply({"error": "broken"}, 500) if request.body == b"2" else Reply(rows())
    scores = scorer.score_iter([b"0", b"1", b"2", b"3"], errors="yield")
    assert [next(scores).logits, next(scores).logits] == [tuple(GOOD)] * 2
    with pytest.raises(ServerError, match="500, broken"):
        next(scores)


# --- the scorer itself


def test_a_closed_scorer_says_so_and_its_connections_are_closed(server: ScriptedServer) -> None:
    scorer = Scorer.load(server.url).warm()
    assert server.scored[0].body.startswith(b"\xff\xd8")  # a JPEG
    scores = scorer.score_iter([PICTURE] * 8, batch_size=2)
    next(scores)
    scorer.close()
    assert len(scorer.engine.model.server._connections._idle) == 0
    for ask in (lambda: scorer.score(PICTURE), lambda: list(scores), lambda: scorer.score_video([PICTURE])):
        with pytest.raises(QAlignError, match=r"this scorer is closed; Scorer\.load makes another one"):
            ask()


def test_a_scorer_that_is_forgotten_closes_its_connections(server: ScriptedServer) -> None:
    scorer = Scorer.load(server.url)
    list(scorer.score_iter([PICTURE] * 3))
    [sock, *_] = [kept.sock for _, kept in scorer.engine.model.server._connections._idle]
    del scorer
    gc.collect()
    assert sock.fileno() == -1
    assert wait_for(lambda: threads_named("qalign-http") == [])


def test_a_pickled_scorer_asks_the_same_server(server: ScriptedServer) -> None:
    server.models = lambda: Reply({"data": [facts(), facts(id="b")]})
    limits = PictureLimits(max_bytes=1 << 20)
    scorer = Named.load(server.url + "#b", api_key=KEY, limits=limits)
    found = pickle.loads(pickle.dumps(scorer))
    assert type(found) is Named
    assert found._load_again.keywords == scorer._load_again.keywords == {"api_key": KEY, "limits": limits}
    assert KEY not in repr(scorer._load_again)
    assert found.score(PICTURE) == scorer.score(PICTURE)
    assert [request.query["model"] for request in server.scored] == [["b"]] * 2
    assert Scorer(scorer.engine).score(PICTURE) == scorer.score(PICTURE)


def test_what_it_says_of_the_engine(server: ScriptedServer, scorer: Scorer) -> None:
    engine = scorer.engine
    assert (engine.name, engine.device, engine.precision, engine.kernels) == ("http", server.url, "int8", "plain numpy")
    assert scorer.config == engine.config == Scorer.load().config
    with pytest.raises(QAlignError, match="the model is there, and not in this process"):
        scorer.feed.score_read([scorer.feed.read(Item(0, PICTURE), ("quality",))])


def test_the_key_is_told_to_nobody(server: ScriptedServer, clock: Clock) -> None:
    """Not even where the server repeats it."""
    scorer = Scorer.load(server.url, api_key=KEY)
    texts = []
    for reply in (
        Reply({"error": f"key {KEY} is wrong"}, 401),
        Reply({"error": f"key {KEY} is wrong"}, 403),
        Reply({"error": f"key {KEY} is wrong"}, 500),
        Reply(None, 302, {"Location": f"https://other/?key={KEY}"}),
        Reply(raw=f"Authorization: Bearer {KEY}\r\n".encode()),
    ):
        server.script(reply)
        with pytest.raises(ServerError) as caught:
            scorer.score(PICTURE)
        texts.append(str(caught.value))
    for reply in (error_rows(f"sent: {KEY}"), Reply({"error": KEY}, 413)):
        server.script(reply)
        with pytest.raises(ImageError) as caught:
            scorer.score(PICTURE)
        texts.append(str(caught.value))
    assert "does not take this API key" in texts[0]
    shown = [*texts, repr(scorer), repr(vars(scorer.engine.model.server)), repr(scorer.engine.model), repr(scorer.feed)]
    assert KEY not in "\n".join(shown)


@pytest.mark.parametrize("key", ["", "two\nlines", "schlüssel", "null\0"])
def test_a_key_that_no_header_takes(server: ScriptedServer, key: str) -> None:
    with pytest.raises(OptionError) as caught:
        Scorer.load(server.url, api_key=key)
    assert str(caught.value) == "api_key: expected printable ASCII characters, at least one"
    assert server.requests == []


@pytest.mark.parametrize(
    ("text", "url", "model"),
    [
        ("http://host", "http://host", None),
        ("HTTP://Host:8000/", "http://host:8000", None),
        ("https://host/a/b/#fast", "https://host/a/b", "fast"),
        ("http://my_host.", "http://my_host.", None),
        ("http://[::1]:8000#a%20b", "http://[::1]:8000", "a b"),
        ("http://bücher.example/ü", "http://xn--bcher-kva.example/%C3%BC", None),
    ],
)
def test_addresses(text: str, url: str, model: str | None) -> None:
    assert is_address(text)
    found = parse_address(text)
    assert (found.url, found.model) == (url, model)


@pytest.mark.parametrize(
    "text",
    [
        "http://",
        "http:///path",
        "http://host:port",
        "http://host:99999",
        "http://[::1",
        "http://host/a b",
        "http://host\n",
        "http://host?model=a",
        f"http://{'a' * 64}.org",
        "http://user:secret@host",
        "http://user:sec/ret@host",
        "http://user:sec#ret@host",
        "http://secret@host",
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(OptionError) as caught:
        Scorer.load(text)
    assert "sec" not in str(caught.value)
    if "@" in text:
        assert "give its key as api_key" in str(caught.value)


def test_what_is_the_servers_own_is_refused(server: ScriptedServer) -> None:
    for name, value in {
        "device": "cpu",
        "precision": "int8",
        "engine": "native",
        "threads": 2,
        "verify": False,
    }.items():
        with pytest.raises(OptionError, match=f"^{name}: with a server's address these are the server's own$"):
            Scorer.load(server.url, **{name: value})
    assert server.requests == []
    with pytest.raises(OptionError) as caught:
        Scorer.load(api_key=KEY)
    assert KEY not in str(caught.value)


def test_a_name_that_the_server_has_not(server: ScriptedServer) -> None:
    with pytest.raises(ArtifactError) as caught:
        Scorer.load(server.url + "#large")
    assert str(caught.value) == f"{server.url}: has no model 'large'; there are: mini"


def test_nothing_is_printed_but_by_who_asked(server: ScriptedServer) -> None:
    """The command line, with a key from the environment."""
    environment = {**os.environ, "QALIGN_API_KEY": KEY}
    command = [
        sys.executable,
        "-m",
        "qalign_fast.cli",
        "score",
        str(PICTURE),
        "--model",
        server.url,
        "--format",
        "jsonl",
    ]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["score"] == pytest.approx(4.06, abs=0.5)
    assert server.scored[0].headers["authorization"] == f"Bearer {KEY}"
    server.answer = lambda _: Reply({"error": f"{KEY} is wrong"}, 401)
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 1
    assert (
        run.stderr
        == f"error: {server.url}: does not take this API key; give it as api_key, --api-key or QALIGN_API_KEY\n"
    )
