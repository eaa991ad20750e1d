"""Requests in, a `Record` of each out: one thread, non-blocking sockets, at most 256 of them, to this machine alone."""

from __future__ import annotations

import ipaddress
import select
import selectors
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from qalign_bench.server.connection import Connection, ConnectionEndedError
from qalign_bench.server.requests import Prepared, mark_of
from qalign_fast.errors import QAlignError

MOST_CONNECTIONS = 256


class OtherHostError(QAlignError):
    """A URL that does not lead to this machine. The load is for servers of our own."""


@dataclass(slots=True)
class Record:
    """What became of one request. Moments are seconds since the run began; `request` is which of the prepared ones."""

    request: int
    scheduled: float
    sent: float | None = None  # its first byte
    finished: float | None = None  # the last byte of its answer, or the moment of its failure
    status: int | None = None
    scores: tuple[float | None, ...] = ()
    queue_ms: float | None = None
    inference_ms: float | None = None
    error: str | None = None


def address_of(url: str) -> tuple[str, int]:
    """The numbers of a loopback URL. Raises OtherHostError for any other host, before anything is connected."""
    parts = urlsplit(url)
    try:
        name = "127.0.0.1" if parts.hostname == "localhost" else parts.hostname or ""
        here, port = ipaddress.ip_address(name).is_loopback, parts.port or 80
    except ValueError:
        here, port = False, 0
    if not here or parts.scheme != "http":
        raise OtherHostError(f"{url}: not an http:// URL of this machine (127.0.0.1, [::1] or localhost)")
    return name, port


class Client:
    """Sends requests and hears the answers. A request waits where all connections are busy; its time goes on."""

    def __init__(self, url: str, *, most: int = MOST_CONNECTIONS, marked: bool = True) -> None:
        self._address = address_of(url)
        self._most, self._marked = min(most, MOST_CONNECTIONS), marked
        self._began = time.perf_counter()
        self._waiting: deque[tuple[Record, Prepared]] = deque()
        self._under_way: dict[Connection, Record] = {}
        self._idle: list[Connection] = []
        self._selector = selectors.DefaultSelector()
        self._number = time.time_ns() % 10**12 * 1000  # two runs have no mark in common
        self.on_done: Callable[[Record], None] = lambda record: None
        self.extra_answers = 0
        self.most_open = 0

    def now(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self._began

    @property
    def outstanding(self) -> int:
        """The requests that have no answer yet."""
        return len(self._waiting) + len(self._under_way)

    def submit(self, record: Record, prepared: Prepared) -> None:
        """Sends a request as soon as a connection is free."""
        self._waiting.append((record, prepared))
        self._send()

    def poll(self, until: float) -> None:
        """Works on what has arrived; waits for it until that moment at most."""
        # a selector of its own waits in whole ms; `select` over it waits as long as it is told
        select.select([self._selector], [], [], max(0.0, until - self.now()))
        for key, events in self._selector.select(0):
            connection: Connection = key.data
            if events & selectors.EVENT_WRITE:
                connection.write()
            if events & selectors.EVENT_READ or not connection.sending:
                self._read(connection)
            else:
                self._listen(connection)
        self._send()

    def close(self, why: str = "no answer in time") -> None:
        """Closes all connections. What has no answer by now has failed."""
        for record in [record for record, _ in self._waiting] + list(self._under_way.values()):
            record.finished, record.error = self.now(), why
        for connection in [*self._under_way, *self._idle]:
            self._drop(connection)
        self._waiting.clear()
        self._under_way.clear()
        self._idle.clear()
        self._selector.close()

    def _send(self) -> None:
        while self._waiting and (connection := self._free()):
            record, prepared = self._waiting.popleft()
            self._number += 1
            record.sent = self.now()
            self._under_way[connection] = record
            connection.begin(prepared, mark_of(self._number) if self._marked else b"")
            self._listen(connection)

    def _free(self) -> Connection | None:
        """A connection for the next request; None where so many are open that no other may be."""
        if self._idle:
            return self._idle.pop()
        if len(self._under_way) >= self._most:
            return None
        connection = Connection(self._address)
        self._selector.register(connection.socket, selectors.EVENT_READ, connection)
        self.most_open = max(self.most_open, len(self._under_way) + 1)
        return connection

    def _listen(self, connection: Connection) -> None:
        """Waits for what the connection needs next; ends it where its client goes away now."""
        if connection.leaves and not connection.sending and connection in self._under_way:
            self._finish(connection, error="left")
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.sending else 0)
        if self._selector.get_key(connection.socket).events != events:
            self._selector.modify(connection.socket, events, connection)

    def _read(self, connection: Connection) -> None:
        try:
            answer = connection.read()
        except ConnectionEndedError as error:
            self._finish(connection, error=str(error))
            return
        if answer is None:
            self._listen(connection)
            return
        record = self._under_way.pop(connection)
        record.finished, record.status, record.scores = self.now(), answer.status, answer.scores
        record.queue_ms, record.inference_ms = answer.queue_ms, answer.inference_ms
        if answer.closes or connection.sending:  # an early answer: the rest of the request is nobody's
            self._drop(connection)
        else:
            self._idle.append(connection)
            self._listen(connection)
        self.on_done(record)

    def _finish(self, connection: Connection, error: str) -> None:
        """The end of a connection: its request, if it has one, fails."""
        record = self._under_way.pop(connection, None)
        if connection in self._idle:
            self._idle.remove(connection)
        self._drop(connection)
        if record:
            record.finished, record.error = self.now(), error
            self.on_done(record)

    def _drop(self, connection: Connection) -> None:
        self.extra_answers += connection.extra
        self._selector.unregister(connection.socket)
        connection.close()
