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

from qalign_kernels import linear_hopper, torch_product
from qalign_kernels.epilogue_triton import Epilogue, finish, row_stride
from qalign_kernels.linear import FP8, LARGEST, Modal, Weight
from qalign_kernels.rows import Rows
from qalign_kernels.rows_triton import quantize_groups, quantize_rows
from qalign_kernels.tile_order import origin
from qalign_kernels.tiles import Shares, Tile, tiles_of
from qalign_kernels.triton_runtime import Pointer, Value, begin, cdiv, constexpr, jit, overlap, row_view, tl

SMALLEST_GROUP = 64  # inputs: a step of 8-bit tensor cores is 32, and a group is two halves
_MOST_IMPRECISE = 128  # inputs whose fp8 products may be summed in a tensor core's own precision


def form_of(w: Weight) -> str:
    """As tables of tiles name it."""
    return "int4" if w.zero is not None else str(w.weight.dtype).removeprefix("torch.")


def align(w: Weight) -> Weight:
    """The same with zeros after its inputs, to a multiple of 16: rows of other lengths are loaded byte by byte."""
    missing = -w.weight.shape[1] % 16
    return w if w.zero is not None or not missing else replace(w, weight=F.pad(w.weight, (0, missing)))


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
    where programs that share a tile add up, and `modal` for a weight of several linears; both for int8 alone.
    """
    if tile is None:
        return torch_product.linear(as_read(x, w), w, epilogue)
    n = len(w.weight) if modal is None else (len(w.weight) + modal.common) // 2
    y = torch.empty((*x.shape[:-1], n), dtype=epilogue.dtype, device=w.weight.device)
    residual = None if epilogue.residual is None else row_view(epilogue.residual)
    gelu = epilogue.activation == "quick_gelu"
    if w.zero is not None:
        _launch_groups(x, w, tile, y, residual, gelu)
    elif tile.hopper:
        rows = as_read(x, w)
        assert isinstance(rows, Rows) and w.scale is not None and shares is not None, w.name
        rows = Rows(row_view(rows.values), row_view(rows.scale))
        linear_hopper.launch(rows, w.weight, w.scale, w.bias, residual, y.view(-1, n), tile, shares, gelu, modal)
    else:
        _launch(x, w, tile, y.view(-1, n), residual, gelu, shares, modal)
    return y


def as_read(x: Tensor | Rows, w: Weight) -> Tensor | Rows:
    """Rows as a product with int8, fp8 or float weights takes them."""
    if isinstance(x, Rows):
        return x
    missing = w.weight.shape[1] - x.shape[-1]
    x = F.pad(x, (0, missing)) if missing else x  # which copies even where nothing is missing
    return quantize_rows(x, w.weight.dtype) if w.weight.dtype in LARGEST else x.to(w.weight.dtype)


def _launch(
    x: Tensor | Rows, w: Weight, tile: Tile, y: Tensor, residual: Tensor | None, gelu: bool, shares: Shares | None,
    modal: Modal | None,
) -> None:  # fmt: skip
    x = as_read(x, w)
    values = row_view(x.values if isinstance(x, Rows) else x)
    scale = row_view(x.scale) if isinstance(x, Rows) else None
    (m, k), n = values.shape, y.shape[1]
    tiles = tiles_of(m, n, tile, modal)
    assert w.weight.shape[1] == k and values.dtype == w.weight.dtype, w.name
    assert w.weight.dtype != FP8 or tile.inputs <= _MOST_IMPRECISE, tile
    assert tile.splits == 1 or (shares is not None and shares.hold(tiles, tile)), tile
    split, common = (m, n) if modal is None else modal
    _multiply[(tiles * tile.splits,)](
        values, w.weight, y, scale, w.scale, w.bias, residual, *(shares or (None, None)),
        m, n, k, split, common, values.stride(0), row_stride(scale), row_stride(residual),
        gelu, k % tile.inputs == 0, modal is not None, tile.splits, *_powers(tile.rows), tile.columns, tile.inputs,
        num_stages=tile.stages, num_warps=tile.warps, **overlap(),
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
        num_stages=tile.stages, num_warps=tile.warps, **overlap(),
    )  # fmt: skip


def _powers(rows: int) -> tuple[int, int]:
    """A program's rows as two powers of two, or as one and 0: 77 rows are 64 and 16."""
    most = 1 << (rows.bit_length() - 1)
    return most, rows - most


@jit
def _multiply(  # noqa: PLR0912, PLR0915 (what is not true is not compiled)
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
    b = (
        w
        + (channel + tl.where(j < column_end, j - column, 0)).to(tl.int64)[:, None] * k
        + first
        + tl.arange(0, inputs)[None, :]
    )
    whole: constexpr = w.dtype.element_ty.is_int()
    halves: constexpr = columns >= 128 and rows >= 128
    imprecise: constexpr = w.dtype.element_ty.is_fp8()
    total = tl.zeros((rows, columns), tl.int32 if whole else tl.float32)
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
    complete = True
    if splits > 1:
        sums += tile * ((rows + more_rows) * columns)
        add_part(total, sums, row_end - row)
        if more_rows > 0:
            add_part(more, sums + rows * columns, row_end - row - rows)
        tl.debug_barrier()  # all threads' parts are there before it is said
        complete = tl.atomic_add(arrived + tile, 1, sem="acq_rel") == splits - 1
    if modal:
        column_scale += channel - column
        if bias is not None:
            bias += channel - column
    if complete:
        if splits > 1:
            tl.store(arrived + tile, 0)
            total = take_sum(total, sums, row_end - row)
            if more_rows > 0:
                more = take_sum(more, sums + rows * columns, row_end - row - rows)
        if halves:  # one after the other: both at once need more registers than there are
            left, right = total.reshape((rows, 2, columns // 2)).permute((0, 2, 1)).split()
            half_j = column + tl.arange(0, columns // 2)
            finish(left.to(tl.float32), y, row_scale, column_scale, bias, residual, i, half_j, row_end, column_end, n,
                   scale_stride, residual_stride, gelu)  # fmt: skip
            finish(right.to(tl.float32), y, row_scale, column_scale, bias, residual, i, half_j + columns // 2, row_end,
                   column_end, n, scale_stride, residual_stride, gelu)  # fmt: skip
        else:
            finish(total.to(tl.float32), y, row_scale, column_scale, bias, residual, i, j, row_end, column_end, n,
                   scale_stride, residual_stride, gelu)  # fmt: skip
        if more_rows > 0:
            finish(more.to(tl.float32), y, row_scale, column_scale, bias, residual, more_i, j, row_end, column_end, n,
                   scale_stride, residual_stride, gelu)  # fmt: skip


@jit
def add_part(total: Value, sums: Pointer, height: Value) -> None:
    """What one of the programs that share a tile has of its first `height` rows."""
    i, j = tl.arange(0, total.shape[0])[:, None], tl.arange(0, total.shape[1])[None, :]
    tl.atomic_add(sums + i * total.shape[1] + j, total, (i < height) & (j >= 0), sem="relaxed")


@jit
def take_sum(total: Value, sums: Pointer, height: Value) -> Value:
    """The sum of all parts, of total's shape; zeros are left for the next product."""
    i, j = tl.arange(0, total.shape[0])[:, None], tl.arange(0, total.shape[1])[None, :]
    place, inside = sums + i * total.shape[1] + j, (i < height) & (j >= 0)
    total = tl.load(place, inside, 0, cache_modifier=".cg")
    tl.store(place, tl.zeros_like(total), inside)
    return total


@jit
def _multiply_groups(
    x: Pointer, w: Pointer, y: Pointer, row_scale: Pointer, column_scale: Pointer, zero: Pointer, bias: Pointer,
    residual: Pointer, m: Value, n: Value, groups: Value, zeros: Value, residual_stride: Value,
    gelu: constexpr, rows: constexpr, columns: constexpr, half: constexpr, pdl: constexpr,
) -> None:  # fmt: skip
    """The same over x [m, G, 2, g/2] and row_scale [G, m], w [n, G, g/2], column_scale [n, G] and zero [n, G/2]."""
    begin(pdl)
    row, _, column, _, _ = origin(tl.program_id(0), m, n, m, n, False, rows, columns)
    i, j = row + tl.arange(0, rows), column + tl.arange(0, columns)
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
    finish(total, y, None, None, bias, residual, i, j, m, n, n, 0, residual_stride, gelu)
