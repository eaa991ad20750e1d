"""`contract.attention.attention_by_modality` on a GPU: one kernel for rotation, prefix, causality and softmax.

A program has a block of queries of one head of one sequence. It goes over the prefix, then over the rows as far as its
last query sees, and keeps the largest score so far and a running sum (Milakov and Gimelshein, arXiv 1805.02867). It
reads no mask and gathers no keys: a row's place follows from its number. Attention over a picture's rows stays torch's.

Letters: B batch, T rows of a sequence, V visual and S text rows of it (T = V + S), P prefix rows, D width, H heads, Dh
head width. Rows by modality are B*V visual ones, sequence after sequence, then B*S text ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qalign_kernels.cuda.launch import cdiv, power_of_2, row_view
from qalign_kernels.cuda.runtime import Pointer, Value, begin, constexpr, jit, overlap, tl

_QUERIES = 32  # that a program has
_KEYS = 32  # that a step takes


def attention_by_modality(
    q: Tensor, kv_visual: Tensor, kv_text: Tensor, prefix: Tensor, turns: Tensor, batch: int
) -> Tensor:
    """As the contract has it, with q [N, D] or [B, D], kv_visual [B*V, 2D] and kv_text [B*S, 2D] of one float dtype.

    prefix [2, P, H, Dh] is of any float dtype. turns [2, T, Dh] is float32, and alike in both halves of Dh. Returns the
    context of q's rows, in q's shape and dtype.
    """
    places, heads, width = prefix.shape[1:]
    visual, text = len(kv_visual) // batch, len(kv_text) // batch
    asked = 1 if len(q) == batch else visual + text
    prefix, turns = prefix.contiguous(), turns.contiguous()
    q, kv_visual, kv_text = (row_view(x) for x in (q, kv_visual, kv_text))  # they may be columns of a wider product
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    _attend[(cdiv(asked, _QUERIES), batch * heads)](
        q, kv_visual, kv_text, prefix, turns, out, q.stride(0), kv_visual.stride(0), kv_text.stride(0),
        visual, text, places, asked, heads, width,
        power_of_2(width), max(16, power_of_2(width // 2)), _QUERIES, _KEYS,
        num_warps=4, num_stages=2, **overlap(),
    )  # fmt: skip
    return out


@jit
def _attend(
    q: Pointer, kv_visual: Pointer, kv_text: Pointer, prefix: Pointer, turns: Pointer, out: Pointer,
    q_stride: Value, visual_stride: Value, text_stride: Value,
    visual: Value, text: Value, places: Value, asked: Value, heads: Value, width: Value,
    block: constexpr, half_block: constexpr, queries: constexpr, keys: constexpr, pdl: constexpr,
) -> None:  # fmt: skip
    """softmax(rotate(q) · rotate(k)) v of one head, for a block of the `asked` queries at the end of a sequence."""
    begin(pdl)
    sequence, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    batch = tl.num_programs(1) // heads
    length = visual + text
    t = length - asked + tl.program_id(0) * queries + tl.arange(0, queries)
    d, h = tl.arange(0, block), tl.arange(0, half_block)
    row = tl.where(t < visual, sequence * visual + t, batch * visual + sequence * text + t - visual).to(tl.int64)
    row = tl.where(asked == length, row, sequence)
    across = heads * width  # columns of q; in a row of keys and values, where the values begin
    first = q + row[:, None] * q_stride + head * width
    low, high = rotate(load_half(first, h, t < length, width, 0), load_half(first, h, t < length, width, 1),
                       turns, t, h, length, width)  # fmt: skip
    low, high = low.to(q.dtype.element_ty), high.to(q.dtype.element_ty)

    best = tl.full((queries,), -float("inf"), tl.float32)
    total = tl.zeros((queries,), tl.float32)
    context = tl.zeros((queries, block), tl.float32)
    for start in range(0, places, keys):
        p = start + tl.arange(0, keys)
        key = prefix + (p[:, None] * heads + head) * width
        value = tl.load(key + places * across + d[None, :], (p < places)[:, None] & (d < width)[None, :], 0.0)
        score = dot(low, load_half(key, h, p < places, width, 0)) + dot(high, load_half(key, h, p < places, width, 1))
        score = tl.where((p < places)[None, :], score, -float("inf"))
        best, total, context = absorb(score, value.to(q.dtype.element_ty), best, total, context)
    for start in range(0, tl.minimum(length, length - asked + (tl.program_id(0) + 1) * queries), keys):
        s = start + tl.arange(0, keys)
        of_picture = kv_visual + (sequence * visual + s).to(tl.int64)[:, None] * visual_stride + head * width
        of_text = kv_text + (sequence * text + s - visual).to(tl.int64)[:, None] * text_stride + head * width
        seen = s < visual
        said = (s >= visual) & (s < length)
        key_low = load_half(of_picture, h, seen, width, 0) + load_half(of_text, h, said, width, 0)
        key_high = load_half(of_picture, h, seen, width, 1) + load_half(of_text, h, said, width, 1)
        key_low, key_high = rotate(key_low, key_high, turns, s, h, length, width)
        value = tl.load(of_picture + across + d[None, :], seen[:, None] & (d < width)[None, :], 0.0)
        value += tl.load(of_text + across + d[None, :], said[:, None] & (d < width)[None, :], 0.0)
        score = dot(low, key_low) + dot(high, key_high)
        score = tl.where(s[None, :] <= t[:, None], score, -float("inf"))
        best, total, context = absorb(score, value, best, total, context)
    inside = (t < length)[:, None] & (d < width)[None, :]
    tl.store(
        out + row[:, None] * across + head * width + d[None, :],
        (context / total[:, None]).to(out.dtype.element_ty),
        inside,
    )


@jit
def load_half(first: Pointer, h: Value, inside: Value, width: Value, half: constexpr) -> Value:
    """The low (0) or the high (1) half of heads that begin at `first` [rows, 1] -> [rows, Dh/2], zeros outside."""
    return tl.load(first + half * (width // 2) + h[None, :], inside[:, None] & (h < width // 2)[None, :], 0.0)


@jit
def rotate(low: Value, high: Value, turns: Pointer, t: Value, h: Value, length: Value, width: Value) -> Value:
    """Both halves turned by the positions t, in float32. `turns` has each cosine and sine twice, once for each half."""
    inside = (t < length)[:, None] & (h < width // 2)[None, :]
    cos = tl.load(turns + t[:, None] * width + h[None, :], inside, 0.0)
    sin = tl.load(turns + (length + t[:, None]) * width + h[None, :], inside, 0.0)
    low, high = low.to(tl.float32), high.to(tl.float32)
    return low * cos - high * sin, high * cos + low * sin


@jit
def dot(q: Value, k: Value) -> Value:
    """[queries, Dh/2] and [keys, Dh/2] -> [queries, keys]."""
    return tl.dot(q, k.to(q.dtype).T, input_precision="ieee")


@jit
def absorb(score: Value, value: Value, best: Value, total: Value, context: Value) -> Value:
    """A step of softmax over keys: earlier sums are scaled to the new largest score."""
    new = tl.maximum(best, tl.max(score, 1))
    weight = tl.exp(score - new[:, None])
    shrink = tl.exp(best - new)
    context = context * shrink[:, None] + tl.dot(weight.to(value.dtype), value, input_precision="ieee")
    return new, total * shrink + tl.sum(weight, 1), context
