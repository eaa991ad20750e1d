"""A precision and a device in, the fastest large matrix product found there out: python -m qalign_bench.roof '<json>'.

It is a contestant of its own (wire.py's messages, the command `peak`), so that the peak is taken between the others'
rounds, on the same machine at the same time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeAlias

import torch

from qalign_bench.spread import median
from qalign_bench.wire import Handler, Message, serve
from qalign_kernels.linear import Weight
from qalign_kernels.native_ops import load_native

Product: TypeAlias = Callable[[], object]
Maker: TypeAlias = Callable[[int, int, int, str], Product]  # rows, inputs, outputs, device -> a product of random data

_SECONDS = 0.15  # spent on each product in a round, at least
_LEAST = 3  # runs of each
_READ = 1 << 28  # bytes
# Rows, inputs, outputs. The first is what a vision tower gives, the others what a library likes best.
_SHAPES = {"cpu": ((1024, 4096, 4096), (2048, 4096, 4096)), "cuda": ((8192, 8192, 8192), (16384, 4096, 4096))}


def _int_mm(rows: int, inputs: int, outputs: int, device: str) -> Product:
    x = torch.randint(-127, 128, (rows, inputs), dtype=torch.int8, device=device)
    w = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8, device=device).t()
    return lambda: torch._int_mm(x, w)


def _matmul(dtype: torch.dtype) -> Maker:
    def make(rows: int, inputs: int, outputs: int, device: str) -> Product:
        x = torch.randn(rows, inputs, device=device).to(dtype)
        w = torch.randn(outputs, inputs, device=device).to(dtype).t()
        return lambda: x @ w

    return make


def _scaled_mm(rows: int, inputs: int, outputs: int, device: str) -> Product:
    """With one scale for all: a scale for each row and channel costs a little more."""
    x = torch.randn(rows, inputs, device=device).to(torch.float8_e4m3fn)
    w = torch.randn(outputs, inputs, device=device).to(torch.float8_e4m3fn).t()
    one = torch.ones((), device=device)
    return lambda: torch._scaled_mm(x, w, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)


def _native(device: str, instruction_set: str | None) -> dict[str, Maker]:
    """Our own int8 linear, rounding of the rows included, where it was built."""
    ops = load_native(instruction_set) if device == "cpu" else None
    if ops is None:
        return {}

    def make(rows: int, inputs: int, outputs: int, _: str) -> Product:
        x, scale = torch.randn(rows, inputs), torch.rand(outputs)
        weight = Weight("", torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8), scale)
        return lambda: ops.linear(x, weight)

    return {"qalign_kernels": make}


# precision -> by what is measured
PRODUCTS: dict[str, dict[str, Maker]] = {
    "int8": {"torch._int_mm": _int_mm},
    "fp8": {"torch._scaled_mm": _scaled_mm},
    "bf16": {"torch.matmul": _matmul(torch.bfloat16)},
    "fp16": {"torch.matmul": _matmul(torch.float16)},
    "fp32": {"torch.matmul": _matmul(torch.float32)},
}


def peak(precision: str, device: str, instruction_set: str | None = None) -> Message:
    """{"gops", "by", "shape"} of the fastest product: the median of its runs. The instruction set is our kernels'."""
    kind = device.partition(":")[0]
    precision = "fp32" if (kind, precision) == ("cpu", "fp8") else precision  # what a CPU multiplies fp8 in
    ours = _native(device, instruction_set) if precision == "int8" else {}
    found = []
    for by, make in (PRODUCTS[precision] | ours).items():
        for shape in _SHAPES[kind]:
            rows, inputs, outputs = shape
            seconds = _time(make(*shape, device), kind == "cuda")
            found.append({"gops": 2e-9 * rows * inputs * outputs / seconds, "by": by, "shape": shape})
    return max(found, key=lambda entry: entry["gops"])


def bandwidth(device: str) -> float:
    """GB/s at which one pass reads a tensor that no cache holds."""
    x = torch.ones(_READ // 4, device=device)
    return 1e-9 * _READ / _time(x.sum, device.startswith("cuda"))


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
    return ready, {"peak": lambda command: peak(command["precision"], device, spec["instruction_set"])}


if __name__ == "__main__":
    serve(load)
