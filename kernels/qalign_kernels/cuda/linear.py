"""`qalign_kernels.contract.linear` on a GPU: rows and a weight in, residual + activation(x̂ ŵᵀ + b) out of one kernel.

Products of whole numbers are summed in int32, exactly; int4's is `linear_int4_triton`'s. Those of fp8 are summed by
tensor cores in fewer bits than a float32 has, so that a sum goes into float32 after each step. Floats multiply here
only where the table of tiles says so: by rule they are torch's own product's.

Letters: M rows, K inputs, N output channels.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from qalign_kernels.contract.linear import FP8, LARGEST, Modal, Weight
from qalign_kernels.contract.precisions import BLOCK
from qalign_kernels.contract.quantized_rows import Rows
from qalign_kernels.cuda import linear_hopper, torch_product
from qalign_kernels.cuda.epilogue import Epilogue, finish_tile, row_stride
from qalign_kernels.cuda.linear_int4 import multiply_int4
from qalign_kernels.cuda.rows import quantize_rows
from qalign_kernels.cuda.runtime import Pointer, Value, begin, cdiv, constexpr, jit, overlap, row_view, tl
from qalign_kernels.cuda.tile_order import origin
from qalign_kernels.cuda.tiles import Shares, Tile, tiles_of

_MOST_IMPRECISE = 128  # inputs whose fp8 products may be summed in a tensor core's own precision


def form_of(w: Weight) -> str:
    """As tables of tiles name it."""
    return "int4" if w.groups is not None else str(w.weight.dtype).removeprefix("torch.")


def align(w: Weight) -> Weight:
    """The same with zeros after its inputs, to a multiple of 16: rows of other lengths are loaded byte by byte."""
    missing = -w.weight.shape[1] % 16
    return w if w.groups is not None or not missing else replace(w, weight=F.pad(w.weight, (0, missing)))


def inputs_of(w: Weight) -> int:
    """As many as its rows may have, those that it is filled up with among them."""
    return w.weight.shape[1] * (BLOCK if w.groups is not None else 1)


def read_as(w: Weight) -> torch.dtype:
    """The type of the rows that it reads."""
    return torch.int8 if w.groups is not None else w.weight.dtype


def linear(
    x: Tensor | Rows,
    w: Weight,
    tile: Tile | None,
    epilogue: Epilogue,
    shares: Shares | None = None,
    modal: Modal | None = None,
) -> Tensor:
    """Any float or quantized rows [..., K] -> [..., N] of the epilogue's type, in the precision the weight has.

    Without a tile by torch's own product. A weight aligned to more inputs than rows have takes float rows. `shares` is
    where programs that share a tile add up, and `modal` for a weight of several linears; both for int8 and int4 alone.
    """
    if tile is None:
        return torch_product.linear(as_read(x, w), w, epilogue)
    n = len(w.weight) if modal is None else (len(w.weight) + modal.common) // 2
    y = torch.empty((*x.shape[:-1], n), dtype=epilogue.dtype, device=w.weight.device)
    residual = None if epilogue.residual is None else row_view(epilogue.residual)
    gelu = epilogue.activation == "quick_gelu"
    if tile.hopper:
        rows = as_read(x, w)
        assert isinstance(rows, Rows) and w.scale is not None and shares is not None, w.name
        rows = Rows(row_view(rows.values), row_view(rows.scale))
        linear_hopper.launch(rows, w.weight, w.scale, w.bias, residual, y.view(-1, n), tile, shares, gelu, modal)
    else:
        _launch(x, w, tile, y.view(-1, n), residual, gelu, shares, modal)
    return y


def as_read(x: Tensor | Rows, w: Weight) -> Tensor | Rows:
    """Rows as a product takes them."""
    if isinstance(x, Rows):
        return x
    missing, dtype = inputs_of(w) - x.shape[-1], read_as(w)
    x = F.pad(x, (0, missing)) if missing else x  # which copies even where nothing is missing
    return quantize_rows(x, dtype) if dtype in LARGEST else x.to(dtype)


def _launch(
    x: Tensor | Rows, w: Weight, tile: Tile, y: Tensor, residual: Tensor | None, gelu: bool, shares: Shares | None,
    modal: Modal | None,
) -> None:  # fmt: skip
    x = as_read(x, w)
    values = row_view(x.values if isinstance(x, Rows) else x)
    scale = row_view(x.scale) if isinstance(x, Rows) else None
    (m, k), n = values.shape, y.shape[1]
    tiles = tiles_of(m, n, tile, modal)
    assert values.dtype == read_as(w), w.name
    assert w.weight.shape[1] == (k if w.groups is None else cdiv(k, BLOCK)), w.name
    assert w.weight.dtype != FP8 or tile.inputs <= _MOST_IMPRECISE, tile
    assert w.groups is None or tile.inputs == BLOCK, tile
    assert tile.splits == 1 or (shares is not None and shares.hold(tiles, tile)), tile
    split, common = (m, n) if modal is None else modal
    arguments = (
        y, scale, w.scale, w.bias, residual, *(shares or (None, None)),
        m, n, k, split, common, values.stride(0), row_stride(scale), row_stride(residual),
        gelu, k % tile.inputs == 0, modal is not None, tile.splits, *_two_powers(tile.rows), tile.columns,
    )  # fmt: skip
    grid, how = (tiles * tile.splits,), {"num_stages": tile.stages, "num_warps": tile.warps, **overlap()}
    if w.groups is None:
        _multiply[grid](values, w.weight, *arguments, tile.inputs, **how)
    else:
        multiply_int4[grid](values, w.weight, w.groups.view(torch.uint32), *arguments, **how)


def _two_powers(rows: int) -> tuple[int, int]:
    """A program's rows as two powers of two, or as one and 0: 77 rows are 64 and 16."""
    most = 1 << (rows.bit_length() - 1)
    return most, rows - most


@jit
def _multiply(
    x: Pointer, w: Pointer, y: Pointer, row_scale: Pointer, column_scale: Pointer, bias: Pointer, residual: Pointer,
    sums: Pointer, arrived: Pointer, m: Value, n: Value, k: Value, split: Value, common: Value, x_stride: Value,
    scale_stride: Value, residual_stride: Value, gelu: constexpr, even: constexpr, modal: constexpr, splits: constexpr,
    rows: constexpr, more_rows: constexpr, columns: constexpr, inputs: constexpr, pdl: constexpr,
) -> None:  # fmt: skip
    """y = residual + activation(row_scale · column_scale · x wᵀ + bias); x [m, k], w [n, k], or as `Modal` has them."""
    begin(pdl)
    tile, part = tl.program_id(0) // splits, tl.program_id(0) % splits
    row, row_end, channel, column, column_end = origin(tile, m, n, split, common, modal, rows + more_rows, columns)
    i, j = row + tl.arange(0, rows), column + tl.arange(0, columns)
    steps = tl.cdiv(k, inputs)
    first, last = steps * part // splits * inputs, steps * (part + 1) // splits * inputs
    a = x + tl.where(i < row_end, i, row).to(tl.int64)[:, None] * x_stride + first + tl.arange(0, inputs)[None, :]
    b = w + (channel + tl.where(j < column_end, j - column, 0)).to(tl.int64)[:, None] * k
    b += first + tl.arange(0, inputs)[None, :]
    whole: constexpr = w.dtype.element_ty.is_int()
    imprecise: constexpr = w.dtype.element_ty.is_fp8()
    total = tl.zeros((rows, columns), tl.int32 if whole else tl.float32)
    more = None
    if more_rows > 0:
        more_i = row + rows + tl.arange(0, more_rows)
        more_a = x + tl.where(more_i < row_end, more_i, row).to(tl.int64)[:, None] * x_stride + first
        more_a += tl.arange(0, inputs)[None, :]
        more = tl.zeros((more_rows, columns), total.dtype)
    for start in range(first, last, inputs):
        if even:
            left, right = tl.load(a), tl.load(b)
        else:
            inside = tl.arange(0, inputs)[None, :] < k - start
            left, right = tl.load(a, inside, 0.0), tl.load(b, inside, 0.0)
        if more_rows > 0:
            more_left = tl.load(more_a) if even else tl.load(more_a, tl.arange(0, inputs)[None, :] < k - start, 0.0)
            more = tl.dot(more_left, right.T, more, input_precision="ieee", out_dtype=more.dtype)
            more_a += inputs
        if imprecise:  # said to be, or the compiler lets the tensor core add to the total
            total += tl.dot(left, right.T, max_num_imprecise_acc=inputs)
        else:
            total = tl.dot(left, right.T, total, input_precision="ieee", out_dtype=total.dtype)
        a += inputs
        b += inputs
    if modal:
        column_scale += channel - column
        if bias is not None:
            bias += channel - column
    finish_tile(total, more, sums, arrived, tile, splits, False, y, row_scale, column_scale, bias, residual, row,
                column, row_end, column_end, n, scale_stride, residual_stride, gelu)  # fmt: skip
