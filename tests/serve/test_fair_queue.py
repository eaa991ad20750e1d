"""The queue between clients: nothing is lost, requests keep their order, and clients get equal shares."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import combinations, groupby

from hypothesis import given, settings
from hypothesis import strategies as st

from qalign_fast.serve.fair_queue import FairQueue

CLIENTS = "abc"
Piece = tuple[str, int, int]  # client, request, its number there


@dataclass
class Watched:
    """A queue, what ought to be in it, and what each client was given."""

    queue: FairQueue[Piece] = field(default_factory=FairQueue)
    inside: dict[Piece, float] = field(default_factory=dict)
    costs: dict[Piece, float] = field(default_factory=dict)
    out: list[Piece] = field(default_factory=list)
    removed: list[Piece] = field(default_factory=list)
    given: Counter[str] = field(default_factory=Counter)  # cost
    puts: Counter[tuple[str, int]] = field(default_factory=Counter)

    def put(self, client: str, request: int, cost: float) -> None:
        piece = client, request, self.puts[client, request]
        self.puts[client, request] += 1
        self.inside[piece] = self.costs[piece] = cost
        self.queue.put(piece, client, request, cost)

    def pop(self) -> Piece | None:
        piece = self.queue.pop()
        assert (piece is None) == (not self.inside)
        if piece:
            self.given[piece[0]] += self.inside.pop(piece)
            self.out.append(piece)
        return piece

    def remove(self, number: int) -> None:
        if self.inside:
            piece = list(self.inside)[number % len(self.inside)]
            self.queue.remove(piece, piece[0], piece[1], self.inside.pop(piece))
            self.removed.append(piece)

    def busy(self) -> set[str]:
        return {client for client, _, _ in self.inside}


PUT = st.tuples(st.sampled_from(CLIENTS), st.integers(0, 3), st.sampled_from([1, 1, 1, 2, 31]))
STEPS = st.lists(st.one_of(PUT, PUT, st.just("pop"), st.just("pop"), st.integers(0, 99)), max_size=150)


def run(steps: list[object], watched: Watched) -> None:
    for step in steps:
        if isinstance(step, tuple):
            watched.put(*step)
        elif step == "pop":
            watched.pop()
        else:
            assert isinstance(step, int)
            watched.remove(step)


@given(STEPS)
@settings(max_examples=300, deadline=None)
def test_every_piece_comes_out_once_and_a_request_keeps_its_order(steps: list[object]) -> None:
    watched = Watched()
    run(steps, watched)
    while watched.pop():
        pass
    assert sorted(watched.out + watched.removed) == sorted(watched.costs)
    numbers: dict[tuple[str, int], list[int]] = defaultdict(list)
    for client, request, number in watched.out:
        numbers[client, request].append(number)
    assert all(found == sorted(found) for found in numbers.values())


@given(STEPS)
@settings(max_examples=300, deadline=None)
def test_clients_that_all_wait_get_equal_shares(steps: list[object]) -> None:
    """As long as two wait, they differ by their two dearest pieces, and the one that a new client starts behind."""
    watched, ahead = Watched(), defaultdict(list)
    for step in [*steps, *(["pop"] * 400)]:
        run([step], watched)
        busy = watched.busy()
        for pair in combinations(CLIENTS, 2):
            if busy.issuperset(pair):
                ahead[pair].append(watched.given[pair[0]] - watched.given[pair[1]])
            else:
                ahead[pair].append(None)
    dearest = {c: max((cost for piece, cost in watched.costs.items() if piece[0] == c), default=0) for c in CLIENTS}
    for (a, b), leads in ahead.items():
        for together, period in groupby(leads, lambda lead: lead is not None):
            if together:
                found = list(period)
                assert max(found) - min(found) <= dearest[a] + dearest[b] + 1


def test_requests_of_one_client_take_turns() -> None:
    watched = Watched()
    for request, count in ((1, 5), (2, 1), (3, 2)):
        for _ in range(count):
            watched.put("a", request, 1)
    while watched.pop():
        pass
    assert [request for _, request, _ in watched.out] == [1, 2, 3, 1, 3, 1, 1, 1]


def test_a_single_picture_passes_a_long_request() -> None:
    watched = Watched()
    for _ in range(200):
        watched.put("many", 1, 1)
    for _ in range(20):
        watched.pop()
    watched.put("one", 2, 1)
    assert "one" in [piece[0] for piece in (watched.pop(), watched.pop()) if piece]


def test_a_client_that_always_asks_for_just_one_gets_no_more_than_its_share() -> None:
    watched = Watched()
    for _ in range(100):
        watched.put("many", 1, 1)
    for request in range(2, 62):
        if "one" not in watched.busy():
            watched.put("one", request, 1)
        watched.pop()
    assert 25 <= watched.given["one"] <= 35


def test_no_stream_of_new_clients_keeps_anybody_waiting() -> None:
    watched = Watched()
    for request, cost in ((1, 1), (1, 1), (2, 31), (2, 31)):
        watched.put("here" if cost == 1 else "film", request, cost)
    for number in range(100):
        watched.put(f"new {number}", number, 1)
    for number in range(100, 4000):
        watched.put(f"new {number}", number, 1)
        watched.pop()
    order = [piece[0] for piece in watched.out]
    assert order[0] == "here"
    assert order.index("here", 1) < 250  # each of those who wait has had one
    assert order.count("film") == 2


def test_a_client_that_was_away_has_saved_no_turns_up() -> None:
    watched = Watched()
    for _ in range(100):
        watched.put("a", 1, 1)
        watched.pop()
    for _ in range(50):
        watched.put("a", 2, 1)
        watched.put("b", 3, 1)
    for _ in range(20):
        watched.pop()
    assert abs(watched.given["a"] - 100 - watched.given["b"]) <= 2


def test_what_is_taken_out_costs_its_client_nothing() -> None:
    watched = Watched()
    for _ in range(100):
        watched.put("a", 1, 1)
        watched.put("b", 2, 1)
    for piece in [piece for piece in watched.inside if piece[0] == "a"]:
        watched.queue.remove(piece, "a", 1, watched.inside.pop(piece))
    for _ in range(10):
        watched.pop()
    watched.put("a", 3, 1)
    assert "a" in [piece[0] for piece in (watched.pop(), watched.pop()) if piece]


def test_clients_that_have_gone_leave_nothing_behind() -> None:
    watched = Watched()
    for _ in range(5):
        watched.put("stays", 1, 10_000)
    for number in range(5000):
        watched.put(f"client {number}", number, 1)
        if number % 2:
            watched.pop()
        else:
            watched.remove(len(watched.inside) - 1)
    queue = watched.queue
    assert len(queue._clients) + len(queue._away) + len(queue._order) < 300
