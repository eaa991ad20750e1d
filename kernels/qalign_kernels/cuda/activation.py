"""`contract.activation` on a GPU: SwiGLU with a program for each row, QuickGELU as a part of a product's epilogue."""

from __future__ import annotations

import torch
from torch import Tensor

from qalign_kernels.contract.quantized_rows import QuantizedRows
from qalign_kernels.cuda.launch import block_of, row_view
from qalign_kernels.cuda.quantized_rows import empty_rows, store_row
from qalign_kernels.cuda.runtime import Pointer, Value, begin, constexpr, jit, overlap, tl


def swiglu(gate_up: Tensor) -> Tensor:
    """Any float [..., 2I] -> silu(gate) · up [..., I]; the gate is the first half."""
    y = torch.empty_like(gate_up.chunk(2, dim=-1)[0], memory_format=torch.contiguous_format)
    _launch(gate_up, y, None)
    return y


def swiglu_rows(gate_up: Tensor, dtype: torch.dtype = torch.int8) -> QuantizedRows:
    """quantize_rows(swiglu(gate_up)) in one kernel, for any float [..., 2I]."""
    rows = empty_rows((*gate_up.shape[:-1], gate_up.shape[-1] // 2), dtype, gate_up.device)
    _launch(gate_up, rows.values, rows.scale)
    return rows


def _launch(gate_up: Tensor, out: Tensor, scales: Tensor | None) -> None:
    x = row_view(gate_up)
    width = x.shape[1] // 2
    _swiglu[(len(x),)](x, out, scales, width, x.stride(0), **block_of(width), **overlap())


@jit
def quick_gelu(x: Value) -> Value:
    """x · sigmoid(1.702 x) of a float32 tile."""
    return x * tl.sigmoid(1.702 * x)


@jit
def _swiglu(
    x: Pointer, out: Pointer, scales: Pointer, width: Value, stride: Value, block: constexpr, pdl: constexpr
) -> None:
    begin(pdl)
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, block)
    gate = tl.load(x + row * stride + i, i < width, 0.0).to(tl.float32)
    up = tl.load(x + row * stride + width + i, i < width, 0.0).to(tl.float32)
    store_row(out, scales, row, i, gate * tl.sigmoid(gate) * up, width)
