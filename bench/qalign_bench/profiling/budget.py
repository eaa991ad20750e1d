"""An artifact with torch weights in, where a batch's time goes out, by station and operation, beside the least time.

    python -m qalign_bench.profiling.budget ARTIFACT [--device cuda --batch 64] [--json bench/results/budget_cpu.json]

The least time of an operation is the longer of two: its arithmetic at the peak of a large matrix product, or its reads
and writes at the memory's speed. Both rates are measured in the same run, and the longer one is the operation's bound.
Times are medians of forwards whose operations are launched one by one. On a GPU the time between them is therefore not
that of a graph of kernels.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from qalign_bench.contestants.onednn import NAMES, held_to
from qalign_bench.contestants.peak import Peaks, bandwidth
from qalign_bench.contestants.timed_ops import Call, CudaClock, TimedOps
from qalign_bench.figures.datasheets import arithmetic_of
from qalign_bench.figures.environment import environment
from qalign_bench.figures.report import markdown_table, number, percent
from qalign_bench.figures.spread import median
from qalign_bench.peers.measured_process import random_pictures
from qalign_fast.artifact.manifest import open_artifact
from qalign_fast.engines.contract import Engine
from qalign_fast.engines.torch_cpu import load_folded
from qalign_fast.engines.torch_weights import read_folded
from qalign_kernels.contract.ops import PLAIN
from qalign_kernels.contract.precisions import PRECISIONS
from qalign_kernels.cpu.ops import exact_for, load_native


class Subject(NamedTuple):
    """An engine, the operations that it runs on, and what its arithmetic is."""

    engine: Engine
    ops: TimedOps
    products: str  # the precision that its linears compute in
    attention: str  # and that of its attention
    instruction_set: str | None = None


class Limits(NamedTuple):
    """What was measured: the peaks (`Peaks.peak`) of linears and of attention, and the memory's GB/s."""

    products: Mapping[str, Any]
    attention: Mapping[str, Any]
    gbs: float

    def seconds(self, call: Call) -> tuple[float, str]:
        """The least time of a call, and its bound: "arithmetic" or "memory"."""
        rate = self.attention if call.operation == "attention" else self.products
        computing, moving = 1e-9 * call.flop / rate["gops"], 1e-9 * call.bytes / self.gbs
        return (computing, "arithmetic") if computing > moving else (moving, "memory")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N")
    parser.add_argument("--instruction-set", choices=NAMES, help="hold the C++ kernels and oneDNN to it; default: all")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--json", type=Path, help="add the result to the list in this file")
    options = parser.parse_args()
    os.environ |= held_to(options.instruction_set)
    if options.device == "cpu":
        subject = on_cpu(options.artifact, options.instruction_set)
    else:
        subject = on_cuda(options.artifact, "cuda:0" if options.device == "cuda" else options.device)
    found = measure(subject, measured_limits(subject), options.batch, options.repeat)
    found["model"] = options.artifact.name
    print(table(found))
    if options.json:
        known = json.loads(options.json.read_text()) if options.json.exists() else []
        options.json.write_text(json.dumps([*known, found], indent=1) + "\n")


def on_cpu(artifact: Path, instruction_set: str | None = None) -> Subject:
    """The torch engine on this CPU; in plain torch where its kernels are not built. Exits without `instruction_set`."""
    opened = open_artifact(artifact, remembered=True)
    ops = TimedOps(load_native(instruction_set, exact=exact_for(opened.manifest.precision)) or PLAIN)
    if instruction_set and ops.inner is PLAIN:
        sys.exit(f"{instruction_set}: not built (qalign-fast build), or this CPU does not have it")
    engine = load_folded(opened, ops=ops)
    products = arithmetic_of(engine.precision)
    products = products if products in ("int8", "bf16") else "fp32"
    attention = "bf16" if ops.name == "native amx" else "fp32"  # AMX computes one of float32 by three of bfloat16
    return Subject(engine, ops, products, attention, instruction_set)


def on_cuda(artifact: Path, device: str) -> Subject:
    """The torch engine on "cuda:N"."""
    from qalign_fast.engines.cuda_graphs import Direct
    from qalign_fast.engines.torch_cuda import build_engine

    opened = open_artifact(artifact, remembered=True)
    engine = build_engine(opened.manifest, device, *read_folded(opened), Direct(torch.device(device)))
    engine.model.ops = ops = TimedOps(engine.model.ops, CudaClock())
    between = PRECISIONS[engine.precision].between
    attention = next(name for name, precision in PRECISIONS.items() if precision.weight == between)
    return Subject(engine, ops, arithmetic_of(engine.precision), attention)


def measured_limits(subject: Subject) -> Limits:
    """The limits of the subject's device, measured now."""
    kind = subject.engine.device.partition(":")[0]
    peaks = Peaks(kind, subject.instruction_set)
    return Limits(peaks.peak(subject.products), peaks.peak(subject.attention), bandwidth(kind))


def measure(subject: Subject, limits: Limits, batch: int, repeat: int) -> dict[str, Any]:
    """What the JSON has of one batch: the time of a picture, by operation, and the least time of each."""
    engine, ops = subject.engine, subject.ops
    pixels = random_pictures(0, batch, engine.config.pixels.side)
    forwards, whole = [], []
    for i in range(repeat + 1):
        ops.clear()
        started = time.perf_counter()
        engine.decode(engine.encode(pixels), engine.prompts[0])
        if i:  # the first one reads the weights from the disk, or compiles
            whole.append(time.perf_counter() - started)
            forwards.append(by_operation(ops, lambda call: ops.clock.seconds(call.start, call.end)))
    least = by_operation(ops, lambda call: limits.seconds(call)[0])
    flop = by_operation(ops, lambda call: call.flop)
    bounds = {(call.station, call.operation): limits.seconds(call)[1] for call in reversed(ops.calls)}
    per_picture = 1e3 / batch
    rows = [
        {
            "station": key[0],
            "operation": key[1],
            "ms": per_picture * median([forward[key] for forward in forwards]),
            "least_ms": per_picture * least[key],
            "bound": bounds[key],
            "gflop": 1e-9 * flop[key] / batch,
        }
        for key in least
    ]
    middle = median(whole)
    return {
        "precision": engine.precision,
        "kernels": engine.kernels,
        "device": engine.device,
        "batch": batch,
        "threads": torch.get_num_threads(),
        "ms": per_picture * middle,
        "ms_range": [per_picture * min(whole), per_picture * max(whole)],
        "between_ms": per_picture * median([t - sum(f.values()) for t, f in zip(whole, forwards)]),
        "operations": sorted(rows, key=lambda row: -float(row["ms"])),
        "peak": limits.products,
        "attention_peak": limits.attention,
        "memory_gbs": limits.gbs,
        "peak_share": 1e-9 * sum(flop.values()) / middle / limits.products["gops"],
        "environment": environment(),
    }


def by_operation(ops: TimedOps, value: Callable[[Call], float]) -> dict[tuple[str, str], float]:
    """The sum over the calls of each station's operation, in the order of the first calls."""
    found: dict[tuple[str, str], float] = defaultdict(float)
    for call in ops.calls:
        found[call.station, call.operation] += value(call)
    return found


def table(found: Mapping[str, Any]) -> str:
    """A line for each operation, then one for each station and one for all."""
    rows = found["operations"]
    lines = [_line(f"{row['station']} {row['operation']}", [row], row["bound"]) for row in rows]
    for station in dict.fromkeys(row["station"] for row in rows):
        lines.append(_line(f"all of {station}", [row for row in rows if row["station"] == station]))
    lines.append(["between operations", number(found["between_ms"]), "", "", "", ""])
    lines.append(_line("all", [*rows, {"ms": found["between_ms"], "least_ms": 0, "gflop": 0}]))
    return markdown_table(["operation", "ms", "least ms", "of that", "bound by", "GFLOP"], lines)


def _line(name: str, rows: list[Mapping[str, Any]], bound: str = "") -> list[str]:
    ms, least, gflop = (sum(row[key] for row in rows) for key in ("ms", "least_ms", "gflop"))
    return [name, number(ms, 4), number(least), percent(least / ms), bound, number(gflop or None, 4)]


if __name__ == "__main__":
    main()
