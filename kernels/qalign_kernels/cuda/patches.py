"""`contract.patches` on a GPU, one program for each patch: uint8 pixels in, rows as their reader takes them out.

Letters: B pictures, S side of a picture, p side of a patch, n patches of a picture.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qalign_kernels.contract.quantized_rows import LARGEST, QuantizedRows
from qalign_kernels.cuda.launch import block_of
from qalign_kernels.cuda.quantized_rows import empty_rows, store_row
from qalign_kernels.cuda.runtime import Pointer, Value, begin, constexpr, jit, overlap, tl


def split_patches(
    pixels: Tensor, patch: int, width: int | None = None, dtype: torch.dtype = torch.float32
) -> Tensor | QuantizedRows:
    """uint8 [B, S, S, 3] -> [B, n, width], with zeros after a patch's p*p*3 values: floats, or rows in 8 bits."""
    width = width or 3 * patch * patch
    pixels = pixels.contiguous()
    batch, side = pixels.shape[:2]
    grid = side // patch
    shape = batch, grid * grid, width
    rows = empty_rows(shape, dtype, pixels.device) if dtype in LARGEST else None
    values = rows.values if rows else torch.empty(shape, dtype=dtype, device=pixels.device)
    scales = rows.scale if rows else None
    _split_patches[(batch * grid * grid,)](
        pixels, values, scales, side, patch, grid, width, **block_of(width), **overlap()
    )
    return rows or values


@jit
def _split_patches(
    pixels: Pointer, out: Pointer, scales: Pointer, side: Value, patch: Value, grid: Value, width: Value,
    block: constexpr, pdl: constexpr,
) -> None:  # fmt: skip
    begin(pdl)
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, block)
    line = 3 * patch  # values of a patch's row of pixels
    picture, place = row // (grid * grid), row % (grid * grid)
    y = picture * side + place // grid * patch + i // line
    x = tl.load(pixels + (y * side + place % grid * patch) * 3 + i % line, i < patch * line, 0).to(tl.float32)
    store_row(out, scales, row, i, x, width)
