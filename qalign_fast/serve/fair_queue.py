"""Work of many clients in, the next piece out: the client that had the least goes first, its requests take turns.

Start-time fair queueing (Goyal, Vin, Cheng 1996): a client's clock runs on by the cost of each piece that it is given.
A client that was away starts at the clock of the one that was served last, so that nobody saves up turns.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import Generic, TypeVar

Piece = TypeVar("Piece")


class _Client(Generic[Piece]):
    def __init__(self, clock: float) -> None:
        self.clock = clock
        self.requests: dict[int, deque[tuple[Piece, float]]] = {}  # by the request's number; the first is next


class FairQueue(Generic[Piece]):
    """Not for several threads at a time."""

    def __init__(self) -> None:
        self._clients: dict[str, _Client[Piece]] = {}
        self._order: list[tuple[float, int, str]] = []  # clock, when it was put here, client: a heap
        self._now = 0.0
        self._puts = 0

    def put(self, piece: Piece, client: str, request: int, cost: float) -> None:
        """Adds a piece of a client's request."""
        found = self._clients.get(client)
        if found is None:
            found = self._clients[client] = _Client(self._now)
            self._push(client, found)
        found.requests.setdefault(request, deque()).append((piece, cost))

    def pop(self) -> Piece | None:
        """The next piece; None where there is none."""
        if not self._order:
            return None
        self._now, _, name = heapq.heappop(self._order)
        client = self._clients[name]
        request, pieces = next(iter(client.requests.items()))
        piece, cost = pieces.popleft()
        del client.requests[request]
        if pieces:
            client.requests[request] = pieces  # behind the client's others
        client.clock = self._now + cost
        if client.requests:
            self._push(name, client)
        else:
            del self._clients[name]
        return piece

    def _push(self, name: str, client: _Client[Piece]) -> None:
        self._puts += 1
        heapq.heappush(self._order, (client.clock, self._puts, name))
