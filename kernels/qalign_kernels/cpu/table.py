"""The library's table of functions, and the structs that they take, as csrc/table.h has them. Imports no runtime."""

from __future__ import annotations

import ctypes
from ctypes import CFUNCTYPE, POINTER, Structure, c_char_p, c_float, c_int64, c_void_p
from pathlib import Path
from typing import Any

from qalign_kernels.cpu import native

KINDS = {"float32": 0, "float16": 1, "bfloat16": 2, "int8": 3, "uint8": 4}  # of weights, by torch's names


class Linear(Structure):
    """One product: `qalign_kernels.contract.linear`."""

    _fields_ = [
        *((name, c_int64) for name in ("kind", "rows", "inputs", "outputs")),
        *((name, c_void_p) for name in ("x", "weight", "scale", "groups", "bias", "residual")),
        ("quick_gelu", c_int64),
        ("out", c_void_p),
    ]


class Attention(Structure):
    """Attention over a picture's rows; strides are in values."""

    _fields_ = [
        *((name, c_int64) for name in ("batch", "heads", "queries", "keys", "width")),
        *((name, c_void_p) for name in "qkv"),
        *((name, c_int64) for name in ("q_row", "k_row", "v_row", "q_batch", "k_batch", "v_batch", "exact")),
        ("out", c_void_p),
    ]


class AttentionByModality(Structure):
    """Attention over a prompt's prefix and rows by modality."""

    _fields_ = [
        *((name, c_int64) for name in ("batch", "heads", "width", "visual", "text", "prefix", "last")),
        *((name, c_void_p) for name in ("q", "kv_visual", "kv_text", "prefix_kv", "turns", "out")),
    ]


class Table(Structure):
    """The kernels of one instruction set."""

    _fields_ = [
        ("name", c_char_p),
        ("linear", CFUNCTYPE(None, POINTER(Linear))),
        ("layer_norm", CFUNCTYPE(None, c_void_p, c_void_p, c_void_p, c_float, c_int64, c_int64, c_void_p)),
        ("rms_norm", CFUNCTYPE(None, c_void_p, c_void_p, c_float, c_int64, c_int64, c_void_p)),
        ("swiglu", CFUNCTYPE(None, c_void_p, c_int64, c_int64, c_void_p)),
        ("attention", CFUNCTYPE(None, POINTER(Attention))),
        ("attention_by_modality", CFUNCTYPE(None, POINTER(AttentionByModality))),
        ("end_turn", CFUNCTYPE(None)),
        ("was_starved", CFUNCTYPE(c_int64)),
    ]


def find_table(
    instruction_set: str | None = None, threads: int | None = None, library_path: Path | None = None
) -> Any | None:
    """The `Table` of this CPU's best instruction set, or of a named one.

    None where the library was not built, or this CPU does not run the named set. `threads` holds for the whole process;
    None means one for each core.
    """
    library = native.load(library_path)
    if library is None:
        return None
    library.qk_table.restype = POINTER(Table)
    library.qk_table.argtypes = [c_char_p]
    table = library.qk_table(instruction_set.encode() if instruction_set else None)
    library.qk_set_threads(ctypes.c_int(threads or 0))
    library.qk_keep_memory()
    return table.contents if table else None


def exact_for(precision: str) -> bool:
    """Whether attention must be exact in an engine of this precision. Other precisions round more before it."""
    return precision in ("fp32", "fp16")
