"""A precision and a device in, the fastest large matrix product on that device out.

    python -m qalign_bench.contestants.peak '<json>'

It is a contestant of its own (wire.py's messages, the command `peak`), so that the peak is taken between the others'
rounds, on the same machine at the same time. The fastest product is searched for once, for some seconds: all products
are tried on a small shape, and those that keep up on larger ones. From then on only the fastest is timed, briefly.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from qalign_bench.contestants.matrix_products import Product, Shape, products
from qalign_bench.contestants.wire import Handler, Message, serve
from qalign_bench.figures.spread import median

_SECONDS = 0.15  # the least time that is spent on a product at each timing
_LEAST = 2  # runs in that time
_LONGEST = 0.5  # seconds of one run: a product is not tried on a shape that would take it longer
_SLOWER = 3  # a product that is so many times as slow as the fastest is not tried further
_READ = 1 << 28  # bytes
# The smallest tells which products are worth trying. On a CPU the others have a vision tower's rows.
_SHAPES = {
    "cpu": ((256, 1024, 1024), (1024, 2048, 2048), (1024, 4096, 4096), (2048, 4096, 4096)),
    "cuda": ((2048, 4096, 4096), (8192, 8192, 8192), (16384, 4096, 4096)),
}


class _Timed(NamedTuple):
    gops: float
    by: str
    shape: Shape
    run: Product


class Peaks:
    """The fastest product of each precision on a device. The instruction set is that of our kernels."""

    def __init__(self, device: str, instruction_set: str | None = None) -> None:
        self._device, self._instruction_set = device, instruction_set
        self._fastest: dict[str, _Timed] = {}

    def peak(self, precision: str) -> Message:
        """{"gops", "by", "shape"} of the fastest product; GOP/s by the median of its runs now."""
        known = self._fastest.get(precision)
        found = self._timed(known.by, known.shape, known.run) if known else self._find(precision)
        self._fastest[precision] = found
        return {"gops": found.gops, "by": found.by, "shape": found.shape}

    def _find(self, precision: str) -> _Timed:
        makers = products(precision, self._device, self._instruction_set)
        rates = dict.fromkeys(makers, math.inf)  # GOP/s on the largest shape so far
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
    """GB/s at which one pass reads a tensor that is larger than any cache."""
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
    """A contestant that answers `peak`. The spec has "device", "threads" and "instruction_set"."""
    device = spec["device"]
    if spec["threads"] is not None:
        torch.set_num_threads(spec["threads"])
    ready = {"name": "peak", "device": device, "versions": {"torch": torch.__version__}}
    peaks = Peaks(device, spec["instruction_set"])
    return ready, {"peak": lambda command: peaks.peak(command["precision"])}


if __name__ == "__main__":
    serve(load)
