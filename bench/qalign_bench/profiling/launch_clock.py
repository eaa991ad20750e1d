"""Launches in, the seconds that one of them takes out: what `tune` and `ceilings` measure with."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from qalign_bench.figures.spread import median

Launch = Callable[[], Tensor]
Clock = Callable[[Sequence[Launch]], float]  # launches -> the seconds that one of them takes
_REPLAYS = 5


def clock_of(device: torch.device) -> Clock:
    """The clock for a device."""
    return graph_clock if device.type == "cuda" else plain_clock


def graph_clock(launches: Sequence[Launch]) -> float:
    """Times replays of a graph of all launches by events, for a launch costs more time than the smallest products."""
    torch.cuda.synchronize()
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):  # torch.cuda.graph() would run the garbage collector for every tile
        graph.capture_begin()
        for launch in launches:
            launch()
        graph.capture_end()
    graph.replay()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(_REPLAYS + 1)]  # type: ignore[no-untyped-call]
    for i, event in enumerate(events):
        if i:
            graph.replay()
        event.record()
    torch.cuda.synchronize()
    return median([a.elapsed_time(b) for a, b in pairwise(events)]) / 1e3 / len(launches)


def plain_clock(launches: Sequence[Launch]) -> float:
    """Times the launches one after another, by the host's clock."""
    started = time.perf_counter()
    for launch in launches:
        launch()
    return (time.perf_counter() - started) / len(launches)


def device_name(device: torch.device) -> str:
    """A GPU's name as the driver has it. For a CPU, that its times mean nothing."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, shapes shrunk: no measurement"
