"""A product in, residual + activation(scales · product + bias) out: the end of our products, a kernel after torch's.

Letters: M rows, N output channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qalign_kernels.cuda.activation import quick_gelu
from qalign_kernels.cuda.launch import Epilogue, cdiv, row_stride, row_view
from qalign_kernels.cuda.runtime import Pointer, Value, begin, constexpr, jit, overlap, tl

_ROWS, _COLUMNS = 4, 512  # of a program: 16 values a thread, in whole lines of memory


def finish_product(
    product: Tensor, row_scale: Tensor | None, column_scale: Tensor | None, bias: Tensor | None, epilogue: Epilogue
) -> Tensor:
    """[M, N], contiguous, of any dtype -> [M, N] of the epilogue's, in the product's own memory where dtypes are equal.

    row_scale [M, 1] and column_scale [N] come together or not at all; bias [N].
    """
    (m, n), dtype = product.shape, epilogue.dtype
    y = product if product.dtype == dtype else torch.empty_like(product, dtype=dtype)
    residual = None if epilogue.residual is None else row_view(epilogue.residual)
    _finish_product[(cdiv(m, _ROWS) * cdiv(n, _COLUMNS),)](
        product, y, row_scale, column_scale, bias, residual,
        m, n, row_stride(row_scale), row_stride(residual),
        epilogue.activation == "quick_gelu", _ROWS, _COLUMNS, **overlap(),
    )  # fmt: skip
    return y


@jit
def _finish_product(
    product: Pointer, y: Pointer, row_scale: Pointer, column_scale: Pointer, bias: Pointer, residual: Pointer,
    m: Value, n: Value, scale_stride: Value, residual_stride: Value,
    gelu: constexpr, rows: constexpr, columns: constexpr, pdl: constexpr,
) -> None:  # fmt: skip
    """y = residual + activation(row_scale · column_scale · product + bias); product [m, n]."""
    begin(pdl)
    across, program = tl.cdiv(n, columns), tl.program_id(0)
    i, j = program // across * rows + tl.arange(0, rows), program % across * columns + tl.arange(0, columns)
    inside = (i < m)[:, None] & (j < n)[None, :]
    x = tl.load(product + i.to(tl.int64)[:, None] * n + j[None, :], inside, 0).to(tl.float32)
    finish(x, y, row_scale, column_scale, bias, residual, i, j, m, n, n, scale_stride, residual_stride, gelu)


@jit
def finish(
    product: Value, y: Pointer, row_scale: Pointer, column_scale: Pointer, bias: Pointer, residual: Pointer,
    i: Value, j: Value, row_end: Value, column_end: Value, n: Value, scale_stride: Value, residual_stride: Value,
    gelu: constexpr,
) -> None:  # fmt: skip
    """The epilogue of a tile of float32 products, at rows i and columns j of y [..., n], as far as the two ends."""
    inside = (i < row_end)[:, None] & (j < column_end)[None, :]
    if row_scale is not None:
        product *= tl.load(row_scale + i * scale_stride, i < row_end, 0.0)[:, None]
        product *= tl.load(column_scale + j, j < column_end, 0.0)[None, :]
    if bias is not None:
        product += tl.load(bias + j, j < column_end, 0.0).to(tl.float32)[None, :]
    if gelu:
        product = quick_gelu(product)
    row = i.to(tl.int64)[:, None]
    if residual is not None:
        product += tl.load(residual + row * residual_stride + j[None, :], inside, 0.0).to(tl.float32)
    tl.store(y + row * n + j[None, :], product.to(y.dtype.element_ty), inside)


@jit
def finish_tile(
    total: Value, more: Value, sums: Pointer, arrived: Pointer, tile: Value, splits: constexpr, on_its_side: constexpr,
    y: Pointer, row_scale: Pointer, column_scale: Pointer, bias: Pointer, residual: Pointer, row: Value, row_end: Value,
    channel: Value, column: Value, column_end: Value, n: Value, scale_stride: Value, residual_stride: Value,
    gelu: constexpr, modal: constexpr,
) -> None:  # fmt: skip
    """`finish` of a tile's sums [rows, columns], which begin at `row` and `column`; their weight begins at `channel`.

    `more` has the sums of the rows after them, or is None. Where `splits` programs have a part of this tile each, the
    last one to come adds the parts and finishes. With `on_its_side` sums are [columns, rows].
    """
    if modal:
        column_scale += channel - column
        if bias is not None:
            bias += channel - column
    rows: constexpr = total.shape[1] if on_its_side else total.shape[0]
    columns: constexpr = total.shape[0] if on_its_side else total.shape[1]
    size: constexpr = rows * columns
    more_rows: constexpr = 0 if more is None else more.shape[1] if on_its_side else more.shape[0]
    # Halves are finished one after the other: a whole tile needs more registers than there are (not one on its side).
    halves: constexpr = columns >= 128 and rows >= 128 and not on_its_side
    height, width = row_end - row, column_end - column
    i, j = row + tl.arange(0, rows), column + tl.arange(0, columns)
    complete = True
    if splits > 1:
        sums += tile * (size + more_rows * columns)
        add_part(total, sums, height, width, on_its_side)
        if more is not None:
            add_part(more, sums + size, height - rows, width, on_its_side)
        tl.debug_barrier()  # the parts of all threads are in memory before the program says so
        complete = tl.atomic_add(arrived + tile, 1, sem="acq_rel") == splits - 1
    if complete:
        if splits > 1:
            tl.store(arrived + tile, 0)
            total = take_sum(total, sums, height, width, on_its_side)
            if more is not None:
                more = take_sum(more, sums + size, height - rows, width, on_its_side)
        product = total.T if on_its_side else total
        if halves:
            left, right = product.reshape((rows, 2, columns // 2)).permute((0, 2, 1)).split()
            half_j = column + tl.arange(0, columns // 2)
            finish(left.to(tl.float32), y, row_scale, column_scale, bias, residual, i, half_j, row_end, column_end, n,
                   scale_stride, residual_stride, gelu)  # fmt: skip
            finish(right.to(tl.float32), y, row_scale, column_scale, bias, residual, i, half_j + columns // 2, row_end,
                   column_end, n, scale_stride, residual_stride, gelu)  # fmt: skip
        else:
            finish(product.to(tl.float32), y, row_scale, column_scale, bias, residual, i, j, row_end, column_end, n,
                   scale_stride, residual_stride, gelu)  # fmt: skip
        if more is not None:
            product, more_i = more.T if on_its_side else more, row + rows + tl.arange(0, more_rows)
            finish(product.to(tl.float32), y, row_scale, column_scale, bias, residual, more_i, j, row_end, column_end,
                   n, scale_stride, residual_stride, gelu)  # fmt: skip


@jit
def add_part(total: Value, sums: Pointer, height: Value, width: Value, on_its_side: constexpr) -> None:
    """Adds one program's part of a shared tile to `sums`: its first `height` rows and `width` columns."""
    place, inside = places(total, height, width, on_its_side)
    tl.atomic_add(sums + place, total, inside, sem="relaxed")


@jit
def take_sum(total: Value, sums: Pointer, height: Value, width: Value, on_its_side: constexpr) -> Value:
    """The sum of all parts, in total's shape. Leaves zeros for the next product."""
    place, inside = places(total, height, width, on_its_side)
    total = tl.load(sums + place, inside, 0, cache_modifier=".cg")
    tl.store(sums + place, tl.zeros_like(total), inside)
    return total


@jit
def places(total: Value, height: Value, width: Value, on_its_side: constexpr) -> Value:
    """The offsets of a tile's sums, and which of them are inside its rows and columns."""
    i, j = tl.arange(0, total.shape[0])[:, None], tl.arange(0, total.shape[1])[None, :]
    inside = (i < width) & (j < height) if on_its_side else (i < height) & (j < width)
    return i * total.shape[1] + j, inside
