"""An artifact with torch weights in, where one picture's time goes out, by station and operation, on a CPU.

    python -m qalign_bench.budget ARTIFACT [--instruction-set avx512bf16] [--json bench/results/budget.json]

Medians of the forwards. The counts are of the operations that were run; the share is of the peak in this run.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qalign_bench.environment import environment
from qalign_bench.report import markdown_table, number, percent
from qalign_bench.roof import peak
from qalign_bench.spread import median
from qalign_bench.timed_ops import TimedOps
from qalign_fast.artifact import open_artifact
from qalign_fast.torch_engine import load_packed
from qalign_kernels.native_ops import load_native
from qalign_kernels.ops import PLAIN

_PEAKS = {"int8": "int8", "int4": "int8", "bf16": "bf16", "fp16": "fp32", "fp32": "fp32"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--instruction-set", help="of the C++ kernels; default: the best one here")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--json", type=Path, help="a list that this is added to")
    options = parser.parse_args()
    ops = load_native(options.instruction_set) or PLAIN
    if options.instruction_set and ops is PLAIN:
        sys.exit(f"{options.instruction_set}: not built (qalign-fast build), or this CPU does not have it")
    found = measure(options.artifact, TimedOps(ops), options.batch, options.repeat, options.instruction_set)
    print(table(found))
    if options.json:
        known = json.loads(options.json.read_text()) if options.json.exists() else []
        options.json.write_text(json.dumps([*known, found], indent=1) + "\n")


def measure(
    artifact: Path, ops: TimedOps, batch: int, repeat: int, instruction_set: str | None = None
) -> dict[str, Any]:
    engine = load_packed(open_artifact(artifact, remembered=True), ops=ops)
    side = engine.config.pixels.side
    pixels = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3)).astype(np.uint8)
    forwards, whole = [], []
    for i in range(repeat + 1):
        ops.clear()
        started = time.perf_counter()
        engine.decode(engine.encode(pixels), engine.prompts[0])
        if i:  # the first one reads the weights from the disk
            whole.append(time.perf_counter() - started)
            forwards.append(dict(ops.seconds))
    middle = median(whole)
    rows: list[dict[str, Any]] = [
        {
            "station": station,
            "operation": operation,
            "ms": 1e3 * median([forward[station, operation] for forward in forwards]) / batch,
            "gflop": 1e-9 * ops.flop[station, operation] / batch,
        }
        for station, operation in ops.seconds
    ]
    roof = peak(_PEAKS[engine.precision], "cpu", instruction_set)
    return {
        "model": artifact.name,
        "precision": engine.precision,
        "kernels": engine.kernels,
        "batch": batch,
        "threads": torch.get_num_threads(),
        "ms": 1e3 * middle / batch,
        "ms_range": [1e3 * min(whole) / batch, 1e3 * max(whole) / batch],
        "between_ms": 1e3 * median([t - sum(f.values()) for t, f in zip(whole, forwards)]) / batch,
        "operations": sorted(rows, key=lambda row: -row["ms"]),
        "peak": roof,
        "peak_share": sum(row["gflop"] for row in rows) * batch / middle / roof["gops"],
        "environment": environment(),
    }


def table(found: Mapping[str, Any]) -> str:
    rows = [
        [
            f"{row['station']} {row['operation']}",
            number(row["ms"]),
            number(row["gflop"] or None),
            number(rate or None),
            percent(rate / found["peak"]["gops"]) if rate else "",
        ]
        for row in found["operations"]
        for rate in [1e3 * row["gflop"] / row["ms"]]
    ]
    rows.append(["between operations", number(found["between_ms"]), "", "", ""])
    total = sum(row["gflop"] for row in found["operations"])
    rate = 1e3 * total / found["ms"]
    rows.append(["all", number(found["ms"], 4), number(total, 4), number(rate), percent(found["peak_share"])])
    return markdown_table(["operation", "ms", "GFLOP", "GFLOP/s", "of the measured peak"], rows)


if __name__ == "__main__":
    main()
