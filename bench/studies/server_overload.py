"""Four times as many requests as the server can answer: what is answered, what is refused, and what that costs.

    python bench/studies/server_overload.py WORK [--seconds 60] [--queue 64] [--json bench/results/server_overload.json]

WORK keeps the pictures that are made. Good and bad pictures come mixed, as a Poisson process, at four times the rate at
which 32 clients that wait were answered just before. Exits with 1 where something is not as it must be.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from qalign_bench.figures.environment import study_environment
from qalign_bench.figures.spread import median
from qalign_bench.scenarios.server import engine_contestant
from qalign_bench.server.outcomes import Tally
from qalign_bench.server.processes import free_port, our_command, started
from qalign_bench.server.targets import Case, Target, loaded
from qalign_fast.references import EMBEDDED
from server_mix import good_and_bad

_TIMES = 4.0
_DEADLINE = 30.0  # seconds, as `qalign-fast serve` has it
_CLIENTS, _PEAK_SECONDS, _PEAKS = 32, 5.0, 3
_SEED = 0
_MORE = 1.05  # than the count to reach: how many come is random


def main() -> None:
    """Runs the study, and writes what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--model", default=str(EMBEDDED))
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--requests", type=int, default=10_000, help="takes longer where that many do not come sooner")
    parser.add_argument("--queue", type=int, default=64)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = study(options.work, options.model, options.seconds, options.requests, options.queue)
    text = json.dumps(found, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    sys.exit(not all(verdict["holds"] for verdict in found["verdicts"].values()))


def study(work: Path, model: str, seconds: float, requests: int, queue: int) -> dict[str, Any]:
    """The peak, then the overload, then the peak again."""
    port = free_port()
    command = our_command(model, port, "--queue", str(queue), "--timeout", str(_DEADLINE))
    with ExitStack() as stack:
        with engine_contestant(model).start() as engine:
            mix = good_and_bad(engine, work)
        server = stack.enter_context(started("server", command, port))
        target = stack.enter_context(loaded(server, mix))
        peak = _closed(target)
        before = server.usage()
        rate = _TIMES * median(peak.rates) * len(mix) / sum(request["expected"] != [None] for request in mix)
        overload = Case(target, {"kind": "open", "rate": rate}, Tally(mix, 1e3 * _DEADLINE))
        overload.play_open(max(seconds, _MORE * requests / rate), _SEED)
        after = _closed(target)
        assert before is not None
        assert overload.resident is not None
        found = {
            "command": server.shown,
            "peak_before": peak.summary(),
            "overload": overload.summary(),
            "peak_after": after.summary(),
            "resident_before_bytes": before.resident,
        }
    verdicts = _verdicts(peak, overload, before.resident, queue, requests)
    return {"environment": study_environment("fastapi", "granian"), **found, "verdicts": verdicts}


def _closed(target: Target) -> Case:
    """Clients that wait for their answers, in some rounds."""
    case = Case(target, {"kind": "closed", "concurrency": _CLIENTS}, Tally(target.requests, 1e3 * _DEADLINE))
    for _ in range(_PEAKS):
        case.play_closed(seconds=_PEAK_SECONDS)
    return case


def _verdicts(peak: Case, overload: Case, resident: int, queue: int, requests: int) -> dict[str, dict[str, Any]]:
    """What must hold: each with its value and its limit."""
    told, of_peak = overload.summary(), overload.tally.goodput / median(peak.rates)
    growth = (overload.resident or 0) - resident
    answered = told["requests"] - told["unanswered"] + told["extra_answers"]
    return {
        "goodput_of_peak": {"value": of_peak, "least": 0.9, "holds": of_peak >= 0.9},
        "refused_p99_ms": _at_most(told["refused_ms_p99"] or 0.0, 50.0),
        "accepted_p99_ms": _at_most(told["ms_p99"], 1e3 * _DEADLINE),
        "answers_per_request": {
            "value": answered / told["requests"],
            "unanswered": told["unanswered"],
            "extra": told["extra_answers"],
            "holds": not told["unanswered"] and not told["extra_answers"],
        },
        "failed": _at_most(told["failed"], 0),
        "wrong": _at_most(told["wrong"], 0),
        "requests": {"value": told["requests"], "least": requests, "holds": told["requests"] >= requests},
        "queue_max": _at_most(told["queue_max"], queue),
        "memory_growth_bytes": _at_most(growth, 100e6),
    }


def _at_most(value: float, limit: float) -> dict[str, Any]:
    return {"value": value, "most": limit, "holds": value <= limit}


if __name__ == "__main__":
    main()
