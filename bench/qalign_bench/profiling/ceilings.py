"""A GPU in, the rates that its libraries reach at the model's own shapes out, to compare our kernels with.

    python -m qalign_bench.profiling.ceilings --json OUT [--batch 64] [--device cuda]

It times torch's products in float16, int8 and E4M3 (with a scale for each row and channel, in slow and fast
accumulation), without what follows them in the model; attention by each of torch's backends at the vision tower's
shape; and a copy. The JSON is written after each. Times are taken as in `tune`. On a CPU shapes are shrunk and times
mean nothing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from qalign_bench.figures.environment import environment
from qalign_bench.figures.report import markdown_table, number
from qalign_bench.profiling.launch_clock import Launch, clock_of, device_name
from qalign_bench.profiling.model_products import BATCHES, Product, by_matrix, shrunk
from qalign_bench.profiling.random_weights import make_weights
from qalign_kernels.contract.attention import BACKENDS, attention_by
from qalign_kernels.contract.quantized_rows import E4M3
from qalign_kernels.contract.weight import Weight

Row: TypeAlias = dict[str, Any]  # what, by, shape, seconds, and tops or gbs; or an error
_COPIED = 1 << 30  # bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, action="append", help=f"default: {BATCHES}")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    device = torch.device(options.device)
    rows: list[Row] = []
    try:
        for row in measured(device, options.batch or BATCHES):
            rows.append(row)
            found = {"device": device_name(device), "environment": environment(), "rows": rows}
            options.json.write_text(json.dumps(found, indent=1) + "\n")
    finally:
        print(table(rows), flush=True)


def measured(device: torch.device, batches: Sequence[int]) -> Iterator[Row]:
    """A row for each subject, as it is measured. What the device or torch refuses has an error instead of seconds."""
    clock = clock_of(device)
    for what, by, shape, launches, rate, amount in subjects(device, batches):
        row: Row = {"what": what, "by": by, "shape": list(shape)}
        try:
            seconds = clock(launches())
        except RuntimeError as error:  # this GPU or this torch does not have it
            yield row | {"error": str(error).splitlines()[0]}
            continue
        yield row | {"seconds": seconds, rate: amount / seconds}


Subject: TypeAlias = tuple[str, str, Sequence[int], Callable[[], Sequence[Launch]], str, float]


def subjects(device: torch.device, batches: Sequence[int]) -> Iterator[Subject]:
    """What is timed, whose code it is, its shape, its launches, and the key and amount of its rate."""
    cuda = device.type == "cuda"
    size = _COPIED if cuda else 1 << 20
    yield "copy", "torch", (size,), lambda: copies(size, device), "gbs", 2e-9 * size
    for batch in batches:
        shape, heads = ((batch, 1025, 1024), 16) if cuda else ((1, 33, 128), 2)
        work = 4e-12 * shape[0] * shape[1] ** 2 * shape[2]
        for backend, name in BACKENDS.items():
            yield "attention", name, shape, partial(attentions, backend, shape, heads, device), "tops", work
    for group in by_matrix(batches):
        for plain in (Product(what.shape if cuda else shrunk(what.shape)) for what in group):
            for by, make in PRODUCTS.items():
                how = partial(make, plain, device)
                yield "product", by, plain.shape, how, "tops", 2e-12 * plain.shape.m * plain.shape.k * plain.shape.n


def copies(size: int, device: torch.device) -> list[Launch]:
    """A copy of `size` bytes in the device's memory."""
    x = torch.zeros(size, dtype=torch.uint8, device=device)
    y = torch.empty_like(x)
    return [lambda: y.copy_(x)]


def attentions(backend: SDPBackend, shape: tuple[int, ...], heads: int, device: torch.device) -> list[Launch]:
    """The engine's own call on float16 [B, T, D], by one of torch's kernels."""
    q, k, v = (torch.randn(shape, device=device).half() for _ in range(3))
    return ready([partial(attention_by, [backend], q, k, v, heads)])


def floats(what: Product, device: torch.device) -> list[Launch]:
    """torch's product in float16, a launch for each copy of the weight."""
    x = torch.randn(what.shape[:2], device=device).half()
    return ready([partial(torch.mm, x, w.weight.T) for w in make_weights(what, "float16", device)])


def bytes_(what: Product, device: torch.device) -> list[Launch]:
    """The same in int8 with int32 sums."""
    x = torch.randint(-127, 128, what.shape[:2], dtype=torch.int8, device=device)
    return ready([partial(torch._int_mm, x, w.weight.T) for w in make_weights(what, "int8", device)])


def scaled(fast: bool) -> Callable[[Product, torch.device], list[Launch]]:
    """The same in E4M3, with fast accumulation or without."""

    def make(what: Product, device: torch.device) -> list[Launch]:
        x = torch.randn(what.shape[:2], device=device).to(E4M3)
        scale = torch.ones(what.shape.m, 1, device=device)

        def run(w: Weight) -> Tensor:
            assert w.scale is not None
            return torch._scaled_mm(
                x, w.weight.T, scale_a=scale, scale_b=w.scale[None], out_dtype=torch.bfloat16, use_fast_accum=fast
            )

        return ready([partial(run, w) for w in make_weights(what, "float8_e4m3fn", device)])

    return make


def ready(launches: list[Launch]) -> list[Launch]:
    """Runs one launch, so that no library sets itself up while a graph is captured."""
    launches[0]()
    return launches


PRODUCTS = {
    "torch.mm, float16": floats,
    "torch._int_mm": bytes_,
    "torch._scaled_mm": scaled(fast=False),
    "torch._scaled_mm, fast": scaled(fast=True),
}


def table(rows: Sequence[Row]) -> str:
    """A markdown table with a line for each shape."""
    columns = list(dict.fromkeys(row["by"] for row in rows))
    shapes = dict.fromkeys((row["what"], tuple(row["shape"])) for row in rows)
    lines = []
    for what, shape in shapes:
        found = {row["by"]: row for row in rows if (row["what"], tuple(row["shape"])) == (what, shape)}
        used = [by for by in columns if by in found]
        cells = [f"{by}: {number(found[by].get('tops') or found[by].get('gbs')) or 'none'}" for by in used]
        lines.append([what, " x ".join(map(str, shape)), "; ".join(cells)])
    return markdown_table(["what", "shape", "TFLOPS, TOPS or GB/s"], lines)


if __name__ == "__main__":
    main()
