"""Packed tensors in, the `decode` graph out: one step over visual and suffix rows, five logits.

Inputs: visual_tokens [B, V, D], prefix_key_values [L, 2, P, H, Dh], suffix_embeds [S, D]; output: logits [B, 5]. The
prompt is an input, so one graph serves every task, medium and custom prompt. Rows lie as in qalign_fast.model.decoder:
all visual rows of the batch, then all text rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from qalign_export.graph import Graph
from qalign_export.vision_graph import silu
from qalign_fast.config import DecoderConfig, ModelConfig
from qalign_fast.levels import LEVELS


@dataclass(frozen=True)
class _Shapes:
    """Run-time sizes, as names of one-element tensors, and what is made of them once."""

    batch: str
    visual: str
    text: str
    rows: str  # [2]: how many visual rows, how many text rows
    cos: str  # [T, 1, Dh]
    sin: str  # the same, its first half negated
    mask: str  # [T, P+T], 0 or -inf


def build_decoder(graph: Graph, model: ModelConfig) -> None:
    """Adds the whole graph."""
    config = model.decoder
    width, heads = config.width, config.heads
    tokens = graph.input("visual_tokens", TensorProto.FLOAT, ["batch", "visual", width])
    prefix = graph.input("prefix_key_values", TensorProto.FLOAT, [config.layers, 2, "prefix", heads, width // heads])
    suffix = graph.input("suffix_embeds", TensorProto.FLOAT, ["suffix", width])
    graph.scope = "decoder."
    shapes = _shapes(graph, config, tokens, prefix, suffix)
    rows = _pack(graph, tokens, suffix, shapes, width)
    for i in range(config.layers):
        name = graph.scope = f"decoder.layers.{i}."
        past = graph.op("Gather", prefix, graph.const(i), axis=0)  # [2, P, H, Dh]
        rows = _layer(graph, name, config, rows, past, shapes, last=i == config.layers - 1)
    graph.scope = "decoder."
    normed = graph.op("Mul", _normalize(graph, rows, config.eps), graph.weight("decoder.norm"))
    logits = graph.linear(normed, "decoder.head", width)
    graph.output(logits, "logits", TensorProto.FLOAT, ["batch", len(LEVELS)])


def _layer(graph: Graph, name: str, config: DecoderConfig, rows: str, past: str, shapes: _Shapes, *, last: bool) -> str:
    visual, text = _modal_norms(graph, f"{name}attention_norm", rows, config, shapes)
    k, v = _keys_values(graph, name, config, visual, text, past, shapes)
    if last:
        rows = _last_text(graph, graph.ops("Split", 2, rows, shapes.rows, axis=0)[1], shapes, config.width)
        q = graph.linear(_last_text(graph, text, shapes, config.width), f"{name}q", config.width)
        q = graph.op("Reshape", q, graph.const([0, 1, config.heads, -1]))
        one = graph.const([-1])
        cos, sin = (graph.op("Gather", table, one, axis=0) for table in (shapes.cos, shapes.sin))
        context = _attend(graph, _rotate(graph, q, cos, sin), k, v, None)
        context = graph.op("Reshape", context, graph.const([-1, config.width]))
    else:
        q = graph.linear(graph.op("Concat", visual, text, axis=0), f"{name}q", config.width)
        q_visual, q_text = graph.ops("Split", 2, q, shapes.rows, axis=0)
        q = _sequence(graph, q_visual, q_text, shapes, config.heads)
        context = _attend(graph, _rotate(graph, q, shapes.cos, shapes.sin), k, v, shapes.mask)
        context = _rows(graph, context, shapes, config.width)
    rows = graph.op("Add", rows, graph.linear(context, f"{name}o", config.width))
    return graph.op("Add", rows, _mlp(graph, name, config, rows, shapes, last=last))


def _modal_norms(graph: Graph, name: str, rows: str, config: DecoderConfig, shapes: _Shapes) -> tuple[str, str]:
    """Visual and text rows, each normed with its modality's gain."""
    visual, text = graph.ops("Split", 2, _normalize(graph, rows, config.eps), shapes.rows, axis=0)
    return (
        graph.op("Mul", visual, graph.weight(f"{name}_visual")),
        graph.op("Mul", text, graph.weight(f"{name}_text")),
    )


def _keys_values(
    graph: Graph, name: str, config: DecoderConfig, visual: str, text: str, past: str, shapes: _Shapes
) -> tuple[str, str]:
    """Keys (rotated) and values [B, P+T, H, Dh], the constant prefix first; k and v of a modality are one product."""
    kv = [graph.linear(rows, f"{name}kv_{m}", config.width) for m, rows in (("visual", visual), ("text", text))]
    (k_visual, v_visual), (k_text, v_text) = (graph.ops("Split", 2, both, axis=-1, num_outputs=2) for both in kv)
    k = _rotate(graph, _sequence(graph, k_visual, k_text, shapes, config.heads), shapes.cos, shapes.sin)
    v = _sequence(graph, v_visual, v_text, shapes, config.heads)
    whole = graph.op("Concat", shapes.batch, graph.const([1, 1, 1]), axis=0)
    past_k, past_v = (
        graph.op("Expand", graph.op("Gather", past, graph.const([i]), axis=0), whole) for i in range(2)
    )  # [B, P, H, Dh]
    return graph.op("Concat", past_k, k, axis=1), graph.op("Concat", past_v, v, axis=1)


def _attend(graph: Graph, q: str, k: str, v: str, mask: str | None) -> str:
    """q [B, Tq, H, Dh], scaled already, k and v [B, P+T, H, Dh] -> context [B, Tq, D]."""
    q = graph.op("Transpose", q, perm=[0, 2, 1, 3])
    scores = graph.op("MatMul", q, graph.op("Transpose", k, perm=[0, 2, 3, 1]))
    if mask is not None:
        scores = graph.op("Add", scores, mask)
    context = graph.op("MatMul", graph.op("Softmax", scores, axis=-1), graph.op("Transpose", v, perm=[0, 2, 1, 3]))
    return graph.op("Reshape", graph.op("Transpose", context, perm=[0, 2, 1, 3]), graph.const([0, 0, -1]))


def _mlp(graph: Graph, name: str, config: DecoderConfig, rows: str, shapes: _Shapes, *, last: bool) -> str:
    if last:
        normed = graph.op("Mul", _normalize(graph, rows, config.eps), graph.weight(f"{name}mlp_norm_text"))
    else:
        normed = graph.op("Concat", *_modal_norms(graph, f"{name}mlp_norm", rows, config, shapes), axis=0)
    gate, up = graph.ops("Split", 2, graph.linear(normed, f"{name}gate_up", config.width), axis=-1, num_outputs=2)
    return graph.linear(graph.op("Mul", silu(graph, gate), up), f"{name}down", config.mlp)


def _shapes(graph: Graph, config: DecoderConfig, tokens: str, prefix: str, suffix: str) -> _Shapes:
    batch, visual = (graph.op("Shape", tokens, start=i, end=i + 1) for i in (0, 1))
    text = graph.op("Shape", suffix, start=0, end=1)
    start = graph.op("Squeeze", graph.op("Shape", prefix, start=2, end=3))
    end = graph.op("Add", start, graph.op("Squeeze", graph.op("Add", visual, text)))
    one = graph.const(1)
    positions = graph.op("Range", start, end, one)  # [T]
    cos, sin = _rotary_tables(graph, config, positions)
    keys = graph.op("Range", graph.const(0), end, one)  # [P+T]
    hidden = graph.op("Less", graph.op("Unsqueeze", positions, graph.const([1])), keys)
    mask = graph.op("Where", hidden, graph.const(-np.inf, np.float32), graph.const(0, np.float32))
    counts = [graph.op("Mul", batch, n) for n in (visual, text)]
    return _Shapes(batch, visual, text, graph.op("Concat", *counts, axis=0), cos, sin, mask)


def _rotary_tables(graph: Graph, config: DecoderConfig, positions: str) -> tuple[str, str]:
    """cos and signed sin [T, 1, Dh] of the half-split form: x · cos + swap(x) · sin, sin's first half negated."""
    half = config.width // config.heads // 2
    frequency = (config.rope_theta ** (-np.arange(half, dtype=np.float32) / np.float32(half))).astype(np.float32)
    place = graph.op("Reshape", graph.op("Cast", positions, to=TensorProto.FLOAT), graph.const([-1, 1, 1]))
    angle = graph.op("Mul", place, graph.array("decoder.frequency", frequency))  # [T, 1, Dh/2]
    cos, sin = graph.op("Cos", angle), graph.op("Sin", angle)
    return graph.op("Concat", cos, cos, axis=-1), graph.op("Concat", graph.op("Neg", sin), sin, axis=-1)


def _rotate(graph: Graph, x: str, cos: str, sin: str) -> str:
    low, high = graph.ops("Split", 2, x, axis=-1, num_outputs=2)
    swapped = graph.op("Concat", high, low, axis=-1)
    return graph.op("Add", graph.op("Mul", x, cos), graph.op("Mul", swapped, sin))


def _normalize(graph: Graph, rows: str, eps: float) -> str:
    """x / sqrt(mean(x²) + eps), without a gain."""
    mean = graph.op("ReduceMean", graph.op("Mul", rows, rows), graph.const([-1]), keepdims=1)
    return graph.op("Div", rows, graph.op("Sqrt", graph.op("Add", mean, graph.const(eps, np.float32))))


def _pack(graph: Graph, tokens: str, suffix: str, shapes: _Shapes, width: int) -> str:
    """[B, V, D] and [S, D] -> rows [B*V + B*S, D]."""
    flat = graph.const([-1, width])
    text = graph.op("Expand", suffix, graph.op("Concat", shapes.batch, graph.const([1, 1]), axis=0))
    return graph.op("Concat", graph.op("Reshape", tokens, flat), graph.op("Reshape", text, flat), axis=0)


def _sequence(graph: Graph, visual: str, text: str, shapes: _Shapes, heads: int) -> str:
    """Visual rows [B*V, D] and text rows [B*S, D] -> [B, T, H, Dh]."""
    rest = graph.const([heads, -1])
    parts = [
        graph.op("Reshape", rows, graph.op("Concat", shapes.batch, length, rest, axis=0))
        for rows, length in ((visual, shapes.visual), (text, shapes.text))
    ]
    return graph.op("Concat", *parts, axis=1)


def _rows(graph: Graph, sequence: str, shapes: _Shapes, width: int) -> str:
    """[B, T, D] -> rows [B*V + B*S, D]."""
    lengths = graph.op("Concat", shapes.visual, shapes.text, axis=0)
    flat = graph.const([-1, width])
    parts = [graph.op("Reshape", part, flat) for part in graph.ops("Split", 2, sequence, lengths, axis=1)]
    return graph.op("Concat", *parts, axis=0)


def _last_text(graph: Graph, text: str, shapes: _Shapes, width: int) -> str:
    """Text rows [B*S, D] -> each sequence's last, [B, D]."""
    shape = graph.op("Concat", shapes.batch, shapes.text, graph.const([width]), axis=0)
    return graph.op("Gather", graph.op("Reshape", text, shape), graph.const(-1), axis=1)
