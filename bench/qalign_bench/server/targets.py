"""A server that is loaded: loads are played on it one after another, and what each showed is kept in a `Case`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from qalign_bench.contestants.process import Contestant, Process
from qalign_bench.contestants.wire import Message
from qalign_bench.figures.spread import median
from qalign_bench.server.outcomes import Tally, steady_rate
from qalign_bench.server.processes import Server
from qalign_bench.server.requests import Request
from qalign_bench.server.watch import Watch

PATIENCE = 35.0  # seconds after the last arrival: longer than a request of ours may wait


@dataclass(frozen=True)
class Target:
    """A server, and the process that loads it."""

    server: Server
    load: Process
    requests: Sequence[Request]
    patience: float = PATIENCE

    @property
    def name(self) -> str:
        """What tables call it."""
        return self.server.name


@contextlib.contextmanager
def loaded(server: Server, requests: Sequence[Request], patience: float = PATIENCE) -> Iterator[Target]:
    """A process that loads the server, while the block lasts. Raises OtherHostError as its message for another host."""
    argv = (sys.executable, "-P", "-m", "qalign_bench.server.load")
    spec = {"url": server.url, "requests": [dict(request) for request in requests]}
    with Contestant(f"load on {server.name}", argv, spec).start() as process:
        yield Target(server, process, requests, patience)


@dataclass
class Case:
    """One kind of load on one target, over all its rounds."""

    target: Target
    load: dict[str, Any]  # {"kind": "closed", "concurrency"} or {"kind": "open", "rate", "of_peak"}
    tally: Tally
    rates: list[float] = field(default_factory=list)  # scores a second, of each round
    cpu_s: list[float] = field(default_factory=list)
    resident: int | None = None
    queue_max: int | None = None
    interval: float = 0.1  # between two looks at the server

    def play_open(self, seconds: float, seed: int, **how: Any) -> Message:
        """Requests come at the case's rate for so many seconds. `how` as server/load.py. Returns what it answered."""
        asked = {"rate": self.load["rate"], "seconds": seconds, "seed": seed, "patience": self.target.patience}
        answer = self._play("open", seconds, asked | how)
        self.rates.append(self.tally.scored[-1] / seconds)
        return answer

    def play_closed(self, *, seconds: float | None = None, count: int | None = None, marked: bool = True) -> Message:
        """So many clients wait for their answers, for a time or for a count of requests."""
        concurrency = self.load["concurrency"]
        answer = self._play(
            "closed", seconds, {"concurrency": concurrency, "seconds": seconds, "count": count, "marked": marked}
        )
        records = answer["records"]
        finished = [f for f, status in zip(records["finished"], records["status"]) if status == 200]
        self.rates.append(steady_rate(finished, concurrency, seconds or answer["seconds"]))
        return answer

    def settle(self) -> None:
        """Waits until the server answers a request again, as it does when its backlog is done."""
        self.target.load.ask("closed", concurrency=1, count=1)

    @property
    def per_second(self) -> float:
        """Scores a second: the middle round's of a closed loop; over all rounds of an open one, which differ."""
        if self.load["kind"] == "closed":
            return median(self.rates)
        return sum(self.tally.scored) / sum(self.tally.seconds)

    @property
    def cpu_s_per_answer(self) -> float | None:
        """Seconds of processors for each answer about pictures."""
        answers = sum(map(len, self.tally.accepted_ms))
        return sum(self.cpu_s) / answers if self.cpu_s and answers else None

    def summary(self) -> dict[str, Any]:
        """As the JSON has it."""
        return {
            "load": self.load,
            **self.tally.summary(),
            "per_second": self.per_second if self.rates else None,
            "per_second_rounds": self.rates,
            "cpu_s_per_picture": self.cpu_s_per_answer,
            "resident_bytes": self.resident,
            "queue_max": self.queue_max,
        }

    def _play(self, kind: str, seconds: float | None, asked: Message) -> Message:
        with Watch(self.target.server, self.interval) as watch:
            answer = self.target.load.ask(kind, **asked)
        self.tally.add(answer, seconds or answer["seconds"])
        if watch.cpu_s is not None:
            self.cpu_s.append(watch.cpu_s)
        self.resident = max(filter(None, (self.resident, watch.resident)), default=None)
        sizes = [size for size in (self.queue_max, watch.queue_max) if size is not None]
        self.queue_max = max(sizes, default=None)
        return answer
