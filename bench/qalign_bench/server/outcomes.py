"""What the load answered in, counts and times out: which answers are right, how late they came, what was refused.

Every request has one outcome:

right     the status and the scores that were expected; for a bad picture its refusal by 422
wrong     an answer about pictures that is not the expected one
refused   429 or 503
failed    any other status
unanswered   no whole answer: the connection ended, or the time was over
left      the client went away by itself
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qalign_bench.contestants.wire import Message
from qalign_bench.figures.spread import percentile
from qalign_bench.server.requests import Request

OUTCOMES = ("right", "wrong", "refused", "failed", "unanswered", "left")
_REFUSALS = (429, 503)
_ABOUT_PICTURES = (200, 422)
_TOLERANCE = 5.1e-5  # servers round to 4 decimals
_ANSWERED = ("right", "wrong")


def outcome(status: int | None, scores: Sequence[float | None], error: str | None, request: Request) -> str:
    """The outcome of one request."""
    if error is not None or status is None:
        return "left" if request.get("leaves") else "unanswered"
    if status in _REFUSALS:
        return "refused"
    if status not in _ABOUT_PICTURES:
        return "failed"
    return "right" if _is_right(status, scores, request["expected"]) else "wrong"


def _is_right(status: int, scores: Sequence[float | None], expected: Sequence[float | None]) -> bool:
    if all(score is None for score in expected):
        return status == 422 and all(score is None for score in scores)
    return status == 200 and len(scores) == len(expected) and all(map(_is_near, scores, expected))


def _is_near(found: float | None, expected: float | None) -> bool:
    if found is None or expected is None:
        return found is expected
    return abs(found - expected) <= _TOLERANCE


@dataclass
class Tally:
    """One load on one server, over all rounds that were played. Times are in ms from when a request was due."""

    requests: Sequence[Request]
    bound_ms: float
    outcomes: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    extra_answers: int = 0
    most_open: int = 0
    seconds: list[float] = field(default_factory=list)  # of each round
    scored: list[int] = field(default_factory=list)  # right scores that came within the round's seconds
    good: list[int] = field(default_factory=list)  # those that also came within the bound
    held: int = 0  # right answers within the bound, whenever they came
    accepted_ms: list[list[float]] = field(default_factory=list)
    refused_ms: list[float] = field(default_factory=list)
    late_ms: list[float] = field(default_factory=list)  # how long requests waited for a connection of ours
    queue_ms: list[float] = field(default_factory=list)
    inference_ms: list[float] = field(default_factory=list)
    cpu_s: float = 0.0  # of the load itself

    def add(self, answer: Message, seconds: float) -> None:
        """Adds a round: what the load answered, and the seconds during which requests came."""
        self.accepted_ms.append([])
        self.seconds.append(seconds)
        self.scored.append(0)
        self.good.append(0)
        self.extra_answers += answer["extra_answers"]
        self.most_open = max(self.most_open, answer["most_open"])
        self.cpu_s += answer["cpu_s"]
        columns = answer["records"]
        for row in zip(*columns.values(), strict=True):
            self._count(dict(zip(columns, row, strict=True)), seconds)

    def _count(self, record: Mapping[str, Any], seconds: float) -> None:
        what = outcome(record["status"], record["scores"], record["error"], self.requests[record["request"]])
        self.outcomes[what] += 1
        self.statuses[str(record["status"])] += 1
        if what in ("unanswered", "failed"):
            self.errors[record["error"] or f"status {record['status']}"] += 1
        if record["sent"] is not None:
            self.late_ms.append(1e3 * (record["sent"] - record["scheduled"]))
        ms = 1e3 * (record["finished"] - record["scheduled"])
        if what == "refused":
            self.refused_ms.append(ms)
        if what in _ANSWERED:
            self.accepted_ms[-1].append(ms)
            self._keep(self.queue_ms, record["queue_ms"])
            self._keep(self.inference_ms, record["inference_ms"])
        if what == "right":
            in_time = record["status"] == 200 and record["finished"] <= seconds
            self.held += ms <= self.bound_ms
            self.scored[-1] += in_time
            self.good[-1] += in_time and ms <= self.bound_ms

    @staticmethod
    def _keep(values: list[float], value: float | None) -> None:
        if value is not None:
            values.append(value)

    @property
    def total(self) -> int:
        """All requests."""
        return self.outcomes.total()

    @property
    def goodput(self) -> float:
        """Right scores within the bound, a second; a bad picture's refusal is none."""
        return sum(self.good) / sum(self.seconds)

    @property
    def holds(self) -> bool:
        """Whether 99 of 100 requests were answered right within the bound: the p99 of all, where refusals never end."""
        asked = self.total - self.outcomes["left"]
        return asked > 0 and self.held >= 0.99 * asked

    def summary(self) -> dict[str, Any]:
        """Counts and percentiles, as the JSON has them."""
        return {
            "requests": self.total,
            **{what: self.outcomes[what] for what in OUTCOMES},
            "accepted": sum(map(len, self.accepted_ms)),
            "statuses": dict(self.statuses),
            "errors": dict(self.errors),
            "extra_answers": self.extra_answers,
            **percentiles("ms", [ms for round_ms in self.accepted_ms for ms in round_ms]),
            **percentiles("refused_ms", self.refused_ms),
            **percentiles("late_ms", self.late_ms),
            **percentiles("queue_ms", self.queue_ms),
            **percentiles("inference_ms", self.inference_ms),
            "bound_ms": self.bound_ms,
            "held_share": self.held / self.total if self.total else None,
            "goodput": self.goodput,
            "goodput_rounds": [good / seconds for good, seconds in zip(self.good, self.seconds)],
            "connections": self.most_open,
            "load_cpu_ms_per_request": 1e3 * self.cpu_s / self.total if self.total else None,
        }


def percentiles(name: str, values: Sequence[float]) -> dict[str, float | None]:
    """Three of them, by key; None where there is no value."""
    shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
    return {f"{name}_{key}": percentile(values, share) if values else None for key, share in shares.items()}


def steady_rate(finished: Sequence[float], skip: int, until: float) -> float:
    """Answers a second from the `skip`-th on, which is when all stations are at work; those after `until` do not count.

    Of few answers a quarter is skipped. 0 where there are fewer than two.
    """
    moments = sorted(moment for moment in finished if moment <= until)
    first = min(skip, len(moments) // 4)
    whole = moments[-1] - moments[first] if len(moments) > 1 else 0
    return (len(moments) - 1 - first) / whole if whole else 0.0
