"""`contract.quantized_rows` on a GPU, one program for each row, to the contract's bits.

Divisions are IEEE's, and numbers are rounded to the nearest, ties to even.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qalign_kernels.contract.quantized_rows import LARGEST, QuantizedRows
from qalign_kernels.cuda.launch import block_of, row_view
from qalign_kernels.cuda.runtime import Pointer, Value, begin, constexpr, jit, overlap, tl


def quantize_rows(x: Tensor, dtype: torch.dtype = torch.int8) -> QuantizedRows:
    """Any float [..., K] -> the same in int8 or e4m3, with a scale for each row."""
    rows = row_view(x)
    out = empty_rows(x.shape, dtype, x.device)
    _quantize_rows[(len(rows),)](
        rows, out.values, out.scale, rows.shape[1], rows.stride(0), **block_of(rows.shape[1]), **overlap()
    )
    return out


def empty_rows(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> QuantizedRows:
    """Memory for rows [..., K] and their scales."""
    assert dtype in LARGEST, dtype
    return QuantizedRows(
        torch.empty(tuple(shape), dtype=dtype, device=device),
        torch.empty((*shape[:-1], 1), dtype=torch.float32, device=device),
    )


@jit
def scale_of(largest: Value, most: constexpr) -> Value:
    """A row's scale, from its largest magnitude and the dtype's largest number."""
    return tl.math.div_rn(tl.maximum(largest, 1e-30), most)


@jit
def to_int8(x: Value, scale: Value) -> Value:
    """round(x / scale)."""
    # 1.5 * 2^23 leaves a float32 no bit for fractions, so that the sum is rounded, ties to even
    return ((tl.math.div_rn(x, scale) + 12582912.0) - 12582912.0).to(tl.int8)


@jit
def to_e4m3(x: Value, scale: Value) -> Value:
    """e4m3(x / scale), rounded before it is converted: sm_89 converts through float16, and the interpreter cuts off."""
    v = tl.math.div_rn(x, scale)
    power = (v.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)  # the power of two below |v|
    spread = tl.maximum(power, 0.015625) * 1572864.0  # 1.5 * 2^20: 2^-6 is the smallest normal value, of 3 bits
    return ((v + spread) - spread).to(tl.float8e4nv)


@jit
def store_row(values: Pointer, scales: Pointer, row: Value, i: Value, x: Value, width: Value) -> None:
    """Stores a whole row x, which is zero past its width: in 8 bits where `scales` is given, else in values' dtype."""
    largest = tl.max(tl.abs(x), 0)
    if scales is None:
        tl.store(values + row * width + i, x.to(values.dtype.element_ty), i < width)
    elif values.dtype.element_ty == tl.float8e4nv:
        scale = scale_of(largest, 448.0)
        tl.store(values + row * width + i, to_e4m3(x, scale), i < width)
        tl.store(scales + row, scale)
    else:
        scale = scale_of(largest, 127.0)
        tl.store(values + row * width + i, to_int8(x, scale), i < width)
        tl.store(scales + row, scale)


@jit
def _quantize_rows(
    x: Pointer, values: Pointer, scales: Pointer, width: Value, stride: Value, block: constexpr, pdl: constexpr
) -> None:
    begin(pdl)
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, block)
    store_row(values, scales, row, i, tl.load(x + row * stride + i, i < width, 0.0).to(tl.float32), width)
