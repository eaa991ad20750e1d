"""`contract.norm` on a GPU, one program for each row. Rows of any float come in; floats or rows in 8 bits go out.

Letters: N rows, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qalign_kernels.contract.quantized_rows import QuantizedRows
from qalign_kernels.cuda.launch import block_of, row_view
from qalign_kernels.cuda.quantized_rows import empty_rows, store_row
from qalign_kernels.cuda.runtime import Pointer, Value, begin, constexpr, jit, overlap, tl


def layer_norm(x: Tensor, gain: Tensor, bias: Tensor, eps: float, dtype: torch.dtype | None = None) -> Tensor:
    """Any float [..., D] -> the same shape, in `dtype` or x's own; gain and bias [D]."""
    y = torch.empty(x.shape, dtype=dtype or x.dtype, device=x.device)
    _launch_layer_norm(x, gain, bias, eps, y, None)
    return y


def layer_norm_rows(
    x: Tensor, gain: Tensor, bias: Tensor, eps: float, dtype: torch.dtype = torch.int8
) -> QuantizedRows:
    """quantize_rows(layer_norm(x)) in one kernel, for x [..., D]."""
    rows = empty_rows(x.shape, dtype, x.device)
    _launch_layer_norm(x, gain, bias, eps, rows.values, rows.scale)
    return rows


def rms_norm(
    x: Tensor, visual_gain: Tensor, text_gain: Tensor, split: int, eps: float, dtype: torch.dtype | None = None
) -> Tensor:
    """Any float [N, D], of which the first `split` rows are visual -> [N, D], in `dtype` or x's own; gains [D]."""
    y = torch.empty(x.shape, dtype=dtype or x.dtype, device=x.device)
    _launch_rms_norm(x, visual_gain, text_gain, split, eps, y, None)
    return y


def rms_norm_rows(
    x: Tensor, visual_gain: Tensor, text_gain: Tensor, split: int, eps: float, dtype: torch.dtype = torch.int8
) -> QuantizedRows:
    """quantize_rows(rms_norm(x)) in one kernel, for x [N, D]."""
    rows = empty_rows(x.shape, dtype, x.device)
    _launch_rms_norm(x, visual_gain, text_gain, split, eps, rows.values, rows.scale)
    return rows


def _launch_layer_norm(x: Tensor, gain: Tensor, bias: Tensor, eps: float, out: Tensor, scales: Tensor | None) -> None:
    x = row_view(x)
    width = x.shape[1]
    _layer_norm[(len(x),)](x, gain, bias, out, scales, width, x.stride(0), eps, **block_of(width), **overlap())


def _launch_rms_norm(
    x: Tensor, visual: Tensor, text: Tensor, split: int, eps: float, out: Tensor, scales: Tensor | None
) -> None:
    x = row_view(x)
    width = x.shape[1]
    _rms_norm[(len(x),)](x, visual, text, out, scales, split, width, x.stride(0), eps, **block_of(width), **overlap())


@jit
def _layer_norm(
    x: Pointer, gain: Pointer, bias: Pointer, out: Pointer, scales: Pointer, width: Value, stride: Value, eps: Value,
    block: constexpr, pdl: constexpr,
) -> None:  # fmt: skip
    begin(pdl)
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, block)
    inside = i < width
    v = tl.load(x + row * stride + i, inside, 0.0).to(tl.float32)
    v = tl.where(inside, v - tl.sum(v, 0) / width, 0.0)
    unit = v * tl.math.rsqrt(tl.sum(v * v, 0) / width + eps)
    y = unit * tl.load(gain + i, inside, 0.0).to(tl.float32) + tl.load(bias + i, inside, 0.0).to(tl.float32)
    store_row(out, scales, row, i, y, width)


@jit
def _rms_norm(
    x: Pointer, visual: Pointer, text: Pointer, out: Pointer, scales: Pointer, split: Value, width: Value,
    stride: Value, eps: Value, block: constexpr, pdl: constexpr,
) -> None:  # fmt: skip
    begin(pdl)
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, block)
    inside = i < width
    v = tl.load(x + row * stride + i, inside, 0.0).to(tl.float32)
    if row < split:
        gain = tl.load(visual + i, inside, 0.0).to(tl.float32)
    else:
        gain = tl.load(text + i, inside, 0.0).to(tl.float32)
    store_row(out, scales, row, i, v * tl.math.rsqrt(tl.sum(v * v, 0) / width + eps) * gain, width)
