"""One request on its way through the server: what it holds, how long it took, and what came of its pictures."""

from __future__ import annotations

import time
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.requests import Request

    from qalign_fast.serve.batcher import Answer

_KEY = "qalign.visit"


class ClientGone(Exception):  # noqa: N818 - nobody is told of it
    """The client has closed its connection: nobody waits for an answer."""


@dataclass
class Visit:
    """A request. `client` is whom it counts for: its API key, or else its address."""

    client: str
    started: float = field(default_factory=time.perf_counter)
    held: int = 0  # bytes of its body
    status: int = 0
    body_read: bool = False
    waited: float | None = None  # the longest of its pictures
    inference: float = 0.0
    ok: int = 0
    bad: int = 0

    def seconds(self) -> float:
        """Since it came."""
        return time.perf_counter() - self.started

    def count(self, answers: Iterable[Answer]) -> None:
        """Notes what came of its pictures."""
        for answer in answers:
            self.waited = max(self.waited or 0.0, answer.waited)
            self.inference = max(self.inference, answer.inference)
            self.ok += answer.scored.error is None
            self.bad += answer.scored.error is not None


def begin_visit(scope: MutableMapping[str, Any], client: str) -> Visit:
    """A visit for a request that has just come."""
    scope[_KEY] = visit = Visit(client)
    return visit


def visit_of(request: Request) -> Visit:
    """The visit of a request."""
    visit: Visit = request.scope[_KEY]
    return visit
