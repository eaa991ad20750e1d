"""A GPU in, the fastest tiles found for the model's products out: what fills qalign_kernels/triton_tiles.json.

    python -m qalign_bench.tune --json OUT [--seconds 120] [--form int8] [--batch 64] [--table] [--device cuda]

Every product of OneAlign's at some batches, largest share of the arithmetic first, in each tile that may suit it, until
the time is over. A time is the median of replays of a graph of launches over as many weights as no cache holds, so that
weights come from memory, as in the model. A tile that gives another result than the rule's is not taken. Beside them:
torch's own products, int8 (torch._int_mm, without scales) and float16 (cuBLAS).

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
from dataclasses import asdict, dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.errors import TritonError

import qalign_kernels
from qalign_bench.environment import environment
from qalign_bench.report import markdown_table
from qalign_bench.spread import median
from qalign_export.source import ONE_ALIGN
from qalign_fast.config import ModelConfig
from qalign_kernels.linear import Weight, pack_nibbles, quantize_rows
from qalign_kernels.linear_triton import Epilogue, linear
from qalign_kernels.rows import Rows
from qalign_kernels.tiles import Tile, tile_by_rule
from qalign_kernels.triton_runtime import Device, cdiv

FORMS = ("int8", "int4", "float16")
BATCHES = (64, 1, 8)
TABLE = Path(qalign_kernels.__file__).with_name("triton_tiles.json")
Launch = Callable[[], Tensor]
Clock = Callable[[Sequence[Launch]], float]  # launches -> the seconds that one of them takes
_GROUP = 128
_BYTES = {"int8": 1, "int4": 1, "float16": 2}  # of a value that tensor cores read
_COLD = 256 << 20  # bytes of weights gone through before one is read again: five times an H100's cache
_MOST_WORK = 1e12  # FLOP of what is timed at once: where there is that much, the weights' way hardly matters
_REPLAYS = 5
_SHRINK = 32  # of every size, on a CPU


class Shape(NamedTuple):
    """M rows, K inputs, N output channels."""

    m: int
    k: int
    n: int


@dataclass(frozen=True)
class Timing:
    """One tile, or one of torch's own products ("by"), on one shape; seconds are null where it does not run."""

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
    parser.add_argument("--seconds", type=float, default=120, help="after which no other shape is begun")
    parser.add_argument("--json", type=Path, required=True, help="all timings")
    parser.add_argument("--table", action="store_true", help="put the fastest tiles into qalign_kernels")
    options = parser.parse_args()
    device = torch.device(options.device)
    cuda = device.type == "cuda"
    facts = Device.of(device) if cuda else Device(80, 108, 163 * 1024)
    shapes = model_shapes(ONE_ALIGN, options.batch or BATCHES)
    if not cuda:
        shapes = [Shape(*(max(16, size // _SHRINK) for size in shape)) for shape in shapes]
    timings = sweep(facts, shapes, options.form or FORMS, device, graph_clock if cuda else plain_clock, options.seconds)
    name = torch.cuda.get_device_name(device) if cuda else "CPU, shapes shrunk: no measurement"
    found = {
        "device": name,
        "facts": facts._asdict(),
        "environment": environment(),
        "times": [asdict(t) for t in timings],
    }
    options.json.write_text(json.dumps(found, indent=1) + "\n")
    print(summary(timings))
    if options.table and cuda:
        TABLE.write_text(table_text(with_fastest(json.loads(TABLE.read_text()), facts.capability, timings)))
    if not timings:
        sys.exit("no time was left for a single shape")


def model_shapes(config: ModelConfig, batches: Sequence[int]) -> list[Shape]:
    """What linears multiply at those batches: for each batch by arithmetic in a forward, the most first."""
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
    ]
    work: Counter[tuple[int, int, int]] = Counter()
    for times, *shape in uses:
        work[shape[0], shape[1], shape[2]] += times * shape[0] * shape[1] * shape[2]
    return [Shape(batch * m, k, n) for batch in batches for (m, k, n), _ in work.most_common()]


def sweep(
    facts: Device, shapes: Sequence[Shape], forms: Sequence[str], device: torch.device, clock: Clock, seconds: float
) -> list[Timing]:
    end = time.monotonic() + seconds
    timings: list[Timing] = []
    for shape, form in product(shapes, forms):
        if time.monotonic() > end:
            print(f"out of time before {form} {tuple(shape)}", file=sys.stderr)
            break
        timings += time_shape(facts, shape, form, device, clock)
    return timings


def time_shape(facts: Device, shape: Shape, form: str, device: torch.device, clock: Clock) -> Iterator[Timing]:
    torch.manual_seed(0)
    weights = make_weights(shape, form, device)
    x = torch.randn(shape.m, shape.k, device=device).half()
    rows = Rows(*quantize_rows(x.float())) if form == "int8" else x
    epilogue = Epilogue(torch.float16)
    rule = tile_by_rule(facts, form, shape.m, shape.n)
    expected = linear(rows, weights[0], rule, epilogue)
    for tile in [rule, *(tile for tile in candidates(facts, shape, form) if tile != rule)]:
        launches = [lambda w=w, tile=tile: linear(rows, w, tile, epilogue) for w in weights]
        yield _time(shape, form, "rule" if tile == rule else "candidate", tile, launches, clock, expected)
    for by, launch in torchs_own(form, rows, weights):
        yield _time(shape, form, by, None, launch, clock, None)


def _time(
    shape: Shape,
    form: str,
    by: str,
    tile: Tile | None,
    launches: Sequence[Launch],
    clock: Clock,
    expected: Tensor | None,
) -> Timing:
    listed = None if tile is None else list(tile)
    try:
        y = launches[0]()
        if expected is not None and not torch.allclose(y, expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max())):
            return Timing(form, *shape, by, listed, None, None, "another result than the rule's tile gives")
        seconds = clock(launches)
    except (RuntimeError, TritonError) as error:  # too large for the device, most often
        return Timing(form, *shape, by, listed, None, None, f"{type(error).__name__}: {str(error).splitlines()[0]}")
    return Timing(form, *shape, by, listed, seconds, 2e-12 * shape.m * shape.k * shape.n / seconds)


def candidates(facts: Device, shape: Shape, form: str) -> Iterator[Tile]:
    """Tiles that fit the device, pad few rows and give enough programs; what is left is for the clock to say."""
    short = shape.m <= 128
    sizes = (
        product((16, 32, 64, 128), (32, 64, 128))
        if short
        else ((64, 128), (128, 64), (128, 128), (128, 256), (256, 128))
    )
    steps = ((128, 3), (128, 4), (256, 3)) if short else ((64, 4), (128, 3), (128, 4))  # bytes of a row, stages
    for (rows, columns), (loaded, stages) in product(sizes, steps):
        sums = rows * columns * (2 if form == "int4" else 1)
        if form == "int4" and loaded != 128:  # its step is a group
            continue
        if rows >= max(32, 2 * shape.m) or (rows + columns) * loaded * stages > facts.shared:
            continue
        warps = 8 if sums >= 128 * 128 else 4
        if sums // (32 * warps) > 128:  # registers of a thread that hold sums
            continue
        if short and cdiv(shape.m, rows) * cdiv(shape.n, columns) * 2 < facts.processors and columns > 32:
            continue
        yield Tile(rows, columns, loaded // _BYTES[form], stages, warps)


def make_weights(shape: Shape, form: str, device: torch.device) -> list[Weight]:
    """As many as no cache holds at once."""
    size = shape.k * shape.n * {"int8": 1.0, "int4": 0.5, "float16": 2.0}[form]
    most = int(_MOST_WORK / (2 * shape.m * shape.k * shape.n))
    copies = 1 if device.type == "cpu" else min(1 + int(_COLD / size), max(2, most))
    return [make_weight(shape, form, device) for _ in range(copies)]


def make_weight(shape: Shape, form: str, device: torch.device) -> Weight:
    _, k, n = shape
    if form == "float16":
        return Weight("float16", torch.randn(n, k, device=device).half())
    if form == "int8":
        codes = torch.randint(-127, 128, (n, k), dtype=torch.int8, device=device)
        return Weight("int8", codes, torch.rand(n, device=device) / 1000)
    groups = cdiv(k, _GROUP)
    codes = torch.randint(0, 256, (n, groups, _GROUP // 2), dtype=torch.uint8, device=device)
    zero = pack_nibbles(torch.randint(0, 16, (n, groups), dtype=torch.uint8, device=device))
    return Weight("int4", codes, torch.rand(n, groups, device=device) / 1000, zero)


def torchs_own(form: str, x: Tensor | Rows, weights: Sequence[Weight]) -> Iterator[tuple[str, list[Launch]]]:
    if form == "int8" and isinstance(x, Rows) and len(x) > 16:  # of fewer rows _int_mm has none
        values = x.values
        yield "torch._int_mm", [lambda w=w: torch._int_mm(values, w.weight.T) for w in weights]  # type: ignore[misc]
    if form == "float16" and isinstance(x, Tensor):
        yield "cuBLAS", [lambda w=w: x @ w.weight.T for w in weights]  # type: ignore[misc]


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
    """Of each form and shape, of our tiles."""
    found: dict[tuple[str, Shape], Timing] = {}
    for t in timings:
        key = t.form, Shape(t.m, t.k, t.n)
        if t.tile is not None and t.seconds is not None:
            known = found.get(key)
            if known is None or known.seconds is None or t.seconds < known.seconds:
                found[key] = t
    return found


def with_fastest(table: dict[str, Any], capability: int, timings: Sequence[Timing]) -> dict[str, Any]:
    """The table with these in place of what it had for the same form and shape."""
    of_device = dict(table.get(str(capability), {}))
    for (form, shape), t in fastest(timings).items():
        assert t.tile is not None
        others = [line for line in of_device.get(form, []) if line[:3] != list(shape)]
        of_device[form] = sorted([*others, [*shape, *t.tile]], key=lambda line: (line[1:3], line[0]))
    return table | {str(capability): of_device}


def table_text(table: dict[str, Any]) -> str:
    """JSON, a product a line."""
    devices = []
    for capability, forms in sorted(table.items()):
        parts = [
            f'  "{form}": [\n' + ",\n".join(f"   {line}" for line in lines) + "\n  ]" for form, lines in forms.items()
        ]
        devices.append(f' "{capability}": {{\n' + ",\n".join(parts) + "\n }")
    return "{\n" + ",\n".join(devices) + "\n}\n" if devices else "{}\n"


def summary(timings: Sequence[Timing]) -> str:
    """The fastest tile of each product beside the rule's and torch's own."""
    rows = []
    for (form, shape), best in fastest(timings).items():
        same = [t for t in timings if (t.form, t.m, t.k, t.n) == (form, *shape)]
        rule = next(t for t in same if t.by == "rule")
        own = next((t for t in same if t.tile is None), None)
        tile = " ".join(map(str, best.tile or ()))
        product_name = " x ".join(map(str, shape))
        rows.append([form, product_name, tile, _micro(best), _tops(best), _micro(rule), _micro(own) if own else "-"])
    header = ["form", "M x K x N", "tile", "us", "TOPS", "us by rule", "us of torch"]
    return markdown_table(header, rows)


def _micro(t: Timing) -> str:
    return "-" if t.seconds is None else f"{1e6 * t.seconds:.1f}"


def _tops(t: Timing) -> str:
    return "-" if t.tops is None else f"{t.tops:.0f}"


if __name__ == "__main__":
    main()
