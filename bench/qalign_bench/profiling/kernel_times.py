"""A model and a batch in, what a GPU does in one step of it out: time by kernel, launches, and the gaps between.

    python -m qalign_bench.profiling.kernel_times random:one-align --precision int8 --batch 1 --batch 64 [--json OUT]

The model is an artifact, or random numbers made on the GPU. The JSON is a list and is written after each batch; --trace
keeps the last batch's.

A step takes a batch's pixels in the host's memory to its logits there. It lasts from the first thing that the device
does for it to the last. Time that no kernel and no copy covers is a gap. Several steps are profiled one by one, and the
step of median length is shown. Profiling itself costs time, so a step's length here says nothing about throughput.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile

from qalign_bench.contestants.random_model import open_engine
from qalign_bench.figures.environment import environment
from qalign_bench.figures.report import markdown_table
from qalign_bench.peers.measured_process import random_pictures
from qalign_fast.engines.contract import Engine
from qalign_kernels.contract.precisions import PRECISIONS

_STEPS = 7
_SHOWN = 20  # kernels
_LAUNCHES = ("cudaGraphLaunch", "cudaLaunchKernel", "cuLaunchKernel", "cudaMemcpyAsync")  # and their variants


class Span(NamedTuple):
    """A kernel or a copy on the device, in microseconds."""

    name: str
    start: float
    end: float


@dataclass(frozen=True)
class Step:
    """What the device did in one step. Times are in microseconds."""

    length: float
    busy: float  # while at least one span lasted
    largest_gap: float
    kernels: list[tuple[str, int, float]]  # name, number of launches, time in all; the longest first
    host_calls: dict[str, int]

    @property
    def gap_share(self) -> float:
        """The share of the step in which the device did nothing."""
        return 1 - self.busy / self.length


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="an artifact, random:one-align, random:mini or random:FOLDER")
    parser.add_argument("--precision", choices=PRECISIONS, help="of a random model; default: int8")
    parser.add_argument("--batch", type=int, action="append", help="default: 64")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--trace", type=Path, help="the last step, for chrome://tracing")
    options = parser.parse_args()
    engine = open_engine(options.model, options.precision, options.device)
    if not engine.device.startswith("cuda"):
        sys.exit(f"device {engine.device!r}: the profiler sees kernels on a CUDA device only; give --device cuda")
    found: list[dict[str, Any]] = []
    for batch in options.batch or [64]:
        step = median_step(profile_steps(engine, batch, options.trace))
        print(f"batch {batch}\n\n{table(step)}\n", flush=True)
        found.append({"model": options.model, "precision": engine.precision, "batch": batch} | as_json(step))
        if options.json:
            options.json.write_text(json.dumps(found, indent=1) + "\n")


def profile_steps(engine: Engine, batch: int, trace: Path | None) -> list[Step]:
    """Runs several steps of the same pictures. `trace`: a file for the last one's, or None."""
    pixels = random_pictures(0, batch, engine.config.pixels.side)
    prompt, steps = engine.prompts[0], []
    for i in range(_STEPS + 2):  # two warm up: one captures graphs, one is the first with them
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            engine.decode(engine.encode(pixels), prompt)
            torch.cuda.synchronize()
        events = seen.events()
        spans = [Span(e.name, e.time_range.start, e.time_range.end) for e in events if e.device_type == DeviceType.CUDA]
        if i > 1:
            steps.append(step_of(spans, [e.name for e in events if e.device_type == DeviceType.CPU]))
    if trace:
        seen.export_chrome_trace(str(trace))
    return steps


def step_of(spans: Iterable[Span], host: Iterable[str]) -> Step:
    """One step from its spans on the device and the names of what the host called meanwhile."""
    ordered = sorted(spans, key=lambda span: span.start)
    assert ordered, "the profiler saw nothing on the device"
    busy, largest, end = 0.0, 0.0, ordered[0].start
    times: dict[str, list[float]] = defaultdict(list)
    for span in ordered:
        largest = max(largest, span.start - end)
        busy += max(0.0, span.end - max(span.start, end))
        end = max(end, span.end)
        times[span.name].append(span.end - span.start)
    kernels = sorted(((name, len(t), sum(t)) for name, t in times.items()), key=lambda k: -k[2])
    calls: dict[str, int] = defaultdict(int)
    for name in host:
        if name.startswith(_LAUNCHES):
            calls[name] += 1
    return Step(end - ordered[0].start, busy, largest, kernels, dict(calls))


def median_step(steps: Sequence[Step]) -> Step:
    """The step of median length."""
    return sorted(steps, key=lambda step: step.length)[len(steps) // 2]


def table(step: Step) -> str:
    """The longest kernels in markdown, then two lines: the step's length and launches, and its gaps."""
    rows = [
        [name[:80].replace("|", " "), str(count), f"{time:.0f}", f"{100 * time / step.length:.1f}"]
        for name, count, time in step.kernels[:_SHOWN]
    ]
    launches = sum(count for _, count, _ in step.kernels)
    calls = ", ".join(f"{count} {name}" for name, count in step.host_calls.items())
    return "\n".join(
        [
            markdown_table(["kernel or copy", "times", "us", "% of the step"], rows),
            f"step {step.length:.0f} us; {launches} kernels and copies, launched by {calls or 'nothing that was seen'}",
            f"gaps {100 * step.gap_share:.1f} % of the step, the largest {step.largest_gap:.0f} us",
        ]
    )


def as_json(step: Step) -> dict[str, Any]:
    """The step and the machine as the JSON has them."""
    return {
        "step_us": step.length,
        "busy_us": step.busy,
        "gap_share": step.gap_share,
        "largest_gap_us": step.largest_gap,
        "host_calls": step.host_calls,
        "kernels": [{"name": name, "times": count, "us": time} for name, count, time in step.kernels],
        "environment": environment(),
    }


if __name__ == "__main__":
    main()
