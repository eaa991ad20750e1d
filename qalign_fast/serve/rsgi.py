"""Our ASGI application on granian's own interface, RSGI, in which a small body comes in one piece.

In granian's ASGI every piece of a body goes through three threads. Under a flood, in which most requests are refused,
that is most of what the server does: a refusal then takes twice as long.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from granian.rsgi import ProtocolClosed  # type: ignore[attr-defined]

from qalign_fast.serve.bodies import PATIENCE, SLOWEST

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from granian.rsgi import HTTPProtocol, Scope  # type: ignore[attr-defined]
    from starlette.applications import Starlette
    from starlette.types import Message

_WHOLE = round(PATIENCE * SLOWEST)  # bytes of a body that may come as slowly as that without a look at it
_GONE = {"type": "http.disconnect"}
_BROKEN = 2  # empty pieces at the end of a body that breaks off; a whole one has one at most


class Rsgi:
    """What granian calls: the application's lifespan and its requests."""

    def __init__(self, app: Starlette) -> None:
        self._app, self._lifespan = app, app.router.lifespan_context(app)

    def __rsgi_init__(self, loop: AbstractEventLoop) -> None:
        loop.run_until_complete(self._lifespan.__aenter__())

    def __rsgi_del__(self, loop: AbstractEventLoop) -> None:
        loop.run_until_complete(self._lifespan.__aexit__(None, None, None))

    async def __rsgi__(self, scope: Scope, protocol: HTTPProtocol) -> None:
        headers = scope.headers.items()
        exchange = _Exchange(dict(headers), protocol)
        await self._app(_asgi_scope(scope, headers), exchange.receive, exchange.send)


class _Exchange:
    """ASGI's `receive` and `send` of one request."""

    def __init__(self, headers: dict[str, str], protocol: HTTPProtocol) -> None:
        length = headers.get("content-length", "")
        self._length = int(length) if length.isdecimal() else None  # None: it is not told
        self._protocol = protocol
        self._size = 0
        self._start: Message = {}
        self._stream: Any = None
        if not self._length and "transfer-encoding" not in headers:
            self._next = _Exchange._no_body
        elif self._length is not None and self._length <= _WHOLE:
            self._next = _Exchange._whole_body
        else:
            self._pieces = aiter(protocol)
            self._next = _Exchange._piece

    async def receive(self) -> Message:
        """The next piece of the body; after the last one, the end of the connection."""
        try:
            return await self._next(self)
        except ProtocolClosed:
            return _GONE

    async def send(self, message: Message) -> None:
        """Nobody is told where the client is gone: `receive` says so."""
        if message["type"] == "http.response.start":
            self._start = message
            return
        with suppress(ProtocolClosed):
            await self._answer(message.get("body", b""), message.get("more_body", False))

    async def _answer(self, body: bytes, more: bool) -> None:
        if self._stream is None:
            status = self._start["status"]
            headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in self._start["headers"]]
            if not more:
                self._protocol.response_bytes(status, headers, body)
                return
            self._stream = self._protocol.response_stream(status, headers)
        if body:
            await self._stream.send_bytes(body)
        if not more:
            self._stream = None  # it ends when it is gone

    async def _no_body(self) -> Message:
        self._next = _Exchange._end
        return _piece(b"")

    async def _whole_body(self) -> Message:
        self._next = _Exchange._end
        return _piece(await self._protocol())

    async def _piece(self) -> Message:
        empty = 0
        while True:
            try:
                piece = await self._pieces.__anext__()  # CPython 3.11 crashes in `anext` with a default
            except StopAsyncIteration:
                self._next = _Exchange._end
                return _piece(b"") if self._length is None and empty < _BROKEN else _GONE
            self._size += len(piece)
            if self._size == self._length:
                self._next = _Exchange._end
            if piece:
                return _piece(piece, more=self._next != _Exchange._end)
            empty += 1

    async def _end(self) -> Message:
        await self._protocol.client_disconnect()
        return _GONE


def _piece(body: bytes, *, more: bool = False) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


def _asgi_scope(scope: Scope, headers: list[tuple[str, str]]) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": scope.http_version,
        "method": scope.method,
        "scheme": scope.scheme,
        "path": scope.path,
        "raw_path": scope.path.encode(),
        "query_string": scope.query_string.encode(),
        "root_path": "",
        "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers],
        "client": _address(scope.client),
        "server": _address(scope.server),
        "state": {},
    }


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)
