"""A request of granian's own interface is the request of ASGI that it should be; granian itself is played here."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest
from granian.rsgi import ProtocolClosed  # type: ignore[attr-defined]

from qalign_fast.serve.rsgi import Rsgi

LARGE = 1 << 20  # bytes of a body that comes in pieces


class Protocol:
    """granian's side: `pieces` as it gives them, None where the connection breaks."""

    def __init__(self, pieces: Iterable[bytes | None]) -> None:
        self.pieces = list(pieces)
        self.answered: tuple[Any, ...] = ()
        self.sent: list[bytes] = []

    async def __call__(self) -> bytes:
        if None in self.pieces:
            raise ProtocolClosed
        return b"".join(piece for piece in self.pieces if piece)

    def __aiter__(self) -> Protocol:
        return self

    async def __anext__(self) -> bytes:
        if not self.pieces:
            raise StopAsyncIteration
        piece = self.pieces.pop(0)
        if piece is None:
            raise ProtocolClosed
        return piece

    async def client_disconnect(self) -> None:
        pass

    def response_bytes(self, *answer: Any) -> None:
        self.answered = answer

    def response_stream(self, *answer: Any) -> Any:
        self.answered = answer

        async def send_bytes(data: bytes) -> None:
            self.sent.append(data)

        return SimpleNamespace(send_bytes=send_bytes)


def play(app: Any, pieces: Iterable[bytes | None] = (), headers: Iterable[tuple[str, str]] = ()) -> Protocol:
    scope = SimpleNamespace(
        http_version="1.1",
        method="POST",
        scheme="http",
        path="/a b",
        query_string="x=%C3%A9",
        client="[::1]:4000",
        server="127.0.0.1:80",
        headers=SimpleNamespace(items=lambda: list(headers)),
    )
    protocol = Protocol(pieces)
    app.router = SimpleNamespace(lifespan_context=lambda _: None)
    asyncio.run(Rsgi(app).__rsgi__(scope, protocol))  # type: ignore[arg-type]
    return protocol


def received(pieces: Iterable[bytes | None], **headers: str) -> list[bytes | None]:
    """The body as the application gets it, None for a client that is gone."""
    found: list[bytes | None] = []

    async def app(_: Any, receive: Any, __: Any) -> None:
        while True:
            message = await receive()
            found.append(message["body"] if message["type"] == "http.request" else None)
            if not message.get("more_body"):
                return

    play(app, pieces, [(name.replace("_", "-"), value) for name, value in headers.items()])
    return found


@pytest.mark.parametrize("length", [None, "0", "x"])
def test_without_a_body_there_is_an_empty_one(length: str | None) -> None:
    assert received([], **({} if length is None else {"content_length": length})) == [b""]


def test_a_small_body_comes_whole() -> None:
    assert received([b"ab", b"c"], content_length="3") == [b"abc"]
    assert received([b"ab", None], content_length="3") == [None]


def test_a_large_body_comes_in_pieces_and_ends_with_its_last_byte() -> None:
    half = bytes(LARGE // 2)
    assert received([half, half], content_length=str(LARGE)) == [half, half]
    assert received([half, b"", b""], content_length=str(LARGE)) == [half, None]
    assert received([half, None], content_length=str(LARGE)) == [half, None]


def test_a_body_of_unknown_length_breaks_off_where_granian_ends_it_twice() -> None:
    assert received([b"ab", b"c", b""], transfer_encoding="chunked") == [b"ab", b"c", b""]
    assert received([b"ab", b"c"], transfer_encoding="chunked") == [b"ab", b"c", b""]
    assert received([b"ab", b"", b""], transfer_encoding="chunked") == [b"ab", None]


def test_after_the_body_comes_the_end_of_the_connection() -> None:
    seen: list[str] = []

    async def app(_: Any, receive: Any, __: Any) -> None:
        seen.extend([(await receive())["type"] for _ in range(3)])

    play(app)
    assert seen == ["http.request", "http.disconnect", "http.disconnect"]


def test_the_scope_is_that_of_asgi() -> None:
    seen: list[Any] = []

    async def app(scope: Any, _: Any, __: Any) -> None:
        seen.append(scope)

    play(app, headers=[("x-a", "1"), ("x-a", "2")])
    (scope,) = seen
    assert (scope["path"], scope["raw_path"], scope["query_string"]) == ("/a b", b"/a b", b"x=%C3%A9")
    assert (scope["client"], scope["server"]) == (("::1", 4000), ("127.0.0.1", 80))
    assert scope["headers"] == [(b"x-a", b"1"), (b"x-a", b"2")]


@pytest.mark.parametrize("parts", [[b"one"], [b"one", b"two"], [b"one", b""]])
def test_an_answer_goes_whole_or_as_a_stream(parts: list[bytes]) -> None:
    async def app(_: Any, __: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 201, "headers": [(b"x-a", b"\xe9")]})
        for i, part in enumerate(parts):
            await send({"type": "http.response.body", "body": part, "more_body": i + 1 < len(parts)})

    protocol = play(app)
    assert protocol.answered == (201, [("x-a", "é")], *([b"one"] if len(parts) == 1 else []))
    assert protocol.sent == ([] if len(parts) == 1 else [part for part in parts if part])


def test_an_answer_for_nobody_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async def app(_: Any, __: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one"})

    def closed(*_: Any) -> None:
        raise ProtocolClosed

    monkeypatch.setattr(Protocol, "response_bytes", closed)
    play(app)
