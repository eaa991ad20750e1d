"""`Ops` on the C++ kernels, for float32 tensors in a CPU's memory. csrc/table.h has the structs that it fills."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import CFUNCTYPE, POINTER, Structure, byref, c_char_p, c_float, c_int64, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from qalign_kernels.contract.linear import Weight
from qalign_kernels.contract.ops import Activation, Ops
from qalign_kernels.contract.quantized_rows import QuantizedRows
from qalign_kernels.cpu import native

_KINDS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.int8: 3, torch.uint8: 4}


class _Linear(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("kind", "rows", "inputs", "outputs")),
        *((name, c_void_p) for name in ("x", "weight", "scale", "groups", "bias", "residual")),
        ("quick_gelu", c_int64),
        ("out", c_void_p),
    ]


class _Attention(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("batch", "heads", "queries", "keys", "width")),
        *((name, c_void_p) for name in "qkv"),
        *((name, c_int64) for name in ("q_row", "k_row", "v_row", "q_batch", "k_batch", "v_batch", "exact")),
        ("out", c_void_p),
    ]


class _AttentionByModality(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("batch", "heads", "width", "visual", "text", "prefix", "last")),
        *((name, c_void_p) for name in ("q", "kv_visual", "kv_text", "prefix_kv", "turns", "out")),
    ]


class _Table(Structure):
    _fields_ = [
        ("name", c_char_p),
        ("linear", CFUNCTYPE(None, POINTER(_Linear))),
        ("layer_norm", CFUNCTYPE(None, c_void_p, c_void_p, c_void_p, c_float, c_int64, c_int64, c_void_p)),
        ("rms_norm", CFUNCTYPE(None, c_void_p, c_void_p, c_float, c_int64, c_int64, c_void_p)),
        ("swiglu", CFUNCTYPE(None, c_void_p, c_int64, c_int64, c_void_p)),
        ("attention", CFUNCTYPE(None, POINTER(_Attention))),
        ("attention_by_modality", CFUNCTYPE(None, POINTER(_AttentionByModality))),
    ]


def load_native(
    instruction_set: str | None = None,
    threads: int | None = None,
    library_path: Path | None = None,
    *,
    exact: bool = True,
) -> NativeOps | None:
    """The operations on this CPU's best instruction set, or on a named one.

    None where the library was not built, or this CPU does not run the named set. `threads` holds for the whole process;
    None means one for each core. `exact` says whether attention must be exact: see its contract.
    """
    library = native.load(library_path)
    if library is None:
        return None
    library.qk_table.restype = POINTER(_Table)
    library.qk_table.argtypes = [c_char_p]
    table = library.qk_table(instruction_set.encode() if instruction_set else None)
    library.qk_set_threads(ctypes.c_int(threads or 0))
    library.qk_keep_memory()
    return NativeOps(table.contents, exact) if table else None


def exact_for(precision: str) -> bool:
    """Whether attention must be exact in an engine of this precision. Other precisions round more before it."""
    return precision in ("fp32", "fp16")


class NativeOps(Ops):
    """The operations in C++. Plain torch multiplies by weights whose dtype the C++ kernels do not have (e4m3)."""

    def __init__(self, table: _Table, exact: bool = True) -> None:
        self._table, self._exact = table, exact
        self.name = f"native {table.name.decode()}"

    def linear(
        self, x: Tensor | QuantizedRows, w: Weight, *, activation: Activation = None, residual: Tensor | None = None
    ) -> Tensor:
        assert isinstance(x, Tensor)
        if w.weight.dtype not in _KINDS:
            return super().linear(x, w, activation=activation, residual=residual)
        x, outputs = x.contiguous(), w.weight.shape[0]
        out = x.new_empty(*x.shape[:-1], outputs)
        if residual is not None:
            residual = residual.contiguous()
        pointers = _pointers(x, w.weight, w.scale, w.groups, w.bias, residual)
        rows, inputs = x.numel() // x.shape[-1], x.shape[-1]
        args = _KINDS[w.weight.dtype], rows, inputs, outputs, *pointers, activation == "quick_gelu"
        self._table.linear(byref(_Linear(*args, out.data_ptr())))
        return out

    def layer_norm(self, x: Tensor, gain: Tensor, bias: Tensor, eps: float) -> Tensor:
        x, out = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
        width = x.shape[-1]
        self._table.layer_norm(*_pointers(x, gain, bias), eps, x.numel() // width, width, out.data_ptr())
        return out

    def rms_norm(self, x: Tensor, visual_gain: Tensor, text_gain: Tensor, split: int, eps: float) -> Tensor:
        x, out = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
        for part, gain in ((slice(0, split), visual_gain), (slice(split, None), text_gain)):
            rows = x[part]
            self._table.rms_norm(*_pointers(rows, gain), eps, len(rows), x.shape[-1], out[part].data_ptr())
        return out

    def swiglu(self, gate_up: Tensor) -> Tensor:
        gate_up, width = gate_up.contiguous(), gate_up.shape[-1] // 2
        out = gate_up.new_empty(*gate_up.shape[:-1], width)
        self._table.swiglu(gate_up.data_ptr(), gate_up.numel() // (2 * width), width, out.data_ptr())
        return out

    def attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
        out = q.new_empty(q.shape)
        sizes = len(q), heads, q.shape[1], k.shape[1], q.shape[2] // heads
        strides = (*(x.stride(1) for x in (q, k, v)), *(x.stride(0) for x in (q, k, v)))
        self._table.attention(byref(_Attention(*sizes, *_pointers(q, k, v), *strides, self._exact, out.data_ptr())))
        return out

    def attention_by_modality(
        self, q: Tensor, kv_visual: Tensor, kv_text: Tensor, prefix: Tensor, turns: Tensor, batch: int
    ) -> Tensor:
        heads, width = prefix.shape[2:]
        inputs = [x.contiguous() for x in (q, kv_visual, kv_text, prefix, turns)]
        out = torch.empty_like(inputs[0])
        sizes = batch, heads, width, len(kv_visual) // batch, len(kv_text) // batch, prefix.shape[1], len(q) == batch
        self._table.attention_by_modality(byref(_AttentionByModality(*sizes, *_pointers(*inputs), out.data_ptr())))
        return out


def _pointers(*tensors: Tensor | None) -> Sequence[int | None]:
    return [None if x is None else x.data_ptr() for x in tensors]
