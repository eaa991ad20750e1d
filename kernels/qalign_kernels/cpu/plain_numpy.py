"""The operations in plain numpy: what computes where the C++ kernels were not built, and neither torch is installed.

The contracts say the formulas. Weights are expanded to float32 at every call, which is quick enough for a small model.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from qalign_kernels.contract.operations import Activation
from qalign_kernels.contract.precisions import GROUP
from qalign_kernels.contract.weight import Weight
from qalign_kernels.cpu.numpy_ops import BFLOAT16, NumpyArrays

Floats: TypeAlias = npt.NDArray[np.float32]

_EXACT = 1024  # inputs whose products of 8 bits float32 sums exactly, as in qalign_kernels.contract.linear
_SMALLEST = 1e-30  # stands in for a row's largest number, as in qalign_kernels.contract.quantized_rows


class PlainNumpy(NumpyArrays):
    """The contracts on numpy arrays, for weights of every dtype but e4m3."""

    name = "plain numpy"

    def linear(self, x: Floats, w: Weight, *, activation: Activation = None, residual: Floats | None = None) -> Floats:
        rows = x.reshape(-1, x.shape[-1])
        y = _floats(rows, w.weight) if w.scale is None else _scaled(rows, w)
        if w.bias is not None:
            y += w.bias
        if activation == "quick_gelu":
            y = y * _sigmoid(np.float32(1.702) * y)
        y = y.reshape(*x.shape[:-1], -1)
        return y if residual is None else residual + y

    def layer_norm(self, x: Floats, gain: Floats, bias: Floats, eps: float) -> Floats:
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + np.float32(eps)) * gain + bias

    def rms_norm(self, x: Floats, visual_gain: Floats, text_gain: Floats, split: int, eps: float) -> Floats:
        unit = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + np.float32(eps))
        return np.concatenate((unit[:split] * visual_gain, unit[split:] * text_gain))

    def swiglu(self, gate_up: Floats) -> Floats:
        gate, up = np.split(gate_up, 2, -1)
        return gate * _sigmoid(gate) * up

    def attention(self, q: Floats, k: Floats, v: Floats, heads: int) -> Floats:
        q, k, v = (x.reshape(*x.shape[:2], heads, -1) for x in (q, k, v))
        return _context(q, k, v).reshape(len(q), q.shape[1], -1)

    def attention_by_modality(
        self, q: Floats, kv_visual: Floats, kv_text: Floats, prefix: Floats, turns: Floats, batch: int
    ) -> Floats:
        heads, width = prefix.shape[2:]
        rows = _sequence(kv_visual, kv_text, batch)
        keys, values = np.moveaxis(rows.reshape(batch, -1, 2, heads, width), 2, 0)  # each [B, T, H, Dh]
        before = (self.repeat(x, batch) for x in prefix)
        keys, values = (np.concatenate(x, 1) for x in zip(before, (_rotate(keys, turns), values), strict=True))
        last = len(q) == batch
        visual = 0 if last else len(kv_visual)
        asking = _sequence(q[:visual], q[visual:], batch).reshape(batch, -1, heads, width)  # [B, T or 1, H, Dh]
        count = asking.shape[1]
        places = np.arange(keys.shape[1])
        seen = places <= places[-count:, None]  # [T or 1, P+T]
        context = _context(_rotate(asking, turns[:, -count:]), keys, values, seen).reshape(batch, count, -1)
        parts = np.split(context, [visual // batch], axis=1)
        return np.concatenate([part.reshape(-1, part.shape[-1]) for part in parts])


def _floats(x: Floats, weight: npt.NDArray) -> Floats:
    """Rows rounded to the weight's type, times the weight: [M, K] and [N, K] -> [M, N]."""
    if weight.dtype == BFLOAT16:
        return _to_bfloat16(x) @ (weight.astype(np.uint32) << 16).view(np.float32).T
    return x.astype(weight.dtype).astype(np.float32) @ weight.astype(np.float32).T


def _to_bfloat16(x: Floats) -> Floats:
    """Rounded to the nearest, ties to even. NaN is not."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    return (bits + 0x7FFF + (bits >> 16 & 1) & 0xFFFF0000).view(np.float32)


def _scaled(x: Floats, w: Weight) -> Floats:
    scale = np.maximum(np.abs(x).max(-1, keepdims=True), np.float32(_SMALLEST)) / np.float32(127)
    rows = np.rint(x / scale)
    weight = w.weight if w.groups is None else _spread_int4(w.weight, w.groups)
    y = np.zeros((len(x), len(weight)), np.int32)
    for first in range(0, x.shape[-1], _EXACT):
        part = slice(first, min(first + _EXACT, x.shape[-1]))
        y += (rows[:, part] @ weight[:, part].astype(np.float32).T).astype(np.int32)
    product: Floats = y.astype(np.float32) * scale * w.scale
    return product


def _spread_int4(weight: npt.NDArray[np.uint8], groups: npt.NDArray[np.uint8]) -> npt.NDArray[np.int8]:
    """k (w - z): uint8 [N, B, 64] and groups [N, G] -> int8 [N, 128 B]."""
    codes = np.concatenate((weight & 15, weight >> 4), -1).astype(np.int8)  # [N, B, 128]
    codes = codes.reshape(*groups.shape, GROUP)  # [N, G, 32]
    multiplier, zero = (groups >> 4).astype(np.int8) + 1, (groups & 15).astype(np.int8)
    return ((codes - zero[..., None]) * multiplier[..., None]).reshape(len(weight), -1).astype(np.int8)


def _context(q: Floats, k: Floats, v: Floats, seen: npt.NDArray[np.bool_] | None = None) -> Floats:
    """Each [B, T, H, Dh] -> [B, Tq, H, Dh]; `seen` [Tq, Tk] says which keys a query sees."""
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    scores = q @ k.swapaxes(-1, -2)  # [B, H, Tq, Tk]
    if seen is not None:
        scores = np.where(seen, scores, np.float32(-np.inf))
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    context = (scores / scores.sum(-1, keepdims=True)) @ v
    return np.ascontiguousarray(context.transpose(0, 2, 1, 3))


def _sequence(visual: Floats, text: Floats, batch: int) -> Floats:
    """Rows [B*V, D] and [B*S, D] -> [B, T, D]."""
    return np.concatenate([x.reshape(batch, len(x) // batch, x.shape[-1]) for x in (visual, text)], 1)


def _rotate(x: Floats, turns: Floats) -> Floats:
    """x [B, T, H, Dh] turned by its rows' positions, as the contract's `rotate`."""
    cos, sin = turns[:, :, None]
    low, high = np.split(x, 2, -1)
    return x * cos + np.concatenate((-high, low), -1) * sin


def _sigmoid(x: Floats) -> Floats:
    with np.errstate(over="ignore"):
        return np.float32(1) / (np.float32(1) + np.exp(-x))


PLAIN = PlainNumpy()
