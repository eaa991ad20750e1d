"""Finds the fastest tiles for the model's products on a GPU, and fills qalign_kernels/cuda/triton_tiles.json.

    qalign-fast bench operations --tune        or, with what gpu.sh asks:
    python -m qalign_bench.profiling.tune --json OUT [--seconds 120] [--form int8] [--batch 64] [--table]
        [--device cuda]

It goes through OneAlign's products, those with the largest share of the arithmetic first. Each product is timed at all
batches before the next one, in each way that may suit it (`ways`), with the bias, activation and residual that it has
in the model, until the time is over. The JSON and the table are written after each product, so an interruption loses
one. Other cores compile ahead.

A time is the median of replays of a graph of launches. The launches use more weights than any cache holds, so that
weights come from memory, as in the model. A tile that gives another result than the rule's tile is not taken.

On a CPU (Triton's interpreter, TRITON_INTERPRET=1) the shapes are shrunk and the times mean nothing. That is for trying
the program and writes no table.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.errors import TritonError

from qalign_bench.figures.environment import environment
from qalign_bench.profiling.launch_clock import Clock, Launch, clock_of, device_name
from qalign_bench.profiling.model_products import BATCHES, Product, Shape, by_matrix, shrunk
from qalign_bench.profiling.random_weights import make_weights
from qalign_bench.profiling.tile_candidates import ways
from qalign_bench.profiling.tile_timings import Timing, summary, write_table
from qalign_kernels.contract.precisions import PRECISIONS
from qalign_kernels.contract.quantized_rows import QuantizedRows
from qalign_kernels.contract.weight import Weight
from qalign_kernels.cuda.ahead import Pool
from qalign_kernels.cuda.launch import Device, Epilogue
from qalign_kernels.cuda.linear import as_read, linear
from qalign_kernels.cuda.runtime import device_of, interprets
from qalign_kernels.cuda.tiles import Shares, Tile, tiles_for

FORMS = ("int8", "int4", "float16", "float8_e4m3fn")
SECONDS = 120.0
# all timings so far, and the JSON of them and the machine
Keep = Callable[[list[Timing], dict[str, Any]], None]
_SINCE = {precision.weight: precision.capability for precision in PRECISIONS.values()}  # by form


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--form", action="append", choices=FORMS, help="of weights; default: all that the GPU has")
    parser.add_argument("--batch", action="append", type=int, help=f"default: {BATCHES}")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="no other product is begun after so many")
    parser.add_argument("--json", type=Path, required=True, help="all timings")
    parser.add_argument("--table", action="store_true", help="write the fastest tiles into qalign_kernels")
    options = parser.parse_args()
    kept: list[Timing] = []

    def keep(timings: list[Timing], found: dict[str, Any]) -> None:
        kept[:] = timings
        options.json.write_text(json.dumps(found, indent=1) + "\n")
        if options.table and options.device != "cpu":
            write_table(found["facts"], timings)

    try:
        tune(options.device, options.seconds, options.form, options.batch, keep)
    finally:
        print(summary(kept), flush=True)
    if not kept:
        sys.exit("no product was timed: the time was over before; give more --seconds")


def tune(
    place: str,
    seconds: float = SECONDS,
    forms: Sequence[str] | None = None,
    batches: Sequence[int] | None = None,
    keep: Keep = lambda timings, found: None,
) -> tuple[list[Timing], dict[str, Any]]:
    """Times the products on "cuda:N" or "cpu" and returns the timings, and the JSON of them and the machine.

    `seconds`: after so many no other product is begun. None: all forms that the device has, and BATCHES. `keep` gets
    all so far after each product.
    """
    device, about = torch.device(place), environment()
    cuda = device.type == "cuda"
    facts = device_of(device) if cuda else Device(90, 132, 227 * 1024)
    batches = batches or BATCHES
    forms = forms or [form for form in FORMS if divmod(facts.capability, 10) >= _SINCE.get(form, (8, 0))]

    def found(timings: list[Timing]) -> dict[str, Any]:
        return {
            "device": device_name(device),
            "facts": facts._asdict(),
            "environment": about,
            "times": [asdict(t) for t in timings],
        }

    products = by_matrix(batches)
    if not cuda:
        products = [[p._replace(shape=shrunk(p.shape)) for p in group] for group in products]
    clock = clock_of(device)
    with Pool("qalign_bench.profiling.tune:walk", facts, (forms, batches), 0 if interprets() else None) as pool:
        timings: list[Timing] = []
        for timings in sweep(facts, products, forms, device, clock, seconds, pool):
            keep(timings, found(timings))
    return timings, found(timings)


def walk(facts: Device, forms: Sequence[str], batches: Sequence[int]) -> Iterator[object]:
    """Launches all that the sweep will launch, on tensors that hold no data. A pool compiles it."""
    shares = Shares.of(facts, torch.device("meta"))
    for form, group in product(forms, by_matrix(batches)):
        for what in group:
            subject = make_subject(what, form, torch.device("meta"))
            for way in ways(facts, what.shape, form):
                with suppress(RuntimeError, TritonError):  # the sweep will report it
                    linear(subject.rows, subject.weights[0], way.tile, subject.epilogue, shares)
        yield form, group


def sweep(
    facts: Device,
    products: Sequence[Sequence[Product]],
    forms: Sequence[str],
    device: torch.device,
    clock: Clock,
    seconds: float,
    pool: Pool | None = None,
) -> Iterator[list[Timing]]:
    """Times products on the device and yields all timings so far after each one; `pool` compiles ahead."""
    end = time.monotonic() + seconds
    timings: list[Timing] = []
    for i, (form, group) in enumerate(product(forms, products)):
        if time.monotonic() > end:
            print(f"out of time before {form} {[tuple(what.shape) for what in group]}", file=sys.stderr)
            return
        if pool:
            pool.wait(i + 1, end - time.monotonic())
        for what in group:
            timings += time_product(facts, what, form, device, clock)
        yield timings


class Subject(NamedTuple):
    """The tensors that a product is computed from."""

    rows: Tensor | QuantizedRows
    weights: list[Weight]
    epilogue: Epilogue


def make_subject(what: Product, form: str, device: torch.device) -> Subject:
    """Random rows, weights and epilogue of a product, as the model has them."""
    torch.manual_seed(0)
    shape = what.shape
    weights = make_weights(what, form, device)
    x = torch.randn(shape.m, shape.k, device=device).half()
    residual = torch.randn(shape.m, shape.n, device=device).half() if what.residual else None
    epilogue = Epilogue(torch.float16, "quick_gelu" if what.gelu else None, residual)
    return Subject(as_read(x, weights[0]), weights, epilogue)


def time_product(facts: Device, what: Product, form: str, device: torch.device, clock: Clock) -> Iterator[Timing]:
    """A timing for each way to compute a product."""
    rows, weights, epilogue = make_subject(what, form, device)
    shares = Shares.of(facts, device)
    expected = linear(rows, weights[0], tiles_for(facts, form, *what.shape)[-1], epilogue, shares)
    for way in ways(facts, what.shape, form):
        launches = [lambda w=w, tile=way.tile: linear(rows, w, tile, epilogue, shares) for w in weights]
        yield _time(what.shape, form, way.by, way.tile, launches, clock, expected)


def _time(
    shape: Shape, form: str, by: str, tile: Tile | None, launches: Sequence[Launch], clock: Clock, expected: Tensor
) -> Timing:
    listed = None if tile is None else list(tile)
    try:
        y = launches[0]()
        if not torch.allclose(y, expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max())):
            return Timing(form, *shape, by, listed, None, None, "another result than Triton's tile gives")
        seconds = clock(launches)
    except (RuntimeError, TritonError) as error:  # most often the tile is too large for the device
        return Timing(form, *shape, by, listed, None, None, f"{type(error).__name__}: {str(error).splitlines()[0]}")
    return Timing(form, *shape, by, listed, seconds, 2e-12 * shape.m * shape.k * shape.n / seconds)


if __name__ == "__main__":
    main()
