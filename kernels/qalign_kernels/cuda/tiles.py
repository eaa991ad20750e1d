"""A product's form and shape on a device in, the tiles it runs with out, or None for torch's own product.

`triton_tiles.json` holds what was measured: {`table_key`: {form: [[M, K, N, *Tile], ...]}}, a line of M, K and N alone
where torch's own was the fastest. A line holds for the device and the Triton that measured it, and for half its rows to
all of them: what is fast for many leaves most of a device idle with few. It is empty, for no sweep has been run on a
GPU yet. Where nothing was measured a rule says: cuBLAS for floats and for fp8 as far as it has those, our tiles for all
else, for int8 on sm_90 those of `linear_hopper`. Nothing is tuned while a picture waits.

Letters: M rows, K inputs, N output channels. Forms: int8, int4, and the float types by torch's names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from qalign_kernels.contract.linear import Modal
from qalign_kernels.cuda.runtime import TRITON, Device, cdiv
from qalign_kernels.cuda.torch_product import by_cublas, has_product

Table: TypeAlias = Mapping[str, Mapping[str, list[list[Any]]]]  # of ints, and a tile's `hopper`
# of one of the rows' values
_BYTES = {"int8": 1, "int4": 1, "float8_e4m3fn": 1, "float16": 2, "bfloat16": 2, "float32": 4}
_LOADED = 128  # bytes of a row that one step loads: a line of the cache
_OF_WEIGHTS = 64 + 4  # bytes of a channel that it loads of 4-bit weights and their groups
# A program of fewer rows loads each weight for fewer of them: that costs as much as padding rows by the factor.
_SHORT = {128: 1.0, 64: 1.1, 32: 1.5, 16: 2.0}
_WITH_A_REST = {80: 1.15}  # 64 and 16, for a picture's 77: of whole numbers, without wgmma, which has 64 at least
_HOPPER = 90
RESERVED = 1024  # bytes of a processor's shared memory that the system takes for each program
_LONG = 2048  # inputs of which 256 rows' loop is long beside what comes after it
SHARED_COST = 4  # steps that adding a part in memory and reading the sum back takes, about
_MOST_PARTS = 8
_TILES, _VALUES = 2, 128 * 128  # tiles a processor that are shared at once, and each one's sums


class Tile(NamedTuple):
    """What one program computes, and how it is compiled."""

    rows: int  # a power of two, or 80
    columns: int
    inputs: int  # of a step; with int4 a step is a block of weights
    stages: int  # steps under way at once: one is computed, the others are being loaded
    warps: int
    splits: int = 1  # programs that have a part of a tile's inputs each; where sums are exact
    hopper: bool = False  # `linear_hopper`'s product, which shares out steps by itself


class Shares(NamedTuple):
    """Where programs that have parts of one tile add them up: zeros between products. One stream's at a time."""

    sums: Tensor  # int32, of tiles one after another
    arrived: Tensor  # int32, of each tile what has been added

    @classmethod
    def of(cls, device: Device, place: torch.device) -> Shares:
        """Room for as many tiles as are ever shared."""
        most = _TILES * device.processors
        return cls(*(torch.zeros(size, dtype=torch.int32, device=place) for size in (most * _VALUES, most)))

    def hold(self, tiles: int, tile: Tile) -> bool:
        return tiles <= len(self.arrived) and tiles * tile.rows * tile.columns <= len(self.sums)

    @property
    def processors(self) -> int:
        return len(self.arrived) // _TILES


def tiles_of(m: int, n: int, tile: Tile, modal: Modal | None) -> int:
    """How many tiles y [m, n] has; a modality's begin at its own first row."""
    if modal is None:
        return cdiv(m, tile.rows) * cdiv(n, tile.columns)
    by_row = [(m, modal.common), (modal.split, n - modal.common), (m - modal.split, n - modal.common)]
    return sum(cdiv(height, tile.rows) * cdiv(width, tile.columns) for height, width in by_row)


@cache
def measured() -> Table:
    table: Table = json.loads(files("qalign_kernels.cuda").joinpath("triton_tiles.json").read_text())
    return table


def table_key(device: Device) -> str:
    """Whose lines: "90/132/3.6.0" is of an H100's 132 processors of sm_90, measured with Triton 3.6.0."""
    return f"{device.capability}/{device.processors}/{TRITON}"


def tile_for(device: Device, form: str, m: int, k: int, n: int, table: Table | None = None) -> Tile | None:
    """Measured with that K and N, for M or the next upwards to twice as much; else by rule."""
    lines = (measured() if table is None else table).get(table_key(device), {}).get(form, [])
    nearest = min((line for line in lines if line[1:3] == [k, n] and m <= line[0] <= 2 * m), default=None)
    if nearest and nearest[3:]:
        return Tile(*nearest[3:])
    torchs_own = nearest is not None or by_cublas(device.capability, form)
    if torchs_own and has_product(device.capability, form, m, k, n):
        return None
    return tile_by_rule(device, form, m, k, n)


def tiles_for(device: Device, form: str, m: int, k: int, n: int) -> list[Tile | None]:
    """`tile_for`'s, then what stands in where the device refuses that: the rule's, and one of Triton's."""
    shape = form, m, k, n
    return list(dict.fromkeys((tile_for(device, *shape), tile_for(device, *shape, {}), _of_triton(device, *shape))))


def tile_by_rule(device: Device, form: str, m: int, k: int, n: int) -> Tile:
    """Where torch's own product is not taken."""
    if form == "int8" and device.capability == _HOPPER and m > min(_SHORT) and k % 16 == 0:
        return _for_hopper(device, m, k, n)
    return _of_triton(device, form, m, k, n)


def _of_triton(device: Device, form: str, m: int, k: int, n: int) -> Tile:
    """Rows with little padding, and programs for every processor: by columns, or by parts of inputs."""
    hopper, exact = device.capability == _HOPPER, form in ("int8", "int4")
    costs = _SHORT | (_WITH_A_REST if form == "int4" or (exact and not hopper) else {})
    rows = min(costs, key=lambda r: (cdiv(m, r) * r * costs[r], -r))
    columns = 128
    while not exact and columns > 32 and cdiv(m, rows) * cdiv(n, columns) < device.processors:
        columns //= 2
    tiles = cdiv(m, rows) * cdiv(n, columns)
    if form == "int4" or (exact and rows == 128 and tiles > 2 * device.processors):
        return _two_at_once(device, form, rows, tiles, k)
    inputs = _LOADED // _BYTES[form]
    splits = _splits(device, tiles, cdiv(k, inputs)) if exact else 1
    stages = _stages(device, device.shared, (rows + columns) * _LOADED)
    return Tile(rows, columns, inputs, stages, 8 if rows * columns > 64 * 128 else 4, splits)


def _two_at_once(device: Device, form: str, rows: int, tiles: int, k: int) -> Tile:
    """Two programs of 4 warps a processor: one multiplies while the other begins or ends a tile, or spreads weights."""
    room = (device.shared + RESERVED) // 2 - RESERVED
    step = rows * _LOADED + 128 * (_OF_WEIGHTS if form == "int4" else _LOADED)
    parts = 1 if 2 * step <= room else 2  # of a step
    splits = _splits(device, tiles, cdiv(k, _LOADED), 2)
    return Tile(rows, 128, _LOADED // parts, _stages(device, room, step // parts), 4, splits)


def _stages(device: Device, room: int, step: int) -> int:
    buffers = room // step
    return min(4, buffers if device.capability == _HOPPER else buffers + 1)  # wgmma multiplies from its buffer


def _splits(device: Device, tiles: int, steps: int, held: int = 1) -> int:
    """Parts of a tile's steps with which all programs end soonest, where each has a few steps; so many a processor."""

    def end(parts: int) -> int:
        return cdiv(tiles * parts, held * device.processors) * (cdiv(steps, parts) + (SHARED_COST if parts > 1 else 0))

    few = tiles <= device.processors  # whose sums have room, though a modality's tiles begin anew
    return min(range(1, max(1, min(_MOST_PARTS, steps // SHARED_COST)) + 1), key=end) if few else 1


def _for_hopper(device: Device, m: int, k: int, n: int) -> Tile:
    """Two programs a processor cover each other's ends. One of 256 rows reads less, where its loop is long."""
    if k >= _LONG and cdiv(m, 256) * cdiv(n, 128) >= 2 * device.processors:
        return Tile(256, 128, _LOADED, 4, 8, hopper=True)
    return Tile(64, 128, _LOADED, 4, 4, hopper=True) if m <= 64 else Tile(128, 128, _LOADED, 3, 4, hopper=True)
