"""`qalign_kernels.linear` on a GPU: rows and a weight in, residual + activation(x̂ ŵᵀ + b) out of one kernel.

Products of whole numbers are summed in int32, exactly, as far as one scale reaches: the whole row for int8, a group of
inputs for int4, whose weights are spread to int8 on their way to the product. Those of fp8 are summed by tensor cores
in fewer bits than a float32 has, so that a sum goes into float32 after each step. Floats multiply here only where the
table of tiles says so: by rule they are torch's own product's.

Letters: M rows, K inputs, N output channels, g inputs a group, G = ceil(K / g) groups.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from qalign_kernels import torch_product
from qalign_kernels.epilogue_triton import Epilogue, finish, row_stride
from qalign_kernels.linear import FP8, LARGEST, Weight
from qalign_kernels.rows import Rows
from qalign_kernels.rows_triton import quantize_groups, quantize_rows
from qalign_kernels.tiles import Tile
from qalign_kernels.triton_runtime import Pointer, Value, cdiv, constexpr, jit, row_view, tl

SMALLEST_GROUP = 64  # inputs: a step of 8-bit tensor cores is 32, and a group is two halves
_MOST_IMPRECISE = 128  # inputs whose fp8 products may be summed in a tensor core's own precision
_BAND = constexpr(8)  # tiles of rows that walk the columns together, so that they find the weights in the cache


def form_of(w: Weight) -> str:
    """As tables of tiles name it."""
    return "int4" if w.zero is not None else str(w.weight.dtype).removeprefix("torch.")


def align(w: Weight) -> Weight:
    """The same with zeros after its inputs, to a multiple of 16: rows of other lengths are loaded byte by byte."""
    missing = -w.weight.shape[1] % 16
    return w if w.zero is not None or not missing else replace(w, weight=F.pad(w.weight, (0, missing)))


def linear(x: Tensor | Rows, w: Weight, tile: Tile | None, epilogue: Epilogue) -> Tensor:
    """Any float or quantized rows [..., K] -> [..., N] of the epilogue's type, in the precision the weight has.

    Without a tile by torch's own product. A weight aligned to more inputs than rows have takes float rows.
    """
    if tile is None:
        return torch_product.linear(as_read(x, w), w, epilogue)
    y = torch.empty((*x.shape[:-1], len(w.weight)), dtype=epilogue.dtype, device=w.weight.device)
    residual = None if epilogue.residual is None else row_view(epilogue.residual)
    launch = _launch if w.zero is None else _launch_groups
    launch(x, w, tile, y, residual, epilogue.activation == "quick_gelu")
    return y


def as_read(x: Tensor | Rows, w: Weight) -> Tensor | Rows:
    """Rows as a product with int8, fp8 or float weights takes them."""
    if isinstance(x, Rows):
        return x
    missing = w.weight.shape[1] - x.shape[-1]
    x = F.pad(x, (0, missing)) if missing else x  # which copies even where nothing is missing
    return quantize_rows(x, w.weight.dtype) if w.weight.dtype in LARGEST else x.to(w.weight.dtype)


def _launch(x: Tensor | Rows, w: Weight, tile: Tile, y: Tensor, residual: Tensor | None, gelu: bool) -> None:
    x = as_read(x, w)
    values = row_view(x.values if isinstance(x, Rows) else x)
    scale = row_view(x.scale) if isinstance(x, Rows) else None
    (m, k), n = values.shape, len(w.weight)
    assert w.weight.shape == (n, k) and values.dtype == w.weight.dtype, w.name
    assert w.weight.dtype != FP8 or tile.inputs <= _MOST_IMPRECISE, tile
    _multiply[(cdiv(m, tile.rows) * cdiv(n, tile.columns),)](
        values, w.weight, y, scale, w.scale, w.bias, residual,
        m, n, k, values.stride(0), row_stride(scale), row_stride(residual),
        gelu, k % tile.inputs == 0, tile.rows, tile.columns, tile.inputs,
        num_stages=tile.stages, num_warps=tile.warps,
    )  # fmt: skip


def _launch_groups(x: Tensor | Rows, w: Weight, tile: Tile, y: Tensor, residual: Tensor | None, gelu: bool) -> None:
    n, groups, half = w.weight.shape
    assert isinstance(x, Tensor) and w.scale is not None and w.zero is not None, w.name
    assert 2 * half >= SMALLEST_GROUP, f"{w.name}: groups of {2 * half} inputs; at least {SMALLEST_GROUP}"
    values, scale = quantize_groups(x, 2 * half)
    m = len(values)
    assert values.shape[1] == groups, w.name
    _multiply_groups[(cdiv(m, tile.rows) * cdiv(n, tile.columns),)](
        values, w.weight, y, scale, w.scale, w.zero, w.bias, residual,
        m, n, groups, w.zero.shape[1], row_stride(residual),
        gelu, tile.rows, tile.columns, half,
        num_stages=tile.stages, num_warps=tile.warps,
    )  # fmt: skip


@jit
def _multiply(
    x: Pointer, w: Pointer, y: Pointer, row_scale: Pointer, column_scale: Pointer, bias: Pointer, residual: Pointer,
    m: Value, n: Value, k: Value, x_stride: Value, scale_stride: Value, residual_stride: Value,
    gelu: constexpr, even: constexpr, rows: constexpr, columns: constexpr, inputs: constexpr,
) -> None:  # fmt: skip
    """y = residual + activation(row_scale · column_scale · x wᵀ + bias); x [m, k], w [n, k]."""
    i, j = tile_of(m, n, rows, columns)
    a = x + tl.where(i < m, i, 0).to(tl.int64)[:, None] * x_stride + tl.arange(0, inputs)[None, :]
    b = w + tl.where(j < n, j, 0).to(tl.int64)[:, None] * k + tl.arange(0, inputs)[None, :]
    whole: constexpr = w.dtype.element_ty.is_int()
    imprecise: constexpr = w.dtype.element_ty.is_fp8()
    total = tl.zeros((rows, columns), tl.int32 if whole else tl.float32)
    for start in range(0, k, inputs):
        if even:
            left, right = tl.load(a), tl.load(b)
        else:
            inside = tl.arange(0, inputs)[None, :] < k - start
            left, right = tl.load(a, inside, 0.0), tl.load(b, inside, 0.0)
        if imprecise:  # said to be, or the compiler lets the tensor core add to the total
            total += tl.dot(left, right.T, max_num_imprecise_acc=inputs)
        else:
            total = tl.dot(left, right.T, total, input_precision="ieee", out_dtype=total.dtype)
        a += inputs
        b += inputs
    product = total.to(tl.float32)
    finish(product, y, row_scale, column_scale, bias, residual, i, j, m, n, scale_stride, residual_stride, gelu)


@jit
def _multiply_groups(
    x: Pointer, w: Pointer, y: Pointer, row_scale: Pointer, column_scale: Pointer, zero: Pointer, bias: Pointer,
    residual: Pointer, m: Value, n: Value, groups: Value, zeros: Value, residual_stride: Value,
    gelu: constexpr, rows: constexpr, columns: constexpr, half: constexpr,
) -> None:  # fmt: skip
    """The same over x [m, G, 2, g/2] and row_scale [G, m], w [n, G, g/2], column_scale [n, G] and zero [n, G/2]."""
    i, j = tile_of(m, n, rows, columns)
    row, column = tl.where(i < m, i, 0).to(tl.int64), tl.where(j < n, j, 0).to(tl.int64)
    a = x + row[:, None] * (groups * 2 * half) + tl.arange(0, half)[None, :]
    b = w + column[:, None] * (groups * half) + tl.arange(0, half)[None, :]
    total = tl.zeros((rows, columns), tl.float32)
    for g in range(groups):
        row_step, column_step = tl.load(row_scale + g * m + row), tl.load(column_scale + column * groups + g)
        middle = ((tl.load(zero + column * zeros + g // 2) >> (g % 2 * 4)) & 15).to(tl.int8)[:, None]
        pair = tl.load(b)  # [columns, half]
        low, high = (pair & 15).to(tl.int8) - middle, (pair >> 4).to(tl.int8) - middle
        part = tl.dot(tl.load(a), low.T, out_dtype=tl.int32)
        part = tl.dot(tl.load(a + half), high.T, part, out_dtype=tl.int32)
        total += part.to(tl.float32) * row_step[:, None] * column_step[None, :]
        a += 2 * half
        b += half
    finish(total, y, None, None, bias, residual, i, j, m, n, 0, residual_stride, gelu)


@jit
def tile_of(m: Value, n: Value, rows: constexpr, columns: constexpr) -> Value:
    """This program's rows and columns."""
    across, down = tl.cdiv(n, columns), tl.cdiv(m, rows)
    program = tl.program_id(0)
    first = program // (_BAND * across) * _BAND
    band = tl.minimum(down - first, _BAND)
    inside = program % (_BAND * across)
    i = (first + inside % band) * rows + tl.arange(0, rows)
    j = inside // band * columns + tl.arange(0, columns)
    return i, j
