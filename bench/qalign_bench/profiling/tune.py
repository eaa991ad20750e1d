"""A GPU in, the fastest tiles found for the model's products out: what fills qalign_kernels/cuda/triton_tiles.json.

    qalign-fast bench operations --tune        or, with what gpu.sh asks:
    python -m qalign_bench.profiling.tune --json OUT [--seconds 120] [--form int8] [--batch 64] [--table]
        [--device cuda]

Every product of OneAlign's, largest share of the arithmetic first, each at all batches before the next one, in each way
that may suit it (`ways`), with the bias, activation and residual that it has in the model, until the time is over.
After each product the JSON and the table are written: an interruption loses one. Other cores compile ahead.

A time is the median of replays of a graph of launches over as many weights as no cache holds, so that weights come from
memory, as in the model. What gives another result than the rule's tile is not taken.

On a CPU (Triton's interpreter, TRITON_INTERPRET=1) the shapes are shrunk and the times mean nothing: it is for trying
the program, and writes no table.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.errors import TritonError

import qalign_kernels
from qalign_bench.figures.environment import environment
from qalign_bench.figures.report import markdown_table
from qalign_bench.figures.spread import median
from qalign_export.parameters import ONE_ALIGN
from qalign_fast.families.mplug_owl2.sizes import ModelConfig
from qalign_kernels.contract.linear import Weight, pack_int4
from qalign_kernels.contract.precisions import BLOCK, GROUP
from qalign_kernels.contract.quantized_rows import E4M3, QuantizedRows
from qalign_kernels.cuda.ahead import Pool
from qalign_kernels.cuda.launch import Device, Epilogue, cdiv
from qalign_kernels.cuda.linear import as_read, linear
from qalign_kernels.cuda.runtime import device_of, interprets
from qalign_kernels.cuda.tiles import Shares, Tile, table_key, tile_by_rule, tiles_for
from qalign_kernels.cuda.torch_product import has_product

FORMS = ("int8", "int4", "float16", "float8_e4m3fn")
BATCHES = (1, 8, 64)
SECONDS = 120.0
TABLE = Path(qalign_kernels.__file__).parent / "cuda/triton_tiles.json"
Launch = Callable[[], Tensor]
Keep = Callable[[list["Timing"], dict[str, Any]], None]  # all so far, and the same as JSON with what timed it
Clock = Callable[[Sequence[Launch]], float]  # launches -> the seconds that one of them takes
_BYTES = {"int8": 1, "int4": 1, "float16": 2, "float8_e4m3fn": 1}  # of a value that tensor cores read
_STORED = _BYTES | {"int4": 0.5}  # and of a weight in memory
_FP8_SINCE = 89
_COLD = 256 << 20  # bytes of weights gone through before one is read again: five times an H100's cache
_MOST_WORK = 1e12  # FLOP of what is timed at once: where there is that much, the weights' way hardly matters
_REPLAYS = 5
_SHRINK = 128  # of every size, on a CPU


class Shape(NamedTuple):
    """M rows, K inputs, N output channels."""

    m: int
    k: int
    n: int


class Product(NamedTuple):
    """A shape and what comes after it in the model."""

    shape: Shape
    bias: bool = False
    gelu: bool = False
    residual: bool = False


class Way(NamedTuple):
    """How a product may be computed."""

    by: str  # "rule", "candidate" or "torch"
    tile: Tile | None


@dataclass(frozen=True)
class Timing:
    """One tile, or no tile: torch's own product; seconds are null where it does not run."""

    form: str
    m: int
    k: int
    n: int
    by: str
    tile: list[int] | None
    seconds: float | None
    tops: float | None
    error: str | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--form", action="append", choices=FORMS, help="default: all")
    parser.add_argument("--batch", action="append", type=int, help=f"default: {BATCHES}")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="after which no other shape is begun")
    parser.add_argument("--json", type=Path, required=True, help="all timings")
    parser.add_argument("--table", action="store_true", help="put the fastest tiles into qalign_kernels")
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
        sys.exit("no time was left for a single product")


def tune(
    place: str,
    seconds: float = SECONDS,
    forms: Sequence[str] | None = None,
    batches: Sequence[int] | None = None,
    keep: Keep = lambda timings, found: None,
) -> tuple[list[Timing], dict[str, Any]]:
    """What was timed, and the same as JSON with what timed it; `keep` gets these after each product."""
    device, about = torch.device(place), environment()
    cuda = device.type == "cuda"
    facts = device_of(device) if cuda else Device(90, 132, 227 * 1024)
    batches = batches or BATCHES
    forms = forms or [form for form in FORMS if form != "float8_e4m3fn" or facts.capability >= _FP8_SINCE]

    def found(timings: list[Timing]) -> dict[str, Any]:
        return {
            "device": torch.cuda.get_device_name(device) if cuda else "CPU, shapes shrunk: no measurement",
            "facts": facts._asdict(),
            "environment": about,
            "times": [asdict(t) for t in timings],
        }

    products = by_matrix(batches)
    if not cuda:
        products = [[p._replace(shape=shrunk(p.shape)) for p in group] for group in products]
    clock = graph_clock if cuda else plain_clock
    with Pool("qalign_bench.profiling.tune:walk", facts, (forms, batches), 0 if interprets() else None) as pool:
        timings: list[Timing] = []
        for timings in sweep(facts, products, forms, device, clock, seconds, pool):
            keep(timings, found(timings))
    return timings, found(timings)


def by_matrix(batches: Sequence[int]) -> list[list[Product]]:
    """The model's products, by those of the same weights and rows a picture at each of the batches."""
    every = [model_products(ONE_ALIGN, [batch]) for batch in batches]
    return [list(group) for group in zip(*every, strict=True)]


def shrunk(shape: Shape) -> Shape:
    return Shape(*(max(16, size // _SHRINK // 16 * 16) for size in shape))


def walk(facts: Device, forms: Sequence[str], batches: Sequence[int]) -> Iterator[object]:
    """What the sweep will launch, on tensors that hold no data: what a pool compiles."""
    shares = Shares.of(facts, torch.device("meta"))
    for form, group in product(forms, by_matrix(batches)):
        for what in group:
            subject = make_subject(what, form, torch.device("meta"))
            for way in ways(facts, what.shape, form):
                with suppress(RuntimeError, TritonError):  # the sweep will say so
                    linear(subject.rows, subject.weights[0], way.tile, subject.epilogue, shares)
        yield form, group


def model_products(config: ModelConfig, batches: Sequence[int]) -> list[Product]:
    """What linears compute at those batches: for each batch by arithmetic in a forward, the most first."""
    vision, abstractor, decoder = config.vision, config.abstractor, config.decoder
    v, d, visual, text = vision.width, decoder.width, abstractor.tokens, 12  # quality's suffix
    of_vision = [(v, 3 * v), (v, v), (v, vision.mlp), (vision.mlp, v)]
    of_decoder = [(d, d), (d, d), (d, 2 * decoder.mlp), (decoder.mlp, d)]
    uses = [
        *((vision.layers, vision.tokens, k, n) for k, n in of_vision),
        (1, vision.tokens, v, 2 * abstractor.width * abstractor.layers),
        *((decoder.layers, visual + text, k, n) for k, n in of_decoder),
        (decoder.layers, visual, d, 2 * d),
        (decoder.layers, text, d, 2 * d),
        (decoder.layers, visual + text, d, 3 * d),  # q with k and v of each modality, where they are one product
    ]
    work: Counter[tuple[int, int, int]] = Counter()
    for times, *shape in uses:
        work[shape[0], shape[1], shape[2]] += times * shape[0] * shape[1] * shape[2]
    return [as_used(config, Shape(batch * m, k, n)) for batch in batches for (m, k, n), _ in work.most_common()]


def as_used(config: ModelConfig, shape: Shape) -> Product:
    """Where two linears have the shape, as q and o do, as the one that does more."""
    v, d, (_, k, n) = config.vision.width, config.decoder.width, shape
    of_vision = v in (k, n)
    return Product(shape, bias=of_vision, gelu=(k, n) == (v, config.vision.mlp), residual=n == (v if of_vision else d))


def sweep(
    facts: Device,
    products: Sequence[Sequence[Product]],
    forms: Sequence[str],
    device: torch.device,
    clock: Clock,
    seconds: float,
    pool: Pool | None = None,
) -> Iterator[list[Timing]]:
    """Gives all timings so far after each product."""
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
    """What a product is computed of."""

    rows: Tensor | QuantizedRows
    weights: list[Weight]
    epilogue: Epilogue


def make_subject(what: Product, form: str, device: torch.device) -> Subject:
    torch.manual_seed(0)
    shape = what.shape
    weights = make_weights(what, form, device)
    x = torch.randn(shape.m, shape.k, device=device).half()
    residual = torch.randn(shape.m, shape.n, device=device).half() if what.residual else None
    epilogue = Epilogue(torch.float16, "quick_gelu" if what.gelu else None, residual)
    return Subject(as_read(x, weights[0]), weights, epilogue)


def ways(facts: Device, shape: Shape, form: str) -> list[Way]:
    """All that may be fast: the rule's tile first, then Triton's where that is another."""
    rule, plain = tile_by_rule(facts, form, *shape), tiles_for(facts, form, *shape)[-1]
    tiles = dict.fromkeys((rule, plain, *hopper_candidates(facts, shape, form), *candidates(facts, shape, form)))
    found = [Way("rule" if tile == rule else "candidate", tile) for tile in tiles]
    return [*found, Way("torch", None)] if has_product(facts.capability, form, *shape) else found


def time_product(facts: Device, what: Product, form: str, device: torch.device, clock: Clock) -> Iterator[Timing]:
    rows, weights, epilogue = make_subject(what, form, device)
    shares = Shares.of(facts, device)
    expected = linear(rows, weights[0], tiles_for(facts, form, *what.shape)[-1], epilogue, shares)
    for way in ways(facts, what.shape, form):
        launches = [lambda w=w, tile=way.tile: linear(rows, w, tile, epilogue, shares) for w in weights]
        yield _time(what.shape, form, way.by, way.tile, launches, clock, expected)


def _time(
    shape: Shape,
    form: str,
    by: str,
    tile: Tile | None,
    launches: Sequence[Launch],
    clock: Clock,
    expected: Tensor,
) -> Timing:
    listed = None if tile is None else list(tile)
    try:
        y = launches[0]()
        if not torch.allclose(y, expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max())):
            return Timing(form, *shape, by, listed, None, None, "another result than Triton's tile gives")
        seconds = clock(launches)
    except (RuntimeError, TritonError) as error:  # too large for the device, most often
        return Timing(form, *shape, by, listed, None, None, f"{type(error).__name__}: {str(error).splitlines()[0]}")
    return Timing(form, *shape, by, listed, seconds, 2e-12 * shape.m * shape.k * shape.n / seconds)


def candidates(facts: Device, shape: Shape, form: str) -> Iterator[Tile]:
    """Tiles that fit the device, pad few rows and give enough programs; what is left is for the clock to say."""
    short, exact = shape.m <= 128, form in ("int8", "int4")
    sizes = (
        product((16, 32, 64, *([80] if form == "int4" else []), 128), (32, 64, 128))
        if short
        else ((64, 128), (128, 64), (128, 128), (128, 256), (256, 128))
    )
    steps = ((128, 3), (128, 4), (256, 3)) if short else ((64, 4), (128, 3), (128, 4))  # bytes of a row, stages
    for (rows, columns), (loaded, stages) in product(sizes, steps):
        sums = rows * columns * (2 if form == "float8_e4m3fn" else 1)
        if form == "int4" and loaded != BLOCK:
            continue
        if form == "float8_e4m3fn" and loaded > 128:  # more would be summed in the tensor cores' precision
            continue
        step = rows * loaded + columns * loaded * _STORED[form] / _BYTES[form]
        if rows >= max(32, 2 * shape.m) or step * stages > facts.shared:
            continue
        tiles = cdiv(shape.m, rows) * cdiv(shape.n, columns)
        for splits in (1, 2, 4) if exact and short and tiles <= facts.processors else (1,):
            if short and 2 * tiles * splits < facts.processors and columns > 32:
                continue
            for warps in (4, 8) if sums > 64 * 128 else (4,):  # with 4 two programs may share a processor
                if sums // (32 * warps) <= 128:  # registers of a thread that hold sums
                    yield Tile(rows, columns, loaded // _BYTES[form], stages, warps, splits)


def hopper_candidates(facts: Device, shape: Shape, form: str) -> Iterator[Tile]:
    """`linear_hopper`'s, where the rule takes it."""
    if tile_by_rule(facts, form, *shape).hopper:
        for rows, columns, stages, warps in product((64, 128, 256), (64, 128), (3, 4), (4, 8)):
            if rows == 32 * warps or (rows, warps) == (64, 4):
                yield Tile(rows, columns, 128, stages, warps, hopper=True)


def make_weights(what: Product, form: str, device: torch.device) -> list[Weight]:
    """As many as no cache holds at once."""
    shape = what.shape
    size = shape.k * shape.n * _STORED[form]
    most = int(_MOST_WORK / (2 * shape.m * shape.k * shape.n))
    copies = 1 if device.type in ("cpu", "meta") else min(1 + int(_COLD / size), max(2, most))
    return [make_weight(what, form, device) for _ in range(copies)]


def make_weight(what: Product, form: str, device: torch.device) -> Weight:
    _, k, n = what.shape
    bias = torch.randn(n, device=device) if what.bias else None
    if form == "float16":
        return Weight(form, torch.randn(n, k, device=device).half(), None, None, None if bias is None else bias.half())
    if form == "float8_e4m3fn":
        return Weight(form, torch.randn(n, k, device=device).to(E4M3), torch.rand(n, device=device) / 1000, None, bias)
    if form == "int8":
        codes = torch.randint(-127, 128, (n, k), dtype=torch.int8, device=device)
        return Weight(form, codes, torch.rand(n, device=device) / 1000, None, bias)
    groups = cdiv(k, BLOCK) * BLOCK // GROUP
    codes = torch.randint(0, 16, (n, groups * GROUP), dtype=torch.uint8, device=device)
    codes[:, k:] = 0
    multiplier = torch.randint(1, 9, (n, groups), dtype=torch.uint8, device=device)
    zero = torch.randint(0, 16, (n, groups), dtype=torch.uint8, device=device)
    packed, of_groups = pack_int4(codes, multiplier, zero)
    return Weight(form, packed, torch.rand(n, device=device) / 1000, of_groups, bias)


def graph_clock(launches: Sequence[Launch]) -> float:
    """By events around replays of a graph of all of them: launching costs more than the smallest products take."""
    torch.cuda.synchronize()
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):  # torch.cuda.graph() would collect garbage for every tile
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
    started = time.perf_counter()
    for launch in launches:
        launch()
    return (time.perf_counter() - started) / len(launches)


def fastest(timings: Sequence[Timing]) -> dict[tuple[str, Shape], Timing]:
    """Of each form and shape, our tiles and torch's own product alike."""
    found: dict[tuple[str, Shape], Timing] = {}
    for t in timings:
        key = t.form, Shape(t.m, t.k, t.n)
        if t.seconds is not None:
            known = found.get(key)
            if known is None or known.seconds is None or t.seconds < known.seconds:
                found[key] = t
    return found


def with_fastest(table: dict[str, Any], facts: Device, timings: Sequence[Timing]) -> dict[str, Any]:
    """The table with these in place of what it had for the same form and shape on that device, by this Triton."""
    of_device = dict(table.get(table_key(facts), {}))
    for (form, shape), t in fastest(timings).items():
        others = [line for line in of_device.get(form, []) if line[:3] != list(shape)]
        of_device[form] = sorted([*others, [*shape, *(t.tile or [])]], key=lambda line: (line[1:3], line[0]))
    return table | {table_key(facts): of_device}


def write_table(facts: dict[str, int], timings: Sequence[Timing]) -> None:
    """Puts the fastest into the table that products are run by."""
    TABLE.write_text(table_text(with_fastest(json.loads(TABLE.read_text()), Device(**facts), timings)))


def table_text(table: dict[str, Any]) -> str:
    """JSON, a product a line."""
    devices = []
    for key, forms in sorted(table.items()):
        parts = [
            f'  "{form}": [\n' + ",\n".join(f"   {json.dumps(line)}" for line in lines) + "\n  ]"
            for form, lines in forms.items()
        ]
        devices.append(f' "{key}": {{\n' + ",\n".join(parts) + "\n }")
    return "{\n" + ",\n".join(devices) + "\n}\n" if devices else "{}\n"


def summary(timings: Sequence[Timing]) -> str:
    """The fastest tile of each product beside the rule's and torch's own."""
    rows = []
    for (form, shape), best in fastest(timings).items():
        same = [t for t in timings if (t.form, t.m, t.k, t.n) == (form, *shape)]
        rule = next(t for t in same if t.by == "rule")
        own = next((t for t in same if t.tile is None), None)
        tile = tile_text(best.tile)
        product_name = " x ".join(map(str, shape))
        rows.append([form, product_name, tile, _micro(best), _tops(best), _micro(rule), _micro(own) if own else "-"])
    header = ["form", "M x K x N", "tile", "us", "TOPS", "us by rule", "us of torch"]
    return markdown_table(header, rows)


def tile_text(tile: Sequence[Any] | None) -> str:
    """Rows, columns, inputs, stages, warps, and what is unusual."""
    if tile is None:
        return "torch"
    *sizes, splits, hopper = Tile(*tile)
    return " ".join(map(str, sizes)) + f", {splits} parts" * (splits > 1) + ", Hopper's" * hopper


def _micro(t: Timing) -> str:
    return "-" if t.seconds is None else f"{1e6 * t.seconds:.1f}"


def _tops(t: Timing) -> str:
    return "-" if t.tops is None else f"{t.tops:.0f}"


if __name__ == "__main__":
    main()
