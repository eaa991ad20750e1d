"""Single requests to the application, whose engine a test holds: clients that go, rows as they are ready, our faults.

There is no server here: the messages between one and the application are the tests' own.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import structlog

from qalign_fast.errors import ImageError
from qalign_fast.serve import logs, routes
from qalign_fast.serve.app import make_app
from qalign_fast.serve.batcher import Batcher
from qalign_fast.serve.served import Served
from qalign_fast.serve.service import Service
from qalign_fast.serve.settings import Settings
from support.held_scorer import FACTS, Gate, HeldScorer, count_of, on_loop, score_for, until

GONE = {"type": "http.disconnect"}


def part(body: bytes = b"", more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


@dataclass
class Visitor:
    """A client's side of one request: what it sends, what it got, and when it goes."""

    app: Any
    path: str = "/v1/score"
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=dict)
    query: str = ""
    sent: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)
    got: list[dict[str, Any]] = field(default_factory=list)
    came: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    prefix: str = ""

    def start(self, *messages: dict[str, Any]) -> Visitor:
        for message in messages:
            self.sent.put_nowait(message)
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": self.method,
            "scheme": "http",
            "path": self.prefix + self.path,
            "raw_path": (self.prefix + self.path).encode(),
            "root_path": self.prefix,
            "query_string": self.query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in self.headers.items()],
            "client": ("192.0.2.1", 4000),
            "server": ("127.0.0.1", 80),
            "state": {},
        }
        self.task = asyncio.get_running_loop().create_task(self.app(scope, self.sent.get, self._send))
        return self

    def go(self) -> None:
        self.sent.put_nowait(GONE)

    async def end(self) -> None:
        assert self.task
        await self.task

    @property
    def status(self) -> int | None:
        return self.got[0]["status"] if self.got else None

    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.got[1:])

    def json(self) -> Any:
        return json.loads(self.body())

    async def lines(self, count: int) -> list[Any]:
        """The first rows, when they have come."""
        while self.body().count(b"\n") < count:
            self.came.clear()
            await self.came.wait()
        return [json.loads(line) for line in self.body().splitlines()]

    async def _send(self, message: dict[str, Any]) -> None:
        await asyncio.sleep(0)
        self.got.append(message)
        self.came.set()


@dataclass
class Running:
    """An application with one model, whose engine is held."""

    app: Any
    service: Service
    scorer: HeldScorer
    batcher: Batcher

    def visit(self, *messages: dict[str, Any], **more: Any) -> Visitor:
        return Visitor(self.app, **more).start(*messages)

    def visit_many(self, *data: bytes, **more: Any) -> Visitor:
        images = [{"b64": base64.b64encode(each).decode(), "source": each.decode()} for each in data]
        more["headers"] = {"content-type": "application/json"} | more.get("headers", {})
        return self.visit(part(json.dumps({"images": images}).encode()), **more)

    def counts(self) -> tuple[float, ...]:
        """What is under way: of all kinds, 0 when nobody is there."""
        metrics = self.service.metrics
        return (
            self.batcher.pending,
            self.service.visits,
            self.service.bodies.held,
            count_of(metrics, "qalign_queue_size"),
            count_of(metrics, "qalign_inflight"),
        )


@asynccontextmanager
async def running(**settings: Any) -> Any:
    service = Service(Settings(**settings))
    scorer = HeldScorer()
    batcher = Batcher(scorer, service.settings, service.metrics.of_model("mini", FACTS))  # type: ignore[arg-type]
    service.models["mini"] = Served("mini", scorer, batcher, {})  # type: ignore[arg-type]
    try:
        yield Running(make_app(service.settings, service=service), service, scorer, batcher)
    finally:
        scorer.reading.open()
        scorer.scoring.open()
        batcher.close()


@contextmanager
def written_log() -> Iterator[io.StringIO]:
    """The log as the server writes it."""
    logs.configure("info")
    log = io.StringIO()
    to_log = {"logger_factory": structlog.WriteLoggerFactory(log), "cache_logger_on_first_use": False}
    structlog.configure(**{**structlog.get_config(), **to_log})
    try:
        yield log
    finally:
        structlog.reset_defaults()


ROWS = {"accept": "application/x-ndjson"}


@on_loop
@pytest.mark.parametrize("prefix", ["", "/scores"])
async def test_below_a_prefix_the_same_routes_ask_for_a_key(prefix: str) -> None:
    async with running(api_keys=("sesame",)) as server:
        found = {}
        for path in ("/health", "/metrics", "/", "/page/style.css", "/v1/models"):
            visitor = server.visit(part(), method="GET", path=path, prefix=prefix)
            await visitor.end()
            found[path] = visitor.status
        assert found == {"/health": 200, "/metrics": 200, "/": 200, "/page/style.css": 200, "/v1/models": 401}


# clients that go


@on_loop
async def test_a_client_that_goes_while_its_picture_is_computed() -> None:
    async with running() as server:
        server.scorer.scoring.hold()
        visitor = server.visit(part(b"a"))
        await server.scorer.scoring.next()
        waiting = server.visit_many(b"b", b"c")
        await until(lambda: server.batcher.pending == 3)
        visitor.go()
        waiting.go()
        await visitor.end()
        await waiting.end()
        assert server.batcher.pending == 1  # the engine is still at it
        server.scorer.scoring.open()
        await until(lambda: server.counts() == (0, 0, 0, 0, 0))
        assert server.scorer.names() == ["body"]
        codes = server.service.metrics.text().decode()
        assert 'qalign_requests_total{code="499",endpoint="/v1/score"} 2.0' in codes


@on_loop
async def test_a_client_that_goes_with_its_body_half_sent() -> None:
    async with running() as server:
        visitor = server.visit(part(b"half of a picture", more=True))
        await until(lambda: server.service.bodies.held == 17)
        visitor.go()
        await visitor.end()
        assert server.counts() == (0, 0, 0, 0, 0)
        assert server.scorer.reading.all() == []


@on_loop
async def test_a_client_that_is_gone_when_its_answer_is_ready() -> None:
    async with running() as server:
        server.scorer.scoring.hold()
        visitor = server.visit(part(b"a"))
        await server.scorer.scoring.next()
        server.scorer.scoring.open()
        await until(lambda: server.batcher.pending == 0)
        visitor.go()
        await visitor.end()
        assert server.counts() == (0, 0, 0, 0, 0)


@on_loop
async def test_a_client_that_is_gone_before_its_first_row() -> None:
    async with running() as server:
        server.scorer.reading.hold()
        images = json.dumps({"images": ["YQ==", "Yg=="]}).encode()
        visitor = server.visit(part(images), GONE, headers={"content-type": "application/json", **ROWS})
        await visitor.end()
        assert server.counts() == (0, 0, 0, 0, 0)


@on_loop
async def test_a_client_that_goes_between_two_rows() -> None:
    async with running(max_batch=1) as server:
        server.scorer.scoring.hold()
        visitor = server.visit_many(b"a", b"b", b"c", b"d", headers=ROWS)
        server.scorer.scoring.let()
        await visitor.lines(1)
        visitor.go()
        await visitor.end()
        assert server.batcher.pending <= 1
        server.scorer.scoring.open()
        await until(lambda: server.counts() == (0, 0, 0, 0, 0))
        assert len(server.scorer.names()) <= 2


@on_loop
async def test_of_two_clients_with_the_same_picture_one_goes() -> None:
    async with running() as server:
        server.scorer.reading.hold()
        one, other = server.visit(part(b"same")), server.visit(part(b"same"), query="source=other")
        await until(lambda: server.service.visits == 2 and server.batcher.pending == 1)
        one.go()
        await one.end()
        server.scorer.reading.open()
        await other.end()
        assert other.json()["rows"][0]["source"] == "other"
        assert other.json()["rows"][0]["score"] == round(score_for(b"same").value, 4)
        assert server.counts() == (0, 0, 0, 0, 0)


# rows as they are ready


@on_loop
async def test_rows_come_in_order_and_before_the_last_is_computed() -> None:
    async with running(max_batch=1) as server:
        server.scorer.scoring.hold()
        data = [b"a", b"bad", b"c"]
        visitor = server.visit_many(*data, headers=ROWS, query="task=all")
        assert await server.scorer.scoring.next() == ["a"]
        server.scorer.scoring.let()
        rows = await visitor.lines(4)
        assert [(row["source"], row["task"]) for row in rows] == [
            ("a", "quality"),
            ("a", "aesthetics"),
            ("bad", "quality"),
            ("bad", "aesthetics"),
        ]
        assert rows[0]["score"] == round(score_for(b"a").value, 4)
        assert rows[2]["error_type"] == "ImageError"
        assert await server.scorer.scoring.next() == ["c"]
        assert server.batcher.pending == 1
        server.scorer.scoring.let()
        await visitor.end()
        assert [row["source"] for row in await visitor.lines(6)][4:] == ["c", "c"]
        assert server.counts() == (0, 0, 0, 0, 0)


@on_loop
async def test_rows_that_come_too_late_say_so_and_the_others_are_there() -> None:
    async with running(max_batch=1) as server:
        server.scorer.scoring.hold()
        headers = {**ROWS, "x-request-timeout": "0.05"}
        visitor = server.visit_many(b"a", b"b", b"c", headers=headers)
        await server.scorer.scoring.next()
        await until(lambda: server.batcher.pending == 1)
        server.scorer.scoring.open()
        await visitor.end()
        rows = await visitor.lines(3)
        assert [row["error_type"] if row["error"] else None for row in rows] == [None, "Late", "Late"]
        assert visitor.status == 200


@on_loop
async def test_a_late_picture_makes_a_request_late_and_the_rest_of_it_is_dropped() -> None:
    async with running(max_batch=1) as server:
        server.scorer.scoring.hold()
        visitor = server.visit_many(b"a", b"b", headers={"x-request-timeout": "0.05"})
        await server.scorer.scoring.next()
        await visitor.end()
        assert visitor.status == 503
        assert visitor.json()["error_type"] == "Unhealthy"
        assert dict(visitor.got[0]["headers"])[b"retry-after"]
        server.scorer.scoring.open()
        await until(lambda: server.counts() == (0, 0, 0, 0, 0))


# pictures by URL


class Hosts:
    """In place of the network: each URL's file, which is held, or the error that its name says."""

    def __init__(self) -> None:
        self.gate = Gate()

    def fetch(self, url: str) -> bytes:
        self.gate.go_through(url)
        name = url.rpartition("/")[2]
        if name == "broken":
            raise ValueError("no\nway")
        if name == "missing":
            raise ImageError(f"{url}: not there")
        return bytes(10_000) if name == "large" else name.encode()


def with_hosts(server: Running) -> Hosts:
    hosts = Hosts()
    server.service.guard = hosts  # type: ignore[assignment]
    return hosts


def visit_urls(server: Running, *files: str, field: str = "images", **more: Any) -> Visitor:
    content = {field: [{"url": f"http://host/{name}", "source": f"{i} {name}"} for i, name in enumerate(files)]}
    more["headers"] = {"content-type": "application/json"} | more.get("headers", {})
    return server.visit(part(json.dumps(content).encode()), **more)


@on_loop
async def test_a_slow_host_keeps_nobody_elses_picture_waiting() -> None:
    async with running() as server:
        hosts = with_hosts(server)
        hosts.gate.hold()
        slow = visit_urls(server, *(f"file{i}" for i in range(40)))
        await hosts.gate.next()
        other = server.visit(part(b"a"))
        await other.end()
        assert other.status == 200
        assert server.batcher.pending == 0
        hosts.gate.open()
        await slow.end()
        expected = [round(score_for(f"file{i}".encode()).value, 4) for i in range(40)]
        assert [row["score"] for row in slow.json()["rows"]] == expected
        assert server.counts() == (0, 0, 0, 0, 0)


@on_loop
async def test_what_cannot_be_fetched_is_that_pictures_error() -> None:
    async with running(cache=10) as server:
        with_hosts(server)
        visitor = visit_urls(server, "a", "missing", "broken", "bad", "a")
        await visitor.end()
        rows = visitor.json()["rows"]
        assert [row["error"] for row in rows] == [
            None,
            "http://host/missing: not there",
            "2 broken: cannot be fetched (ValueError: no)",
            "3 bad: not a picture",
            None,
        ]
        assert [row.get("error_type") for row in rows] == [None, "ImageError", "InternalError", "ImageError", None]
        assert server.scorer.names() in (["0 a"], ["0 a", "4 a"])
        assert server.counts() == (0, 0, 0, 0, 0)


@on_loop
async def test_frames_by_url_are_fetched_too() -> None:
    async with running() as server:
        hosts = with_hosts(server)
        visitor = visit_urls(server, "a", "missing", field="frames", path="/v1/score/video")
        await visitor.end()
        assert (visitor.status, visitor.json()["error"]) == (422, "http://host/missing: not there")
        assert sorted(hosts.gate.all()) == ["http://host/a", "http://host/missing"]


@on_loop
async def test_a_url_that_takes_too_long_is_late() -> None:
    async with running() as server:
        hosts = with_hosts(server)
        hosts.gate.hold()
        visitor = visit_urls(server, "a", "b", headers={"x-request-timeout": "0.05"})
        await visitor.end()
        assert visitor.status == 503
        assert dict(visitor.got[0]["headers"])[b"retry-after"]
        hosts.gate.open()
        await until(lambda: len(hosts.gate.all()) == 0)
        assert server.counts() == (0, 0, 0, 0, 0)


@on_loop
async def test_urls_that_are_fetched_are_bounded_in_number_and_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(queue=3) as server:
        hosts = with_hosts(server)
        hosts.gate.hold()
        first = visit_urls(server, "a", "b")
        await hosts.gate.next()
        over = visit_urls(server, "c", "d")
        await over.end()
        assert over.status == 429
        hosts.gate.open()
        await first.end()
        assert first.status == 200
        monkeypatch.setattr(server.service.bodies, "_most_held", 1000)
        large = visit_urls(server, "large")
        await large.end()
        assert "large" in hosts.gate.all()[-1]
        assert large.status == 429
        assert server.counts() == (0, 0, 0, 0, 0)


# what is refused


@on_loop
async def test_a_body_is_not_read_where_there_is_no_room() -> None:
    async with running(queue=1) as server:
        server.scorer.scoring.hold()
        first = server.visit(part(b"a"))
        await server.scorer.scoring.next()
        refused = server.visit(headers={"content-length": str(20 << 20)})
        await refused.end()  # it has sent nothing of its body
        assert refused.status == 429
        assert int(dict(refused.got[0]["headers"])[b"retry-after"]) >= 1
        server.scorer.scoring.open()
        await first.end()
        assert first.status == 200


@on_loop
async def test_the_bodies_of_all_requests_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running() as server:
        monkeypatch.setattr(server.service.bodies, "_most_held", 100)
        one = server.visit(part(b"x" * 60, more=True))
        await until(lambda: server.service.bodies.held == 60)
        other = server.visit(part(b"y" * 60, more=True), part(b"y"))
        await other.end()
        assert other.status == 429
        one.sent.put_nowait(part(b"x" * 20))
        await one.end()
        assert one.status == 200
        assert server.counts() == (0, 0, 0, 0, 0)


@on_loop
async def test_a_body_that_comes_too_slowly_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qalign_fast.serve.bodies.PATIENCE", 0.05)
    async with running() as server:
        visitor = server.visit(part(b"x", more=True), headers={"content-length": "100"})
        await visitor.end()
        assert visitor.status == 408
        assert server.counts() == (0, 0, 0, 0, 0)


@on_loop
@pytest.mark.parametrize("state", ["draining", "loading"])
async def test_before_it_is_loaded_and_when_it_stops_it_is_not_ready(state: str) -> None:
    async with running() as server:
        if state == "draining":
            server.service.draining = True
        else:
            server.service.models.clear()
        for path in ("/health", "/ping", "/v2/health/ready", "/v1/models"):
            visitor = server.visit(part(), path=path, method="GET")
            await visitor.end()
            assert (visitor.status, visitor.json()["error_type"]) == (503, "Unhealthy")
            assert dict(visitor.got[0]["headers"])[b"retry-after"]
        scored = server.visit(part(b"a"))
        await scored.end()
        assert scored.status == 503
        alive = server.visit(part(), path="/v2/health/live", method="GET")
        await alive.end()
        assert alive.status == 200


@on_loop
async def test_draining_waits_for_what_is_under_way_and_no_longer_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qalign_fast.serve.service._LINGER", 0.0)
    async with running(grace=0.2) as server:
        server.scorer.scoring.hold()
        visitor = server.visit(part(b"a"))
        await server.scorer.scoring.next()
        draining = asyncio.create_task(server.service.drain())
        await until(lambda: server.service.draining)
        server.scorer.scoring.open()
        await draining
        assert server.service.visits == 0
        await visitor.end()
        assert visitor.status == 200
        server.service.draining = False
        server.scorer.scoring.hold()
        stuck = server.visit(part(b"b"))
        await server.scorer.scoring.next()
        await server.service.drain()
        assert server.service.visits == 1
        stuck.go()
        await stuck.end()


# faults of ours


@on_loop
async def test_a_fault_of_ours_is_told_in_json_and_its_log_has_no_key_and_no_picture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object) -> Any:
        secret = "local of a frame"
        raise ZeroDivisionError("not divided " + str(len(secret)))

    monkeypatch.setattr(routes, "_common", broken)
    async with running(api_keys=("topsecretkey",)) as server:
        visitor = server.visit(part(b"PICTUREBYTES"), headers={"authorization": "Bearer topsecretkey"})
        with written_log() as log:
            await visitor.end()
        assert visitor.status == 500
        assert visitor.json() == {"error": "internal error", "error_type": "Backend"}
        assert b"x-request-id" in dict(visitor.got[0]["headers"])
        assert server.counts() == (0, 0, 0, 0, 0)
    written = log.getvalue()
    assert "ZeroDivisionError" in written
    assert "test_requests.py" in written  # where it was
    for secret in ("topsecretkey", "PICTUREBYTES", "local of a frame", "authorization"):
        assert secret not in written
    assert [json.loads(line)["level"] for line in written.splitlines()] == ["error", "info"]
