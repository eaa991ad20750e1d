"""A product's weight type and shape on a device in, the tiles it runs with out, or None for torch's own product.

`triton_tiles.json` holds what was measured: {`table_key`: {weight type: [[M, K, N, *Tile], ...]}}. A line of M, K and N
alone says that torch's own product was the fastest. A line holds for the device and the Triton that measured it, and
for rows from half of M to M, because a tile that is fast for many rows leaves most of a device idle with few. The file
is empty: no sweep has been run on a GPU yet. Where nothing was measured, a rule chooses: cuBLAS for floats and e4m3 as
far as it has those, the tiles of `linear_hopper` for int8 on sm_90, and Triton's for all else. Nothing is tuned while a
picture waits.

Letters: M rows, K inputs, N output channels. A weight type is int8, int4, or a float dtype by torch's name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from qalign_kernels.contract.weight import Modal
from qalign_kernels.cuda.launch import Device, cdiv
from qalign_kernels.cuda.torch_product import by_cublas, has_product

Table: TypeAlias = Mapping[str, Mapping[str, list[list[Any]]]]  # of ints, and a tile's `hopper`
# bytes of a number in a row
_BYTES = {"int8": 1, "int4": 1, "float8_e4m3fn": 1, "float16": 2, "bfloat16": 2, "float32": 4}
_LOADED = 128  # bytes of a row that one step loads: a line of the cache
_OF_WEIGHTS = 64 + 4  # bytes of a channel of 4-bit weights and their groups that one step loads
# A program of fewer rows uses each weight that it loads for fewer rows. That costs as much as more rows by this factor.
_SHORT = {128: 1.0, 64: 1.1, 32: 1.5, 16: 2.0}
_WITH_A_REST = {80: 1.15}  # 64 and 16, for a picture's 77. For whole numbers, and not by wgmma, which has 64 at least
_HOPPER = 90
RESERVED = 1024  # bytes of a processor's shared memory that the system takes for each program
_LONG = 2048  # inputs from which on the loop of 256 rows is long beside what follows it
SHARED_COST = 4  # about the steps that it takes to add a part in memory and to read the sum back
_MOST_PARTS = 8
_TILES, _VALUES = 2, 128 * 128  # tiles that are shared at once on each processor, and the sums of a tile


class Tile(NamedTuple):
    """What one program computes, and how it is compiled."""

    rows: int  # a power of two, or 80
    columns: int
    inputs: int  # that a step takes; with int4 a step takes a block of weights
    stages: int  # steps under way at once: one is computed, the others are being loaded
    warps: int
    splits: int = 1  # programs that share a tile's inputs; more than one only where sums are exact
    hopper: bool = False  # whether it is `linear_hopper`'s product, which shares out steps by itself


class Shares(NamedTuple):
    """Where programs that share a tile add up their parts. Zeros between products; for one stream at a time."""

    sums: Tensor  # int32, tile after tile
    arrived: Tensor  # int32, how much of each tile has been added

    @classmethod
    def of(cls, device: Device, place: torch.device) -> Shares:
        """Memory for as many tiles as are ever shared at once."""
        most = _TILES * device.processors
        return cls(*(torch.zeros(size, dtype=torch.int32, device=place) for size in (most * _VALUES, most)))

    def hold(self, tiles: int, tile: Tile) -> bool:
        """Whether there is room for the sums of so many tiles."""
        return tiles <= len(self.arrived) and tiles * tile.rows * tile.columns <= len(self.sums)

    @property
    def processors(self) -> int:
        """Of the device that this memory was made for."""
        return len(self.arrived) // _TILES


def tiles_of(m: int, n: int, tile: Tile, modal: Modal | None) -> int:
    """How many tiles y [m, n] has. With `modal`, each modality's tiles begin at its own first row."""
    if modal is None:
        return cdiv(m, tile.rows) * cdiv(n, tile.columns)
    by_row = [(m, modal.common), (modal.split, n - modal.common), (m - modal.split, n - modal.common)]
    return sum(cdiv(height, tile.rows) * cdiv(width, tile.columns) for height, width in by_row)


@cache
def measured() -> Table:
    """What `triton_tiles.json` holds."""
    table: Table = json.loads(files("qalign_kernels.cuda").joinpath("triton_tiles.json").read_text())
    return table


def table_key(device: Device) -> str:
    """Whose lines: "90/132/3.6.0" is for sm_90 with 132 processors (an H100), measured with Triton 3.6.0."""
    return f"{device.capability}/{device.processors}/{_triton()}"


@cache
def _triton() -> str:
    """The version of the Triton that is installed, empty where there is none by that name."""
    try:
        return version("triton")
    except PackageNotFoundError:
        return ""


def tile_for(device: Device, weight_type: str, m: int, k: int, n: int, table: Table | None = None) -> Tile | None:
    """The tile measured with this K and N and with M rows, or the next larger number up to 2 M; else the rule's."""
    lines = (measured() if table is None else table).get(table_key(device), {}).get(weight_type, [])
    nearest = min((line for line in lines if line[1:3] == [k, n] and m <= line[0] <= 2 * m), default=None)
    if nearest and nearest[3:]:
        return Tile(*nearest[3:])
    torchs_own = nearest is not None or by_cublas(device.capability, weight_type)
    if torchs_own and has_product(device.capability, weight_type, m, k, n):
        return None
    return tile_by_rule(device, weight_type, m, k, n)


def tiles_for(device: Device, weight_type: str, m: int, k: int, n: int) -> list[Tile | None]:
    """`tile_for`'s choice, then what to try where the device refuses it: the rule's, then one of Triton's."""
    shape = weight_type, m, k, n
    return list(dict.fromkeys((tile_for(device, *shape), tile_for(device, *shape, {}), _of_triton(device, *shape))))


def tile_by_rule(device: Device, weight_type: str, m: int, k: int, n: int) -> Tile:
    """The tile where nothing was measured and torch's own product is not taken."""
    if weight_type == "int8" and device.capability == _HOPPER and m > min(_SHORT) and k % 16 == 0:
        return _for_hopper(device, m, k, n)
    return _of_triton(device, weight_type, m, k, n)


def _of_triton(device: Device, weight_type: str, m: int, k: int, n: int) -> Tile:
    """Few padded rows, and programs for every processor: by fewer columns, or by parts of the inputs."""
    hopper, exact = device.capability == _HOPPER, weight_type in ("int8", "int4")
    costs = _SHORT | (_WITH_A_REST if weight_type == "int4" or (exact and not hopper) else {})
    rows = min(costs, key=lambda r: (cdiv(m, r) * r * costs[r], -r))
    columns = 128
    while not exact and columns > 32 and cdiv(m, rows) * cdiv(n, columns) < device.processors:
        columns //= 2
    tiles = cdiv(m, rows) * cdiv(n, columns)
    if weight_type == "int4" or (exact and rows == 128 and tiles > 2 * device.processors):
        return _two_at_once(device, weight_type, rows, tiles, k)
    inputs = _LOADED // _BYTES[weight_type]
    splits = _splits(device, tiles, cdiv(k, inputs)) if exact else 1
    stages = _stages(device, device.shared, (rows + columns) * _LOADED)
    return Tile(rows, columns, inputs, stages, 8 if rows * columns > 64 * 128 else 4, splits)


def _two_at_once(device: Device, weight_type: str, rows: int, tiles: int, k: int) -> Tile:
    """Two programs of 4 warps on a processor: one multiplies while the other begins or ends, or spreads weights."""
    room = (device.shared + RESERVED) // 2 - RESERVED
    step = rows * _LOADED + 128 * (_OF_WEIGHTS if weight_type == "int4" else _LOADED)
    parts = 1 if 2 * step <= room else 2  # of a step
    splits = _splits(device, tiles, cdiv(k, _LOADED), 2)
    return Tile(rows, 128, _LOADED // parts, _stages(device, room, step // parts), 4, splits)


def _stages(device: Device, room: int, step: int) -> int:
    buffers = room // step
    return min(4, buffers if device.capability == _HOPPER else buffers + 1)  # wgmma multiplies from its buffer


def _splits(device: Device, tiles: int, steps: int, held: int = 1) -> int:
    """Into how many parts to cut a tile's steps so that all programs end soonest. A processor holds `held` of them."""

    def end(parts: int) -> int:
        return cdiv(tiles * parts, held * device.processors) * (cdiv(steps, parts) + (SHARED_COST if parts > 1 else 0))

    few = tiles <= device.processors  # `Shares` has room for their sums, though each modality's tiles begin anew
    return min(range(1, max(1, min(_MOST_PARTS, steps // SHARED_COST)) + 1), key=end) if few else 1


def _for_hopper(device: Device, m: int, k: int, n: int) -> Tile:
    """Two programs on a processor cover each other's ends. One of 256 rows reads less, where its loop is long."""
    if k >= _LONG and cdiv(m, 256) * cdiv(n, 128) >= 2 * device.processors:
        return Tile(256, 128, _LOADED, 4, 8, hopper=True)
    return Tile(64, 128, _LOADED, 4, 4, hopper=True) if m <= 64 else Tile(128, 128, _LOADED, 3, 4, hopper=True)
