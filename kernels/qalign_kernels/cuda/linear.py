"""`contract.linear` on a GPU: rows and a weight in, residual + activation(x̂ ŵᵀ + b) out of one kernel.

Products of whole numbers are summed exactly, in int32; `linear_int4` has the kernel for 4 bits. Tensor cores sum e4m3's
products in fewer bits than float32 has, so that the sum is added to a float32 total after each step. Floats multiply
here only where the table of tiles says so: by rule torch multiplies them.

Letters: M rows, K inputs, N output channels.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from qalign_kernels.contract.linear import row_dtype
from qalign_kernels.contract.precisions import BLOCK
from qalign_kernels.contract.quantized_rows import E4M3, LARGEST, QuantizedRows
from qalign_kernels.contract.weight import Modal, Weight
from qalign_kernels.cuda import linear_hopper, torch_product
from qalign_kernels.cuda.epilogue import finish_product, finish_tile
from qalign_kernels.cuda.launch import Epilogue, cdiv, row_stride, row_view
from qalign_kernels.cuda.linear_int4 import multiply_int4
from qalign_kernels.cuda.quantized_rows import quantize_rows
from qalign_kernels.cuda.runtime import Pointer, Value, begin, constexpr, jit, overlap, tl
from qalign_kernels.cuda.tile_order import origin, row_places
from qalign_kernels.cuda.tiles import Shares, Tile, tiles_of

_MOST_IMPRECISE = 128  # inputs whose e4m3 products may be summed in a tensor core's own precision


def weight_type(w: Weight) -> str:
    """The weight's type as tables of tiles name it: int4, or torch's name of the dtype."""
    return "int4" if w.groups is not None else str(w.weight.dtype).removeprefix("torch.")


def align(w: Weight) -> Weight:
    """The same weight with zeros after its inputs, up to a multiple of 16: other lengths are loaded byte by byte."""
    missing = -w.weight.shape[1] % 16
    return w if w.groups is not None or not missing else replace(w, weight=F.pad(w.weight, (0, missing)))


def inputs_of(w: Weight) -> int:
    """How many inputs its rows may have, the zeros that it is filled up with included."""
    return w.weight.shape[1] * (BLOCK if w.groups is not None else 1)


def linear(
    x: Tensor | QuantizedRows,
    w: Weight,
    tile: Tile | None,
    epilogue: Epilogue,
    shares: Shares | None = None,
    modal: Modal | None = None,
) -> Tensor:
    """Rows of any float, or quantized, [..., K] -> [..., N] of the epilogue's dtype, in the weight's precision.

    Torch multiplies where `tile` is None. A weight that `align` gave more inputs than rows have takes float rows.
    `shares` is where programs that share a tile add up its sums. `modal` says that the weight holds three linears. Both
    are for int8 and int4 alone.
    """
    if tile is None:
        return _by_torch(as_read(x, w), w, epilogue)
    n = len(w.weight) if modal is None else (len(w.weight) + modal.common) // 2
    y = torch.empty((*x.shape[:-1], n), dtype=epilogue.dtype, device=w.weight.device)
    residual = None if epilogue.residual is None else row_view(epilogue.residual)
    gelu = epilogue.activation == "quick_gelu"
    if tile.hopper:
        rows = as_read(x, w)
        assert isinstance(rows, QuantizedRows) and w.scale is not None and shares is not None, w.name
        rows = QuantizedRows(row_view(rows.values), row_view(rows.scale))
        linear_hopper.launch(rows, w.weight, w.scale, w.bias, residual, y.view(-1, n), tile, shares, gelu, modal)
    else:
        _launch(x, w, tile, y.view(-1, n), residual, gelu, shares, modal)
    return y


def as_read(x: Tensor | QuantizedRows, w: Weight) -> Tensor | QuantizedRows:
    """Rows as the product by w takes them: as long as its inputs, and in its rows' dtype."""
    if isinstance(x, QuantizedRows):
        return x
    missing, dtype = inputs_of(w) - x.shape[-1], row_dtype(w.weight)
    x = F.pad(x, (0, missing)) if missing else x  # `pad` copies even where nothing is missing
    return quantize_rows(x, dtype) if dtype in LARGEST else x.to(dtype)


def _by_torch(x: Tensor | QuantizedRows, w: Weight, epilogue: Epilogue) -> Tensor:
    y, rest = torch_product.product(x, w, epilogue)
    y = y if rest is None else finish_product(y, rest.row_scale, rest.column_scale, rest.bias, epilogue)
    return y.view(*x.shape[:-1], len(w.weight))


def _launch(
    x: Tensor | QuantizedRows, w: Weight, tile: Tile, y: Tensor, residual: Tensor | None, gelu: bool,
    shares: Shares | None, modal: Modal | None,
) -> None:  # fmt: skip
    x = as_read(x, w)
    values = row_view(x.values if isinstance(x, QuantizedRows) else x)
    scale = row_view(x.scale) if isinstance(x, QuantizedRows) else None
    (m, k), n = values.shape, y.shape[1]
    tiles = tiles_of(m, n, tile, modal)
    assert values.dtype == row_dtype(w.weight), w.name
    assert w.weight.shape[1] == (k if w.groups is None else cdiv(k, BLOCK)), w.name
    assert w.weight.dtype != E4M3 or tile.inputs <= _MOST_IMPRECISE, tile
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
    """A program's rows as two powers of two, or as one and 0: 80 rows are 64 and 16."""
    most = 1 << (rows.bit_length() - 1)
    return most, rows - most


@jit
def _multiply(
    x: Pointer, w: Pointer, y: Pointer, row_scale: Pointer, column_scale: Pointer, bias: Pointer, residual: Pointer,
    sums: Pointer, arrived: Pointer, m: Value, n: Value, k: Value, split: Value, common: Value, x_stride: Value,
    scale_stride: Value, residual_stride: Value, gelu: constexpr, even: constexpr, modal: constexpr, splits: constexpr,
    rows: constexpr, more_rows: constexpr, columns: constexpr, inputs: constexpr, pdl: constexpr,
) -> None:  # fmt: skip
    """y = residual + activation(row_scale · column_scale · x wᵀ + bias): x [m, k], w [n, k], or as `Modal` says."""
    begin(pdl)
    tile, part = tl.program_id(0) // splits, tl.program_id(0) % splits
    row, row_end, channel, column, column_end = origin(tile, m, n, split, common, modal, rows + more_rows, columns)
    i, j = row + tl.arange(0, rows), column + tl.arange(0, columns)
    steps = tl.cdiv(k, inputs)
    first, last = steps * part // splits * inputs, steps * (part + 1) // splits * inputs
    a = row_places(x, i, row, row_end, x_stride) + first + tl.arange(0, inputs)[None, :]
    b = w + (channel + tl.where(j < column_end, j - column, 0)).to(tl.int64)[:, None] * k
    b += first + tl.arange(0, inputs)[None, :]
    whole: constexpr = w.dtype.element_ty.is_int()
    imprecise: constexpr = w.dtype.element_ty == tl.float8e4nv
    total = tl.zeros((rows, columns), tl.int32 if whole else tl.float32)
    more = None
    if more_rows > 0:
        more_i = row + rows + tl.arange(0, more_rows)
        more_a = row_places(x, more_i, row, row_end, x_stride) + first + tl.arange(0, inputs)[None, :]
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
        if imprecise:  # without the limit, the compiler would let the tensor core add to the total
            total += tl.dot(left, right.T, max_num_imprecise_acc=inputs)
        else:
            total = tl.dot(left, right.T, total, input_precision="ieee", out_dtype=total.dtype)
        a += inputs
        b += inputs
    finish_tile(total, more, sums, arrived, tile, splits, False, y, row_scale, column_scale, bias, residual, row,
                row_end, channel, column, column_end, n, scale_stride, residual_stride, gelu, modal)  # fmt: skip
