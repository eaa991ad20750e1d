"""The parts of a bench of servers: pairs, saturation, rates and the highest rate. The contestants take turns in each.

pairs        one client, and `Scorer.score` of the same bytes in a process of its own: the latency that HTTP adds
saturation   32 clients who never wait, and `feed` over the same files: the peak
rates        Poisson arrivals at shares of the peak, and at four times the peak
highest      by bisection: the highest rate at which 99 of 100 requests are answered right within the bound
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from qalign_bench.contestants.process import Process
from qalign_bench.figures.spread import median
from qalign_bench.server.outcomes import Tally, steady_rate
from qalign_bench.server.requests import Request
from qalign_bench.server.targets import Case, Target
from qalign_fast.errors import QAlignError

SHARES = (0.5, 0.8, 1.0, 1.2, 4.0)  # of the peak
PAIRS, SATURATIONS, BISECTIONS = 12, 3, 5  # rounds
CLIENTS = 32
BATCH = 16  # as `qalign-fast serve` has it
_BOUND_MS, _TIMES = 1000.0, 10.0  # the bound where none is given: a second, or so many times the engine's own time
_PAIR_LOADS = 8  # pairs take about as long as so many loads, at most
_HIGHEST = 1.2  # of a server's peak: the search is below it


@dataclass
class Parts:
    """Plays the parts and keeps what they show. The first target is ours; `peak` is its saturated rate.

    seconds: of each load. bound_ms: None takes a second, or ten times the engine's own time where that is longer. step:
    is told what comes next.
    """

    engine: Process
    targets: Sequence[Target]
    requests: Sequence[Request]
    task: str
    seconds: float
    rounds: int  # of the rates
    step: Callable[[str], None]
    given_rates: Sequence[float] = ()
    bound_ms: float | None = None
    cases: dict[tuple[str, str], Case] = field(default_factory=dict)
    engine_ms: list[list[float]] = field(default_factory=list)  # of each round of pairs
    added_ms: dict[str, list[float]] = field(default_factory=dict)  # by target: a file's time over the engine's
    saturated: dict[str, list[float]] = field(default_factory=dict)  # answers a second, of each round
    pair_rounds: int = PAIRS
    searches: list[Case] = field(default_factory=list)  # the steps of `highest`
    highest_rates: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def wrong(self) -> int:
        """Wrong scores in all parts."""
        return sum(case.tally.outcomes["wrong"] for case in [*self.cases.values(), *self.searches])

    @property
    def files(self) -> list[str]:
        """The files of the requests, one each."""
        return [request["file"] for request in self.requests]

    @property
    def steps(self) -> int:
        """How many times `step` is called."""
        per_target = self.pair_rounds + SATURATIONS + self.rounds * len(self.given_rates or SHARES) + BISECTIONS
        return 1 + len(self.targets) * per_target

    def check(self) -> None:
        """Warms all up. Raises QAlignError for a server that does not score as this model does."""
        self.step("first answers")
        ours = self._engine_ms()
        self.bound_ms = self.bound_ms or max(_BOUND_MS, _TIMES * median(ours))
        round_s = 1e-3 * sum(ours) * (1 + len(self.targets))
        self.pair_rounds = max(1, min(PAIRS, int(_PAIR_LOADS * self.seconds / round_s)))
        for target in self.targets:
            case = Case(target, {"kind": "closed", "concurrency": 1}, Tally(self.requests, self.bound_ms))
            case.play_closed(count=len(self.requests))
            if case.tally.outcomes["right"] != len(self.requests):
                found = dict(case.tally.outcomes)
                raise QAlignError(f"{target.name}: answers that are not this model's scores ({found})")

    def pairs(self) -> None:
        """One client and the engine, in turn."""
        names = [target.name for target in self.targets]
        for turn in range(self.pair_rounds):
            if turn % 2:
                self.engine_ms.append(self._engine_ms())
            for target in self.targets:
                self.step(f"{target.name}, 1 client")
                case = self._case(target, "1 client", kind="closed", concurrency=1)
                case.play_closed(count=len(self.requests), marked=False)
            if not turn % 2:
                self.engine_ms.append(self._engine_ms())
            for name in names:
                pairs = zip(self.cases[name, "1 client"].tally.accepted_ms[-1], self.engine_ms[-1])
                self.added_ms.setdefault(name, []).extend(http - alone for http, alone in pairs)

    def saturation(self) -> None:
        """Many clients and `feed`, in turn; of a peer also one client."""
        for _ in range(SATURATIONS):
            for i, target in enumerate(self.targets):
                self.step(f"{target.name}, {CLIENTS} clients")
                case = self._case(target, f"{CLIENTS} clients", kind="closed", concurrency=CLIENTS)
                case.play_closed(seconds=self.seconds)
                self._saturated(target.name, case.rates[-1])
                if i:
                    alone = self._case(target, "1 client, longer", kind="closed", concurrency=1)
                    alone.play_closed(seconds=self.seconds)
                    self._saturated(f"{target.name}, 1 client", alone.rates[-1])
            asked = {"files": self.files, "task": self.task, "seconds": self.seconds, "batch": BATCH}
            finished = self.engine.ask("feed", **asked)["finished"]
            self._saturated("feed", steady_rate(finished, BATCH - 1, finished[-1]))

    def peak(self, target: Target) -> float:
        """A target's saturated rate."""
        return median(self.saturated[target.name])

    def rates(self) -> None:
        """Poisson arrivals, the same ones for each target."""
        peak = self.peak(self.targets[0])
        rates = [(rate, rate / peak) for rate in self.given_rates] or [(share * peak, share) for share in SHARES]
        for seed in range(self.rounds):
            for rate, share in rates:
                for target in self.targets:
                    label = f"{rate:.4g}/s"
                    self.step(f"{target.name}, {label}")
                    case = self._case(target, label, kind="open", rate=rate, of_peak=share)
                    case.play_open(self.seconds, seed)
                    case.settle()

    def highest(self) -> None:
        """For each target, the highest rate that holds the bound."""
        assert self.bound_ms is not None
        held = {target.name: 0.0 for target in self.targets}
        failed = {target.name: _HIGHEST * self.peak(target) for target in self.targets}
        for seed in range(BISECTIONS):
            for target in self.targets:
                rate = (held[target.name] + failed[target.name]) / 2
                self.step(f"{target.name}, does {rate:.4g}/s hold")
                case = Case(target, {"kind": "open", "rate": rate}, Tally(self.requests, self.bound_ms))
                case.play_open(self.seconds, seed)
                case.settle()
                self.searches.append(case)
                (held if case.tally.holds else failed)[target.name] = rate
                self.highest_rates[target.name] = {
                    "per_second": held[target.name] or None,
                    "not_held_per_second": failed[target.name],
                    "of_peak": held[target.name] / self.peak(target),
                }

    def _saturated(self, name: str, rate: float) -> None:
        if not rate:
            raise QAlignError(f"{name}: too few answers in {self.seconds:g} s to tell a rate; give more --seconds")
        self.saturated.setdefault(name, []).append(rate)

    def _engine_ms(self) -> list[float]:
        times: list[float] = self.engine.ask("score", files=self.files, task=self.task)["ms"]
        return times

    def _case(self, target: Target, label: str, **load: Any) -> Case:
        assert self.bound_ms is not None
        key = target.name, label
        if key not in self.cases:
            self.cases[key] = Case(target, load, Tally(self.requests, self.bound_ms))
        return self.cases[key]
