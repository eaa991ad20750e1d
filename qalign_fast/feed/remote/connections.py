"""A request in, the answer out, over HTTP/1.1 connections that are kept and used again."""

from __future__ import annotations

import os
import ssl
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPMessage, HTTPResponse, HTTPSConnection
from typing import TYPE_CHECKING, Any
from weakref import finalize

if TYPE_CHECKING:
    from qalign_fast.feed.remote.address import Address

CONNECT_SECONDS, ANSWER_SECONDS = 10.0, 300.0
_MOST_KEPT = 32
_FRESH = 20.0  # seconds that an idle connection is used again; servers close them after 30, or more
_TOGETHER = 256 << 10  # bytes of head and body that are written at once
_MOST_ANSWER = 32 << 20  # bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered."""

    status: int
    reason: str
    headers: HTTPMessage
    body: bytes


class UnreachableError(Exception):
    """There is no connection; `__cause__` says why."""


class _OneWrite(HTTPConnection):
    """Keeps what a request has until `flush` writes it: http.client would write head and body one after the other."""

    _kept: tuple[Any, ...] = ()

    def send(self, data: Any) -> None:
        self._kept = (*self._kept, data)

    def flush(self) -> None:
        parts, self._kept = self._kept, ()
        if sum(memoryview(part).nbytes for part in parts) <= _TOGETHER:
            parts = (b"".join(parts),)
        for part in parts:
            super().send(part)


class _OneWriteTls(_OneWrite, HTTPSConnection):
    pass


class Connections:
    """Connections to one server. Each is used by one thread at a time; at most _MOST_KEPT wait idle for the next.

    Takes no lock: a deque's two ends are safe in threads, and a lock might be held by another thread in a fork.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self._idle: deque[tuple[float, _OneWrite]] = deque()  # when it was last used; the latest at the end
        self._process = os.getpid()
        self._context = ssl.create_default_context() if address.scheme == "https" else None
        finalize(self, _close_all, self._idle).atexit = False

    def ask(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Answer:
        """Sends a request and reads its answer. A kept connection that the server has closed is replaced once.

        Raises UnreachableError, OSError and HTTPException.
        """
        kept = self._take()
        if kept is not None:
            try:
                return self._ask(kept, method, path, body, headers)
            except TimeoutError:
                raise
            except OSError:  # http.client's RemoteDisconnected is one too
                pass
        return self._ask(self._connect(), method, path, body, headers)

    def close(self) -> None:
        """Closes what is idle. What is in use is closed later."""
        _close_all(self._idle)

    def _take(self) -> _OneWrite | None:
        if os.getpid() != self._process:  # a forked process must not speak on its parent's connections
            self._process = os.getpid()
            _close_all(self._idle)
        with suppress(IndexError):
            used, connection = self._idle.pop()
            if time.monotonic() - used < _FRESH:
                return connection
            connection.close()  # those before it are older
            _close_all(self._idle)
        return None

    def _connect(self) -> _OneWrite:
        host, port = self._address.host, self._address.port
        connection = (
            _OneWrite(host, port, timeout=CONNECT_SECONDS)
            if self._context is None
            else _OneWriteTls(host, port, timeout=CONNECT_SECONDS, context=self._context)
        )
        try:
            connection.connect()  # which sets TCP_NODELAY
        except OSError as error:
            connection.close()
            raise UnreachableError from error
        connection.sock.settimeout(ANSWER_SECONDS)
        return connection

    def _ask(
        self, connection: _OneWrite, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> Answer:
        try:
            connection.request(method, path, body, headers)
            whole = _flush(connection)
            response = connection.getresponse()
            answer = Answer(response.status, response.reason, response.headers, _read(response))
        except BaseException:
            connection.close()
            raise
        if whole and connection.sock is not None and response.isclosed():
            self._keep(connection)
        else:
            connection.close()
        return answer

    def _keep(self, connection: _OneWrite) -> None:
        self._idle.append((time.monotonic(), connection))
        if len(self._idle) > _MOST_KEPT:
            with suppress(IndexError):
                self._idle.popleft()[1].close()


def _flush(connection: _OneWrite) -> bool:
    """Whether all was sent. A server may refuse a request before it has come whole: then its answer says why."""
    try:
        connection.flush()
    except TimeoutError:
        raise
    except OSError:
        return False
    return True


def _read(response: HTTPResponse) -> bytes:
    """The whole body. Raises HTTPException for one that breaks off or is over the limit."""
    length = response.length  # None: in chunks, or to the connection's end
    body = b"" if (length or 0) > _MOST_ANSWER else response.read(_MOST_ANSWER + 1 if length is None else None)
    if max(length or 0, len(body)) > _MOST_ANSWER:
        raise HTTPException(f"an answer of more than {_MOST_ANSWER} bytes")
    return body


def _close_all(idle: deque[tuple[float, _OneWrite]]) -> None:
    with suppress(IndexError):
        while True:
            idle.pop()[1].close()
