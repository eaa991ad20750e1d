"""The bytes that a server sent in, an `Answer` out: its status, its scores and what its headers say of times."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)")
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked")
_CLOSES = re.compile(rb"\r\nconnection: *close")
_TIME = {name: re.compile(rf"\r\nx-{name}-time: *([\d.]+)".encode()) for name in ("queue", "inference")}
_SCORE = re.compile(rb'"score": *(null|[-+.\deE]+)')
_LAST_CHUNK = b"0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer. Times are in ms, where the server tells them."""

    status: int
    scores: tuple[float | None, ...]
    queue_ms: float | None
    inference_ms: float | None
    closes: bool  # the connection serves no further request


def take_answer(received: bytearray, *, ended: bool) -> Answer | None:
    """Takes a whole answer off the front of what was received; None where it is not all there.

    `ended`: the server sends nothing more. Raises ValueError for what is no HTTP answer.
    """
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = bytes(received[: end + 2])
    if not head.startswith(b"HTTP/1."):
        raise ValueError(f"no HTTP answer: {head[:40]!r}")
    lower = head.lower()
    size = _body_size(lower, received, end + 4, ended)
    if size is None or len(received) < end + 4 + size:
        return None
    scores = _SCORE.findall(received, end + 4, end + 4 + size)
    del received[: end + 4 + size]
    values = tuple(None if text == b"null" else float(text) for text in scores)
    queue, inference = (_number(lower, name) for name in _TIME)
    return Answer(int(head[9:12]), values, queue, inference, ended or bool(_CLOSES.search(lower)))


def _body_size(head: bytes, received: bytearray, start: int, ended: bool) -> int | None:
    """The bytes of the body; None where its end has not come."""
    if found := _LENGTH.search(head):
        return int(found[1])
    if _CHUNKED.search(head):
        last = received.find(_LAST_CHUNK, start)
        return None if last < 0 else last + len(_LAST_CHUNK) - start
    return len(received) - start if ended else None


def _number(head: bytes, name: str) -> float | None:
    found = _TIME[name].search(head)
    return float(found[1]) if found else None
