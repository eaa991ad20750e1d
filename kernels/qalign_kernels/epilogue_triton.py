"""A product in, residual + activation(scales · product + bias) out: the end of our products, a kernel after torch's."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from qalign_kernels.activation_triton import quick_gelu
from qalign_kernels.ops import Activation
from qalign_kernels.triton_runtime import Pointer, Value, begin, cdiv, constexpr, jit, overlap, row_view, tl

_ROWS, _COLUMNS = 4, 512  # of a program: 16 values a thread, in lines of the memory


class Epilogue(NamedTuple):
    """What becomes of a product before it is stored."""

    dtype: torch.dtype
    activation: Activation = None
    residual: Tensor | None = None  # [..., N]


def finish_product(
    product: Tensor, row_scale: Tensor | None, column_scale: Tensor | None, bias: Tensor | None, epilogue: Epilogue
) -> Tensor:
    """[M, N], contiguous, in any type -> [M, N] of the epilogue's, in the product's place where that is the same."""
    (m, n), dtype = product.shape, epilogue.dtype
    y = product if product.dtype == dtype else torch.empty_like(product, dtype=dtype)
    residual = None if epilogue.residual is None else row_view(epilogue.residual)
    _finish_product[(cdiv(m, _ROWS) * cdiv(n, _COLUMNS),)](
        product, y, row_scale, column_scale, bias, residual,
        m, n, row_stride(row_scale), row_stride(residual),
        epilogue.activation == "quick_gelu", _ROWS, _COLUMNS, **overlap(),
    )  # fmt: skip
    return y


def row_stride(x: Tensor | None) -> int:
    return 0 if x is None else x.stride(0)


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
    """The epilogue of a tile, float32, at rows i and columns j, as far as those ends, of y [..., n]."""
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
