"""A few requests to servers of a model of full size: what HTTP adds, alone and beside the server people write.

    python bench/studies/server_full_size.py ARTIFACT WORK [--json bench/results/server_full_size.json]

WORK keeps the pictures that are made. The engine, our server and the naive one take turns, one picture at a time; then
each server has several clients at once. Exits with 1 where something is not as it must be.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from qalign_bench.contestants.generated_pictures import generated_pictures
from qalign_bench.figures.environment import study_environment
from qalign_bench.figures.spread import median
from qalign_bench.scenarios.server import engine_contestant, expect
from qalign_bench.server.outcomes import Tally
from qalign_bench.server.processes import free_port, naive_command, our_command, started
from qalign_bench.server.targets import Case, Target, loaded

_PICTURES, _SIZE, _ROUNDS, _AT_ONCE = 2, (1224, 918), 4, 8
_PATIENCE_MS = 600_000.0


def main() -> None:
    """Runs the study, and writes what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artifact")
    parser.add_argument("work", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = {"environment": study_environment("fastapi", "granian"), **study(options.artifact, options.work)}
    text = json.dumps(found, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    sys.exit(not all(verdict["holds"] for verdict in found["verdicts"].values()))


def study(model: str, work: Path) -> dict[str, Any]:
    """The rounds of single pictures, then several at once."""
    files = generated_pictures(work, _PICTURES, *_SIZE)
    with ExitStack() as stack:
        engine = stack.enter_context(engine_contestant(model).start())
        requests = expect(engine, [{"file": file} for file in files])
        ports = free_port(), free_port()
        servers = [
            stack.enter_context(started("server", our_command(model, ports[0], "--timeout", "600"), ports[0])),
            stack.enter_context(started("naive", naive_command(model, ports[1], "--task", "quality"), ports[1])),
        ]
        ours, naive = (stack.enter_context(loaded(server, requests, _PATIENCE_MS / 1e3)) for server in servers)
        alone = {"server": _case(ours, 1), "naive": _case(naive, 1)}
        engine_ms: list[float] = []
        for _ in range(_ROUNDS):
            engine_ms += engine.ask("score", files=files, task="quality")["ms"]
            for case in alone.values():
                case.play_closed(count=len(files))
        many = {"server": _case(ours, _AT_ONCE), "naive": _case(naive, _AT_ONCE)}
        for case in many.values():
            case.play_closed(count=_AT_ONCE)
    p50 = {name: median([ms for times in case.tally.accepted_ms for ms in times]) for name, case in alone.items()}
    engine_p50 = median(engine_ms)
    wrong = sum(case.tally.outcomes[what] for case in [*alone.values(), *many.values()] for what in ("wrong", "failed"))
    return {
        "engine_ms": engine_ms,
        "engine_kernels": engine.ready["kernels"],
        "one_client": {name: case.summary() for name, case in alone.items()},
        f"{_AT_ONCE}_clients": {name: case.summary() for name, case in many.items()},
        "verdicts": {
            "engine_p50_ms": {"value": engine_p50, "holds": True},
            "share_added": _at_most(p50["server"] / engine_p50 - 1, 0.02),
            "of_naive_one_client": _at_least(p50["naive"] / p50["server"], 1.0),
            "of_naive_many_clients": _at_least(many["server"].tally.goodput / many["naive"].tally.goodput, 1.0),
            "wrong": _at_most(wrong, 0),
        },
    }


def _case(target: Target, clients: int) -> Case:
    return Case(target, {"kind": "closed", "concurrency": clients}, Tally(target.requests, _PATIENCE_MS))


def _at_most(value: float, limit: float) -> dict[str, Any]:
    return {"value": value, "most": limit, "holds": value <= limit}


def _at_least(value: float, limit: float) -> dict[str, Any]:
    return {"value": value, "least": limit, "holds": value >= limit}


if __name__ == "__main__":
    main()
