"""A server under steady load for a long time: does its memory, its descriptors or its threads grow?

    python bench/studies/server_soak.py WORK [SECONDS] [--leak] [--json bench/results/server_soak.json]

WORK keeps the pictures that are made. All kinds of clients come at 60 % of the measured peak: good and bad pictures,
several tasks, several pictures in one request, and clients that go away. Every second the server's processes are looked
at. After each turn of load comes a moment of silence, in which the server gives free memory back (server_trim.py) and
memory, descriptors and threads are taken. The first quarter warms up; then a line is laid through the memory (Theil and
Sen: the median of all slopes).

Memory that grew by a step is taken for a leak only if it grows on: such a window is followed by another one, twice at
most. Exits with 1 for a leak. `--leak` soaks a server that leaks on purpose (server_leak.py), which has to be found.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qalign_bench.figures.environment import study_environment
from qalign_bench.scenarios.server import engine_contestant
from qalign_bench.server.outcomes import Tally
from qalign_bench.server.processes import free_port, our_command, started
from qalign_bench.server.targets import Case, Target, loaded
from qalign_bench.server.usage import Usage
from qalign_bench.server.watch import Watch
from qalign_fast.references import EMBEDDED
from server_mix import LARGE, Size, all_kinds
from server_trim import settings, trim

MOST_MB_PER_MINUTE = 1.0
_SHARE = 0.6  # of the peak
_CLIENTS, _PEAK_SECONDS = 32, 10.0
_TURN, _QUIET = 4.0, 0.5  # seconds of load, and of silence
_MB_PER_MINUTE = 60 / 1e6  # of a byte a second
_WARM = 0.25  # of the time
_DEADLINE_MS = 30_000.0


def main() -> None:
    """Soaks a server, and writes what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("seconds", type=float, nargs="?", default=600.0)
    parser.add_argument("--model", default=str(EMBEDDED))
    parser.add_argument("--leak", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = study(options.work, options.model, options.seconds, leak=options.leak)
    found["environment"] = study_environment("fastapi", "granian")
    text = json.dumps(found, indent=1)
    if options.json:
        options.json.write_text(text + "\n")
    print(json.dumps({key: value for key, value in found.items() if key != "windows"}, indent=1))
    sys.exit(not found["holds"])


def study(
    work: Path, model: str, seconds: float, *, leak: bool = False, size: Size = LARGE, most_windows: int = 3
) -> dict[str, Any]:
    """A server of its own, soaked for one window, and for further ones as long as memory alone grew."""
    with engine_contestant(model).start() as engine:
        mix = all_kinds(engine, work, size)
    port = free_port()
    control = str(Path(__file__).with_name("server_leak.py"))
    leaking = (sys.executable, control, "--model", model, "--port", str(port))
    command = leaking if leak else our_command(model, port)
    with (
        tempfile.TemporaryDirectory() as folder,
        started("control" if leak else "server", command, port, settings(Path(folder))) as server,
        loaded(server, mix) as target,
    ):
        rate = _SHARE * _peak(target, max(_PEAK_SECONDS, seconds / 8))
        windows: list[dict[str, Any]] = []
        while not windows or (len(windows) < most_windows and _may_be_a_step(windows[-1])):
            windows.append(window(target, rate, seconds, Path(folder)))
    verdicts = windows[-1]["verdicts"]
    return {
        "command": server.shown,
        "leaks_on_purpose": leak,
        "rate": rate,
        "seconds": seconds,
        "verdicts": verdicts,
        "holds": all(verdict["holds"] for verdict in verdicts.values()),
        "windows": windows,
    }


def _peak(target: Target, seconds: float) -> float:
    """Requests a second of clients that wait for their answers: more of them than the soak has, so that all is warm."""
    case = Case(target, {"kind": "closed", "concurrency": 2 * _CLIENTS}, Tally(target.requests, _DEADLINE_MS))
    answer = case.play_closed(seconds=seconds)
    return len(answer["records"]["request"]) / float(answer["seconds"])


def _may_be_a_step(found: dict[str, Any]) -> bool:
    """Whether memory alone is what grew."""
    return [name for name, verdict in found["verdicts"].items() if not verdict["holds"]] == ["memory_mb_per_minute"]


def window(target: Target, rate: float, seconds: float, folder: Path) -> dict[str, Any]:
    """One soak: turns of load with a moment of silence after each, from which the verdicts are."""
    case = Case(target, {"kind": "open", "rate": rate}, Tally(target.requests, _DEADLINE_MS), interval=1.0)
    quiet, moments = list[Usage](), list[float]()
    began = time.perf_counter()
    with Watch(target.server, 1.0) as watch:
        while (passed := time.perf_counter() - began) < seconds:
            case.play_open(min(_TURN, max(1.0, seconds - passed)), len(quiet), connections=_CLIENTS)
            time.sleep(_QUIET)
            trim(target.server, folder)
            moments.append(time.perf_counter() - began)
            quiet.extend(filter(None, [target.server.usage()]))
    slope = slope_of(moments, [usage.resident for usage in quiet], after=_WARM * seconds)
    under_load = slope_of(watch.moments, [usage.resident for usage in watch.usages], after=_WARM * seconds)
    verdicts = {
        "memory_mb_per_minute": _at_most(_MB_PER_MINUTE * slope, MOST_MB_PER_MINUTE),
        "descriptors_grown": _at_most(growth_of([usage.descriptors for usage in quiet]), 0),
        "threads_grown": _at_most(growth_of([usage.threads for usage in quiet]), 0),
        **{name: _at_most(case.tally.outcomes[name], 0) for name in ("wrong", "failed", "unanswered")},
        "extra_answers": _at_most(case.tally.extra_answers, 0),
    }
    return {
        "verdicts": verdicts,
        "untrimmed_mb_per_minute": _MB_PER_MINUTE * under_load,
        "outcomes": case.summary(),
        "series": {"s": watch.moments, **_columns(watch.usages)},
        "quiet": {"s": moments, **_columns(quiet)},
    }


def _columns(usages: Sequence[Usage]) -> dict[str, list[float]]:
    names = "resident", "anonymous", "descriptors", "threads"
    return {name: [getattr(usage, name) for usage in usages] for name in names}


def slope_of(moments: Sequence[float], values: Sequence[float], *, after: float = 0.0) -> float:
    """The median of the slopes of all pairs of points whose moments are later than `after`; 0 for fewer than two."""
    x, y = (np.array(column, np.float64)[np.array(moments) > after] for column in (moments, values))
    first, second = np.triu_indices(len(x), 1)
    return float(np.median((y[second] - y[first]) / (x[second] - x[first]))) if len(x) > 1 else 0.0


def growth_of(values: Sequence[int], warm: float = _WARM) -> int:
    """By how much the least of the last third is more than the most of the first third, after the warm-up; 0 or more.

    What comes and goes does not count; what is never given back does.
    """
    kept = values[int(warm * len(values)) :]
    third = max(1, len(kept) // 3)
    return max(0, min(kept[-third:]) - max(kept[:third])) if len(kept) > 1 else 0


def _at_most(value: float, limit: float) -> dict[str, Any]:
    return {"value": value, "most": limit, "holds": value <= limit}


if __name__ == "__main__":
    main()
