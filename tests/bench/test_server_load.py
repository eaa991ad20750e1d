"""The load on a server: when requests are due, from when their time counts, what came of each, and to whom it goes.

The server is one of a few lines here, which does to each request what a test says.
"""

from __future__ import annotations

import email
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qalign_bench.cli import command
from qalign_bench.cli.options import Options
from qalign_bench.contestants.process import Contestant
from qalign_bench.figures import server_tables
from qalign_bench.scenarios.server import NAIVE, engine_contestant, expect
from qalign_bench.server import parts as parts_module
from qalign_bench.server.client import Client, OtherHostError, Record
from qalign_bench.server.load import closed_loop, open_loop, poisson, run
from qalign_bench.server.outcomes import Tally, outcome, steady_rate
from qalign_bench.server.parts import Parts
from qalign_bench.server.processes import Server, free_port, naive_command, started
from qalign_bench.server.requests import Prepared, mark_of, prepare
from qalign_bench.server.targets import Target, loaded
from qalign_fast.errors import QAlignError
from qalign_fast.references import EMBEDDED
from support.bench import REQUIRED
from support.goldens import PICTURES

pytestmark = pytest.mark.usefixtures("kernels")  # of a user who has built them
GOOD = b'{"rows": [{"score": 3.25}]}'
LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


def http(body: bytes = GOOD, status: str = "200 OK", *headers: str) -> bytes:
    """An answer's bytes."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


@dataclass
class Seen:
    """What the server saw. `answer` gives the bytes for a request's number and bytes; empty ones end the connection."""

    answer: Callable[[int, bytes], bytes] = lambda *_: http()
    reads_bodies: bool = True
    url: str = ""
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0
    cut: list[int] = field(default_factory=list)  # bytes that were missing when a client went away
    lock: threading.Lock = field(default_factory=threading.Lock)

    def serve(self, connection: socket.socket) -> None:
        with connection, suppress(ConnectionError):
            while True:
                head = b""
                while b"\r\n\r\n" not in head:
                    if not (data := connection.recv(1 << 16)):
                        return
                    head += data
                missing = int(LENGTH.search(head)[1]) - len(head.partition(b"\r\n\r\n")[2])
                while missing and self.reads_bodies:
                    if not (data := connection.recv(1 << 16)):
                        self.cut.append(missing)
                        return
                    head += data
                    missing -= len(data)
                with self.lock:
                    self.requests.append(head)
                    number = len(self.requests) - 1
                if not (said := self.answer(number, head)):
                    return
                connection.sendall(said)
                if not self.reads_bodies:
                    return


@contextmanager
def server(answer: Callable[[int, bytes], bytes] = lambda *_: http(), *, reads_bodies: bool = True) -> Iterator[Seen]:
    seen = Seen(answer, reads_bodies)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            seen.connections += 1
            threading.Thread(target=seen.serve, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        seen.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        threading.Thread(target=accept, daemon=True).start()
        yield seen
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.jpg"
    path.write_bytes(b"\xff\xd8" + bytes(3000))
    return path


def ready(picture: Path, **more: Any) -> list[Prepared]:
    return [prepare({"file": str(picture), "expected": [3.25], **more}, "here", marked=True)]


def played(url: str, prepared: list[Prepared], loop: Callable[..., list[Record]], **how: Any) -> tuple[Any, list[Any]]:
    """What a loop answered, and its records."""
    answer = run(url, prepared, loop, marked=True, most=how.get("most", 256))
    columns = answer["records"]
    return answer, [Record(**dict(zip(columns, row))) for row in zip(*columns.values())]


def due(*moments: float, patience: float = 5.0) -> Callable[[Client, list[Prepared]], list[Record]]:
    """An open loop with arrivals at these moments."""
    return lambda client, prepared: open_loop(client, prepared, iter([(m, 0) for m in moments]), patience)


def test_arrivals_are_a_poisson_process() -> None:
    """For exponential gaps mean and deviation are equal. 20,000 of them tell both within 4 %, by six deviations."""
    arrivals = list(poisson(100.0, 200.0, seed=3, kinds=7))
    moments = np.array([moment for moment, _ in arrivals])
    gaps = np.diff(moments)
    assert gaps.min() > 0
    assert moments[-1] < 200
    assert gaps.mean() == pytest.approx(0.01, rel=0.04)
    assert gaps.std() == pytest.approx(0.01, rel=0.04)
    assert np.mean(gaps > 0.02) == pytest.approx(np.exp(-2), rel=0.1)  # the tail, which even gaps would not have
    assert abs(np.corrcoef(gaps[1:], gaps[:-1])[0, 1]) < 0.05
    counts = np.bincount([which for _, which in arrivals])
    assert counts.max() - counts.min() <= 1
    assert list(poisson(100.0, 200.0, seed=3, kinds=7)) == arrivals
    assert list(poisson(100.0, 200.0, seed=4, kinds=7)) != arrivals


def test_a_time_counts_from_when_a_request_was_due(picture: Path) -> None:
    """The only connection is held for .4 s. Those that were due meanwhile waited, though they were sent later."""
    waited = threading.Event()

    def answer(number: int, _: bytes) -> bytes:
        if number == 0:
            waited.wait(0.4)
        return http()

    with server(answer) as seen:
        _, records = played(seen.url, ready(picture), due(0.0, 0.1, 0.2), most=1)
    assert [record.status for record in records] == [200, 200, 200]
    assert [record.scheduled for record in records] == [0.0, 0.1, 0.2]
    for record, least in zip(records, (0.4, 0.3, 0.2)):
        assert record.finished - record.scheduled >= least
    assert records[1].sent - records[1].scheduled >= 0.3
    tally = Tally([{"expected": [3.25]}], bound_ms=100.0)
    tally.add(columns(records), 1.0)
    assert tally.outcomes == {"right": 3}
    assert (tally.held, tally.good, tally.scored) == (0, [0], [3])


def columns(records: list[Record], **more: int) -> dict[str, Any]:
    rows = [asdict(record) for record in records]
    told = {"extra_answers": 0, "most_open": 1, "cpu_s": 0.0, **more}
    return {"records": {key: [row[key] for row in rows] for key in rows[0]}, **told}


def test_what_came_of_each_request_is_counted(picture: Path) -> None:
    hold = threading.Event()
    answers = {
        0: http(b'{"rows": [{"score": 3.25}]}', "200 OK", "x-queue-time: 1.5", "X-Inference-Time: 20"),
        1: http(b'{"rows": [{"score": 3.26}]}'),
        2: http(b"{}", "429 Too Many Requests", "Retry-After: 1"),
        3: http(b"{}", "503 Service Unavailable"),
        4: http(b"{}", "500 Internal Server Error"),
        5: b"",
        6: b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{",
    }

    def answer(number: int, _: bytes) -> bytes:
        if number == 7:
            hold.wait(30)
        return answers.get(number, b"")

    with server(answer) as seen:
        moments = [0.05 * i for i in range(8)]
        told, records = played(seen.url, ready(picture), due(*moments, patience=0.3))
        hold.set()
    tally = Tally([{"expected": [3.25]}], bound_ms=1e6)
    tally.add(told, 1.0)
    summary = tally.summary()
    counted = {key: summary[key] for key in ("requests", "right", "wrong", "refused", "failed", "unanswered", "left")}
    assert counted == {"requests": 8, "right": 1, "wrong": 1, "refused": 2} | {
        "failed": 1,
        "unanswered": 3,
        "left": 0,
    }
    assert summary["statuses"] == {"200": 2, "429": 1, "503": 1, "500": 1, "None": 3}
    assert (summary["accepted"], summary["extra_answers"]) == (2, 0)
    assert len(tally.refused_ms) == 2
    assert (records[0].queue_ms, records[0].inference_ms) == (1.5, 20.0)
    assert records[7].error == "no answer in time"
    assert not tally.holds


def test_an_answer_that_nobody_asked_for_is_counted(picture: Path) -> None:
    with server(lambda *_: http() + http(b'{"score": 1}')) as seen:
        told, records = played(seen.url, ready(picture), lambda c, p: closed_loop(c, p, 1, most=2))
    assert [record.scores for record in records] == [(3.25,), (3.25,)]
    assert told["extra_answers"] == 2


@pytest.mark.parametrize(
    ("status", "scores", "expected", "is_right"),
    [
        (200, (3.1235,), [3.12347], True),  # 4 decimals
        (200, (3.1236,), [3.12347], False),
        (200, (), [3.1], False),
        (200, (3.1, 3.1), [3.1], False),
        (422, (None,), [3.1], False),
        (422, (None,), [None], True),
        (422, (), [None], True),  # {"detail": ...}, as the naive server says it
        (200, (2.0,), [None], False),
        (422, (3.1,), [None], False),
        (200, (2.0, None), [2.0, None], True),
        (200, (None, 2.0), [2.0, None], False),
        (200, (4.0, 2.0), [2.0, 4.0], False),
        (400, (None,), [None], False),
    ],
)
def test_wrong_scores_are_seen(status: int, scores: Any, expected: Any, is_right: bool) -> None:
    found = outcome(status, scores, None, {"expected": expected})
    assert found == ("right" if is_right else "failed" if status == 400 else "wrong")


@pytest.mark.parametrize(
    "url",
    "http://10.0.0.1:8000 http://example.org http://0.0.0.0:80 https://127.0.0.1 http://127.0.0.1.example.org "
    "http://2130706433 http://[::ffff:10.0.0.1]:80 ftp://127.0.0.1 127.0.0.1:80 http://127.0.0.1:99999 http://".split(),
)
def test_no_other_host_is_ever_contacted(url: str, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a socket was made, or a name was looked up")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(OtherHostError, match="of this machine"):
        Client(url)
    monkeypatch.undo()


def test_the_process_refuses_another_host_in_one_line(picture: Path) -> None:
    argv = (sys.executable, "-P", "-m", "qalign_bench.server.load")
    spec = {"url": "http://example.org", "requests": [{"file": str(picture), "expected": [1.0]}]}
    with pytest.raises(QAlignError, match=r"load: http://example.org: not an http:// URL of this machine"):
        Contestant("load", argv, spec).start()


def test_connections_are_kept_and_bounded(picture: Path) -> None:
    with server() as seen:
        _, records = played(seen.url, ready(picture), lambda c, p: closed_loop(c, p, 3, most=60))
        assert (len(records), seen.connections) == (60, 3)
        told, records = played(seen.url, ready(picture), due(*[0.0] * 50), most=4)
    assert {record.status for record in records} == {200}
    assert told["most_open"] == 4
    assert seen.connections == 3 + 4
    assert Client(seen.url, most=10_000)._most == 256


def test_a_refusal_before_the_body_is_read_is_an_answer(tmp_path: Path) -> None:
    """The body is larger than all buffers. The server answers after the head, and closes with the rest unread."""
    large = tmp_path / "large.jpg"
    large.write_bytes(bytes(30_000_000))
    with server(lambda *_: http(b"{}", "429 Too Many Requests"), reads_bodies=False) as seen:
        _, records = played(seen.url, ready(large), due(0.0, 0.01, patience=20))
    assert [(record.status, record.error) for record in records] == [(429, None)] * 2


def test_nobody_there_is_no_answer(picture: Path) -> None:
    _, [record] = played(f"http://127.0.0.1:{free_port()}", ready(picture), due(0.0, patience=5))
    assert record.status is None
    assert "closed" in record.error


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1b\r\n" + GOOD + b"\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(GOOD) + GOOD,
    ],
)
def test_other_forms_of_an_answer(picture: Path, said: bytes) -> None:
    with server(lambda *_: said) as seen:
        _, records = played(seen.url, ready(picture), lambda c, p: closed_loop(c, p, 1, most=3))
    assert [(record.status, record.scores) for record in records] == [(200, (3.25,))] * 3
    assert seen.connections == (3 if b"close" in said else 1)


def test_clients_that_leave(picture: Path) -> None:
    with server() as seen:
        for leaves in ("half", "sent"):
            _, records = played(seen.url, ready(picture, leaves=leaves), due(0.0, 0.01))
            assert [record.error for record in records] == ["left", "left"]
            assert outcome(None, (), "left", {"expected": [1.0], "leaves": leaves}) == "left"
        end = time.monotonic() + 10
        while (len(seen.cut), len(seen.requests)) != (2, 2) and time.monotonic() < end:
            time.sleep(0.01)  # the server's threads hear of it later
    assert [size > 1000 for size in seen.cut] == [True, True]
    assert len(seen.requests) == 2


def test_requests_are_whole_and_differ_by_their_marks(picture: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.png"
    other.write_bytes(b"\x89PNG and so on")
    raw = prepare({"file": str(picture), "query": "task=all", "expected": []}, "here:80", marked=True)
    head, _, body = b"".join(raw.pieces(mark_of(7))).partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/score?task=all HTTP/1.1\r\nHost: here:80\r\n")
    assert body == picture.read_bytes() + b"0000000000000007"
    assert int(LENGTH.search(head)[1]) == len(body)
    plain = prepare({"file": str(picture), "expected": []}, "here", marked=False)
    assert b"".join(plain.pieces(b"")).endswith(b"\r\n\r\n" + picture.read_bytes())
    many = prepare({"file": [str(picture), str(other)], "form": "multipart", "expected": []}, "here", marked=True)
    head, _, body = b"".join(many.pieces(mark_of(8))).partition(b"\r\n\r\n")
    assert int(LENGTH.search(head)[1]) == len(body)
    message = email.message_from_bytes(head.partition(b"\r\n")[2] + b"\r\n\r\n" + body)
    parts = [(part.get_filename(), part.get_payload(decode=True)) for part in message.get_payload()]
    assert parts == [("picture.jpg", picture.read_bytes()), ("other.png", other.read_bytes() + mark_of(8))]


def test_a_steady_rate_leaves_out_how_it_began_and_ended() -> None:
    moments = [5.0, *(5.0 + 0.1 * i for i in range(1, 101)), 40.0]
    assert steady_rate(moments, 10, until=20.0) == pytest.approx(10.0)
    assert steady_rate([1.0], 4, 9.0) == steady_rate([], 4, 9.0) == 0.0


class Modelled:
    """A load process whose server answers at once up to a rate, and late beyond it."""

    def __init__(self, limit: float) -> None:
        self.limit = limit

    def ask(self, kind: str, **asked: Any) -> Mapping[str, Any]:
        late = 9.0 if asked.get("rate", 0) > self.limit else 0.001
        moments = np.linspace(0, asked.get("seconds") or 1, 50)
        return columns([Record(0, m, m, m + late, 200, (3.0,)) for m in moments])


def test_the_highest_rate_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_module, "BISECTIONS", 9)
    nobody: Any = Server("server", f"http://127.0.0.1:{free_port()}", None)
    requests = [{"file": "a", "expected": [3.0]}]
    told: list[str] = []
    load: Any = Modelled(37.0)
    played = Parts(load, [Target(nobody, load, requests)], requests, "quality", 1.0, 1, told.append, bound_ms=100.0)
    played.saturated["server"] = [50.0]
    played.highest()
    found = played.highest_rates["server"]
    assert found["per_second"] <= 37 < found["not_held_per_second"]
    assert found["not_held_per_second"] - found["per_second"] < 0.2
    assert len(told) == 9


def test_the_naive_server_scores_right_and_is_watched(tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no picture")
    files = [str(PICTURES / "chelsea_small.png"), str(bad)]
    with engine_contestant(str(EMBEDDED)).start() as engine:
        requests = expect(engine, [{"file": file} for file in files])
    assert [type(score) for request in requests for score in request["expected"]] == [float, type(None)]
    port = free_port()
    with started(NAIVE, naive_command(str(EMBEDDED), port), port) as naive, loaded(naive, requests) as target:
        answer = target.load.ask("closed", concurrency=2, count=6)
        usage = naive.usage()
    assert usage is not None
    assert min(asdict(usage).values()) > 0
    tally = Tally(requests, 1e6)
    tally.add(answer, 1.0)
    assert tally.outcomes == {"right": 6}
    assert tally.statuses == {"200": 3, "422": 3}
    off = [{**request, "expected": [score and score + 0.001 for score in request["expected"]]} for request in requests]
    wrong = Tally(off, 1e6)
    wrong.add(answer, 1.0)
    assert wrong.outcomes == {"wrong": 3, "right": 3}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("latency", "--rate", "5"), "is no option of latency; it is one of: server"),
        (("pixels", "--no-naive"), "is no option of pixels; it is one of: server"),
        (("server", "--server", "http://example.org"), "not an http:// URL of this machine"),
        (("server", "--task", "both"), "both is no task of server"),
        (("server", "--plot", "x.png"), "is no option of server"),
        (("server", "--engine", "onnx"), "is no option of server"),
    ],
)
def test_mistakes_are_one_line_and_no_traceback(arguments: tuple[str, ...], said: str) -> None:
    command = [sys.executable, "-m", "qalign_fast.cli", "bench", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr


def test_a_bench_of_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every part, once and short."""
    for name in ("PAIRS", "SATURATIONS", "BISECTIONS"):
        monkeypatch.setattr(parts_module, name, 1)
    monkeypatch.setattr(parts_module, "SHARES", (0.5,))
    files = tuple(str(path) for path in sorted(PICTURES.iterdir())[:3])
    command.bench(Options("server", repeat=1, seconds=2.0, files=files, work=tmp_path, bound_ms=60e3), form="json")
    found = json.loads(capsys.readouterr().out)
    assert found["wrong"] == 0
    assert found["servers"]["server"].startswith("python -P -m qalign_fast.cli serve mini --host 127.0.0.1 --port ")
    assert [(run["contestant"], run["load"].get("name")) for run in found["runs"][:4]] == [
        ("Scorer.score", None),
        ("feed", None),
        ("server", "1 client"),
        ("naive", "1 client"),
    ]
    for each in found["runs"]:
        assert set(REQUIRED) <= each.keys()
    for each in found["runs"][2:]:
        assert each["right"] == each["requests"] > 0
        assert each["extra_answers"] == 0
        assert each["cpu_s_per_picture"] > 0
        assert each["resident_bytes"] > 1e7
    assert set(found["saturated"]["ours_of"]) == {"naive", "naive, 1 client", "feed"}
    assert set(found["added_ms"]) == set(found["highest"]) == {"server", "naive"}
    assert any(line.startswith("server adds ") for line in server_tables.lines(found))
