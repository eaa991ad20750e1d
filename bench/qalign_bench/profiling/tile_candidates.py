"""A product on a device in, the tiles that may be fast for it out, as many as a clock can tell apart."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

from qalign_bench.profiling.model_products import Shape
from qalign_kernels.contract.precisions import BLOCK
from qalign_kernels.cuda.launch import Device, cdiv
from qalign_kernels.cuda.tiles import Tile, tile_by_rule, tiles_for
from qalign_kernels.cuda.torch_product import has_product

_BYTES = {"int8": 1, "int4": 1, "float16": 2, "float8_e4m3fn": 1}  # of a value that tensor cores read
STORED = _BYTES | {"int4": 0.5}  # and of a weight in memory


class Way(NamedTuple):
    """One way to compute a product."""

    by: str  # "rule", "candidate" or "torch"
    tile: Tile | None


def ways(facts: Device, shape: Shape, form: str) -> list[Way]:
    """All ways that may be fast: the rule's tile, Triton's where it is another, candidates, and torch's own product."""
    rule, plain = tile_by_rule(facts, form, *shape), tiles_for(facts, form, *shape)[-1]
    tiles = dict.fromkeys((rule, plain, *hopper_candidates(facts, shape, form), *candidates(facts, shape, form)))
    found = [Way("rule" if tile == rule else "candidate", tile) for tile in tiles]
    return [*found, Way("torch", None)] if has_product(facts.capability, form, *shape) else found


def candidates(facts: Device, shape: Shape, form: str) -> Iterator[Tile]:
    """Tiles that fit the device, pad few rows and give enough programs. The clock decides among them."""
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
        if form == "float8_e4m3fn" and loaded > 128:  # a longer step would be summed in the tensor cores' precision
            continue
        step = rows * loaded + columns * loaded * STORED[form] / _BYTES[form]
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
    """Tiles of `linear_hopper`, where the rule takes one."""
    if tile_by_rule(facts, form, *shape).hopper:
        for rows, columns, stages, warps in product((64, 128, 256), (64, 128), (3, 4), (4, 8)):
            if rows == 32 * warps or (rows, warps) == (64, 4):
                yield Tile(rows, columns, 128, stages, warps, hopper=True)
