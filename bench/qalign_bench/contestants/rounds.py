"""Contestants in, their answers out, interleaved: A B A B, so that other work on the machine slows all of them.

Where the contestants together do not fit the memory they take turns, and each is loaded anew for every round.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from qalign_bench.contestants.process import Contestant, Process

_OVERHEAD = 1 << 30  # bytes that a contestant needs beside its weights: libraries, activations


class Match(Protocol):
    """What a scenario does with its contestants."""

    def loading(self, contestant: Contestant) -> None:
        """Is called before a contestant is started."""
        ...

    def turn(self, i: int, process: Process) -> None:
        """Plays contestant i's part of a round."""
        ...

    def after(self) -> None:
        """Is called at the end of a round."""
        ...


def play(match: Match, contestants: Sequence[Contestant], rounds: int) -> None:
    """Gives every contestant its turn in each round. All stay loaded."""
    with contextlib.ExitStack() as stack:
        processes = []
        for contestant in contestants:
            match.loading(contestant)
            processes.append(stack.enter_context(contestant.start()))
        for _ in range(rounds):
            for i, process in enumerate(processes):
                match.turn(i, process)
            match.after()


def play_in_turns(match: Match, contestants: Sequence[Contestant], rounds: int) -> None:
    """The same with one contestant in memory at a time: it is loaded, has its turn and ends."""
    for _ in range(rounds):
        for i, contestant in enumerate(contestants):
            match.loading(contestant)
            with contestant.start() as process:
                match.turn(i, process)
        match.after()


def fit_together(contestants: Sequence[Contestant]) -> bool:
    """Whether the machine's available memory holds all contestants at once: their weights and what else they need."""
    available = available_memory()
    return available is None or sum(c.weights_bytes + _OVERHEAD for c in contestants) < available


def available_memory() -> int | None:
    """The bytes that can be had without swapping; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines)
    kib = fields.get("MemAvailable", "").split()
    return int(kib[0]) * 1024 if kib else None
