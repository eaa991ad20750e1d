"""`contract.norm` on a GPU, one program a row: any float in; out the same type, or rows through 8 bits."""

from __future__ import annotations

import torch
from torch import Tensor

from qalign_kernels.contract.quantized_rows import Rows
from qalign_kernels.cuda.rows import empty_rows, store_row
from qalign_kernels.cuda.runtime import Pointer, Value, begin, block_of, constexpr, jit, overlap, row_view, tl


def layer_norm(x: Tensor, gain: Tensor, bias: Tensor, eps: float, dtype: torch.dtype | None = None) -> Tensor:
    """x [..., D] -> the same shape, as dtype or x's own."""
    y = torch.empty(x.shape, dtype=dtype or x.dtype, device=x.device)
    _launch_layer_norm(x, gain, bias, eps, y, None)
    return y


def layer_norm_rows(x: Tensor, gain: Tensor, bias: Tensor, eps: float, dtype: torch.dtype = torch.int8) -> Rows:
    """quantize_rows(layer_norm(x)), x [..., D]."""
    rows = empty_rows(x.shape, dtype, x.device)
    _launch_layer_norm(x, gain, bias, eps, rows.values, rows.scale)
    return rows


def rms_norm(
    x: Tensor, visual_gain: Tensor, text_gain: Tensor, split: int, eps: float, dtype: torch.dtype | None = None
) -> Tensor:
    """Rows [N, D], the first `split` of them visual, the rest text -> [N, D], as dtype or x's own."""
    y = torch.empty(x.shape, dtype=dtype or x.dtype, device=x.device)
    _launch_rms_norm(x, visual_gain, text_gain, split, eps, y, None)
    return y


def rms_norm_rows(
    x: Tensor, visual_gain: Tensor, text_gain: Tensor, split: int, eps: float, dtype: torch.dtype = torch.int8
) -> Rows:
    """quantize_rows(rms_norm(x)), x [N, D]."""
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
