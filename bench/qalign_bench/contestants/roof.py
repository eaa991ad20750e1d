"""A precision and a device in, the fastest large matrix product found there out.

    python -m qalign_bench.contestants.roof '<json>'

It is a contestant of its own (wire.py's messages, the command `peak`), so that the peak is taken between the others'
rounds, on the same machine at the same time. Which product is the fastest is found once, in seconds: all that there are
are tried on a small shape, and what keeps up is on larger ones. From then on it alone is timed, and briefly.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from qalign_bench.contestants.products import Product, Shape, products
from qalign_bench.contestants.wire import Handler, Message, serve
from qalign_bench.figures.spread import median

_SECONDS = 0.15  # spent on a product at each timing, at least
_LEAST = 2  # runs in that
_LONGEST = 0.5  # seconds of one run: a shape that would take a product longer is not tried on it
_SLOWER = 3  # times as slow as the fastest one: not tried further
_READ = 1 << 28  # bytes
# The smallest tells which are worth trying; a vision tower's rows for a CPU; the largest are what libraries like best.
_SHAPES = {
    "cpu": ((256, 1024, 1024), (1024, 2048, 2048), (1024, 4096, 4096), (2048, 4096, 4096)),
    "cuda": ((2048, 4096, 4096), (8192, 8192, 8192), (16384, 4096, 4096)),
}


class _Timed(NamedTuple):
    gops: float
    by: str
    shape: Shape
    run: Product


class Roof:
    """The fastest product of each precision on a device. The instruction set is our kernels'."""

    def __init__(self, device: str, instruction_set: str | None = None) -> None:
        self._device, self._instruction_set = device, instruction_set
        self._fastest: dict[str, _Timed] = {}

    def peak(self, precision: str) -> Message:
        """{"gops", "by", "shape"} by the median of its runs now."""
        known = self._fastest.get(precision)
        found = self._timed(known.by, known.shape, known.run) if known else self._find(precision)
        self._fastest[precision] = found
        return {"gops": found.gops, "by": found.by, "shape": found.shape}

    def _find(self, precision: str) -> _Timed:
        makers = products(precision, self._device, self._instruction_set)
        rates = dict.fromkeys(makers, math.inf)  # GOP/s on the largest shape that was tried
        found: list[_Timed] = []
        for shape in _SHAPES[self._device.partition(":")[0]]:
            enough = max(max(rates.values()) / _SLOWER, _gop(shape) / _LONGEST)
            for by in [by for by, rate in rates.items() if rate >= enough]:
                found.append(self._timed(by, shape, makers[by](shape)))
                rates[by] = found[-1].gops
        return max(found)

    def _timed(self, by: str, shape: Shape, run: Product) -> _Timed:
        return _Timed(_gop(shape) / _time(run, self._device.startswith("cuda")), by, shape, run)


def bandwidth(device: str) -> float:
    """GB/s at which one pass reads a tensor that no cache holds."""
    x = torch.ones(_READ // 4, device=device)
    return 1e-9 * _READ / _time(x.sum, device.startswith("cuda"))


def _gop(shape: Shape) -> float:
    return 2e-9 * math.prod(shape)


def _time(product: Product, cuda: bool) -> float:
    """The median seconds of a run."""
    settle: Callable[[], None] = torch.cuda.synchronize if cuda else lambda: None
    product()
    settle()
    times: list[float] = []
    while len(times) < _LEAST or sum(times) < _SECONDS:
        started = time.perf_counter()
        product()
        settle()
        times.append(time.perf_counter() - started)
    return median(times)


def load(spec: Message) -> tuple[Message, dict[str, Handler]]:
    device = spec["device"]
    if spec["threads"] is not None:
        torch.set_num_threads(spec["threads"])
    ready = {"name": "peak", "device": device, "versions": {"torch": torch.__version__}}
    roof = Roof(device, spec["instruction_set"])
    return ready, {"peak": lambda command: roof.peak(command["precision"])}


if __name__ == "__main__":
    serve(load)
