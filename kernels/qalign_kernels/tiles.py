"""A product's form and shape on a device in, the tiles it runs with out, or None for torch's own product.

`triton_tiles.json` holds what was measured: {`table_key`: {form: [[M, K, N, *Tile], ...]}}, a line of M, K and N alone
where torch's own was the fastest. A line holds for the device and the Triton that measured it, and for half its rows to
all of them: what is fast for many leaves most of a device idle with few. It is empty, for no sweep has been run on a
GPU yet. Where nothing was measured a rule says: cuBLAS for floats and for fp8 as far as it has those, our tiles for all
else. Nothing is tuned while a picture waits.

Letters: M rows, K inputs, N output channels. Forms: int8, int4, and the float types by torch's names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import NamedTuple, TypeAlias

from qalign_kernels.torch_product import by_cublas, has_product
from qalign_kernels.triton_runtime import TRITON, Device, cdiv

Table: TypeAlias = Mapping[str, Mapping[str, list[list[int]]]]
# of one of the rows' values
_BYTES = {"int8": 1, "int4": 1, "float8_e4m3fn": 1, "float16": 2, "bfloat16": 2, "float32": 4}
_LOADED = 128  # bytes of a row that one step loads: a line of the cache
# A program of fewer rows loads each weight for fewer of them: that costs as much as padding rows by the factor.
_SHORT = {128: 1.0, 64: 1.1, 32: 1.5, 16: 2.0}
_HOPPER = 90


class Tile(NamedTuple):
    """What one program computes, and how it is compiled."""

    rows: int
    columns: int
    inputs: int  # of a step; with int4 a step is a group of inputs instead
    stages: int  # steps under way at once: one is computed, the others are being loaded
    warps: int


@cache
def measured() -> Table:
    table: Table = json.loads(files("qalign_kernels").joinpath("triton_tiles.json").read_text())
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
    return tile_by_rule(device, form, m, n)


def tile_by_rule(device: Device, form: str, m: int, n: int) -> Tile:
    """Rows with little padding, columns few enough to occupy every processor, stages as shared memory has room."""
    rows = min(_SHORT, key=lambda r: (cdiv(m, r) * r * _SHORT[r], -r))
    sums = 2 if form == "int4" else 1  # of a group in int32, of all in float32
    columns = 128 // sums
    while columns > 32 and cdiv(m, rows) * cdiv(n, columns) < device.processors:
        columns //= 2
    buffers = device.shared // ((rows + columns) * _LOADED)
    stages = min(4, buffers if device.capability == _HOPPER else buffers + 1)  # wgmma multiplies from its buffer
    return Tile(rows, columns, _LOADED // _BYTES[form], stages, 8 if rows * columns * sums >= 128 * 128 else 4)
