"""An artifact with torch weights in, where a batch's time goes out, by station and operation, beside what it could be.

    python -m qalign_bench.profiling.budget ARTIFACT [--device cuda --batch 64] [--json bench/results/budget_cpu.json]

What an operation could take is the longer of its arithmetic at the peak of a large matrix product and of its reading
and writing at the memory's speed, both measured in the same run; which one that is says why it takes no less. Times are
medians of forwards whose operations are launched one by one: on a GPU what lies between them is not what it is in a
graph of kernels.
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

import numpy as np
import torch

from qalign_bench.contestants.onednn import NAMES, held_to
from qalign_bench.contestants.roof import Roof, bandwidth
from qalign_bench.contestants.timed_ops import Call, CudaClock, TimedOps
from qalign_bench.figures.datasheets import ARITHMETIC
from qalign_bench.figures.environment import environment
from qalign_bench.figures.report import markdown_table, number, percent
from qalign_bench.figures.spread import median
from qalign_fast.artifact.manifest import open_artifact
from qalign_fast.engines.contract import Engine
from qalign_fast.engines.torch_cpu import load_folded
from qalign_fast.engines.torch_weights import read_folded
from qalign_kernels.contract.ops import PLAIN, Ops
from qalign_kernels.cpu.ops import exact_for, load_native

_FLOAT = {"fp32": "fp32", "bf16": "bf16"}  # what attention computes in on a GPU; in other precisions float16


class Subject(NamedTuple):
    engine: Engine
    ops: TimedOps
    products: str  # what its linears' arithmetic is, by datasheets' names
    attention: str
    instruction_set: str | None = None


class Limits(NamedTuple):
    """Measured: GFLOP/s of a large product by the operations that it bounds, GB/s of memory."""

    products: Mapping[str, Any]
    attention: Mapping[str, Any]
    gbs: float

    def seconds(self, call: Call) -> tuple[float, str]:
        """The least that a call can take, and what bounds it."""
        rate = self.attention if call.operation == "attention" else self.products
        computing, moving = 1e-9 * call.flop / rate["gops"], 1e-9 * call.bytes / self.gbs
        return (computing, "arithmetic") if computing > moving else (moving, "memory")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N")
    parser.add_argument("--instruction-set", choices=NAMES, help="of the C++ kernels and oneDNN; default: all")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--json", type=Path, help="a list that this is added to")
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
    opened = open_artifact(artifact, remembered=True)
    ops = TimedOps(load_native(instruction_set, exact=exact_for(opened.manifest.precision)) or PLAIN)
    if instruction_set and ops.inner is PLAIN:
        sys.exit(f"{instruction_set}: not built (qalign-fast build), or this CPU does not have it")
    engine = load_folded(opened, ops=ops)
    products = ARITHMETIC[engine.precision]
    products = products if products in ("int8", "bf16") else "fp32"
    attention = "bf16" if ops.name == "native amx" else "fp32"  # with AMX as products of bfloat16, three for each
    return Subject(engine, ops, products, attention, instruction_set)


def on_cuda(artifact: Path, device: str) -> Subject:
    from qalign_fast.engines.cuda_graphs import Direct
    from qalign_fast.engines.torch_cuda import build_engine

    opened = open_artifact(artifact, remembered=True)
    watched: list[TimedOps] = []

    def watch(ops: Ops) -> Ops:
        watched.append(TimedOps(ops, CudaClock()))
        return watched[0]

    engine = build_engine(opened.manifest, device, *read_folded(opened), Direct(torch.device(device)), watch)
    return Subject(engine, watched[0], ARITHMETIC[engine.precision], _FLOAT.get(engine.precision, "fp16"))


def measured_limits(subject: Subject) -> Limits:
    kind = subject.engine.device.partition(":")[0]
    roof = Roof(kind, subject.instruction_set)
    return Limits(roof.peak(subject.products), roof.peak(subject.attention), bandwidth(kind))


def measure(subject: Subject, limits: Limits, batch: int, repeat: int) -> dict[str, Any]:
    engine, ops = subject.engine, subject.ops
    side = engine.config.pixels.side
    pixels = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3)).astype(np.uint8)
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
    """The sum over the calls of each station's operation, in the order of the first."""
    found: dict[tuple[str, str], float] = defaultdict(float)
    for call in ops.calls:
        found[call.station, call.operation] += value(call)
    return found


def table(found: Mapping[str, Any]) -> str:
    """A line for each operation, then one for each station and all."""
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
