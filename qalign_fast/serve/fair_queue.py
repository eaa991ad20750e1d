"""Work of many clients in, the next piece out: the client that had the least goes first, its requests take turns.

After start-time fair queueing (Goyal, Vin, Cheng 1996): a client's clock runs on by the cost of each piece that it is
given. A client that was away starts with those who wait, so that nobody saves up turns; at their rear, so that no flow
of new clients keeps anybody waiting; and not before its own clock, so that nobody gains by asking for one at a time.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import Generic, TypeVar

Piece = TypeVar("Piece")
_FEW = 64  # clocks of clients that are away, of which none is looked at


class _Client(Generic[Piece]):
    def __init__(self, clock: float) -> None:
        self.clock = clock
        self.requests: dict[int, deque[tuple[Piece, float]]] = {}  # by the request's number; the first is next


class FairQueue(Generic[Piece]):
    """Not for several threads at a time."""

    def __init__(self) -> None:
        self._clients: dict[str, _Client[Piece]] = {}  # that have pieces here
        self._away: dict[str, float] = {}  # clocks of those that had some, as long as others have
        self._most_away = _FEW
        self._order: list[tuple[float, int, str]] = []  # clock, when it was put here, client: a heap
        self._latest = 0.0  # of all clocks since nobody was here
        self._puts = 0

    def put(self, piece: Piece, client: str, request: int, cost: float) -> None:
        """Adds a piece of a client's request."""
        found = self._clients.get(client)
        if found is None:
            found = self._clients[client] = _Client(max(self._start(), self._away.pop(client, 0.0)))
            self._push(client, found)
        found.requests.setdefault(request, deque()).append((piece, cost))

    def pop(self) -> Piece | None:
        """The next piece; None where there is none."""
        if not self._order:
            return None
        clock, _, name = heapq.heappop(self._order)
        client = self._clients[name]
        request, pieces = next(iter(client.requests.items()))
        piece, cost = pieces.popleft()
        del client.requests[request]
        if pieces:
            client.requests[request] = pieces  # behind the client's others
        client.clock = clock + cost
        if client.requests:
            self._push(name, client)
        else:
            self._leave(name)
        return piece

    def remove(self, piece: Piece, client: str, request: int, cost: float) -> None:
        """Takes out a piece that was put here with these and has not come out. It costs its client nothing."""
        requests = self._clients[client].requests
        requests[request].remove((piece, cost))
        if not requests[request]:
            del requests[request]
        if not requests:
            self._order = [each for each in self._order if each[2] != client]
            heapq.heapify(self._order)
            self._leave(client)

    def _start(self) -> float:
        """The clock of one who comes now: behind those who wait, but behind no more than one picture of each."""
        return min(self._order[0][0] + 1, self._latest) if self._order else 0.0

    def _push(self, name: str, client: _Client[Piece]) -> None:
        self._latest = max(self._latest, client.clock)
        self._puts += 1
        heapq.heappush(self._order, (client.clock, self._puts, name))

    def _leave(self, name: str) -> None:
        """Notes the clock of a client whose last piece is out, as long as it may be ahead of anybody's."""
        self._away[name] = self._clients.pop(name).clock
        if not self._clients:
            self._away.clear()
            self._latest = 0.0
        elif len(self._away) > self._most_away:
            self._away = {name: clock for name, clock in self._away.items() if clock > self._order[0][0]}
            self._most_away = max(_FEW, 2 * len(self._away))
