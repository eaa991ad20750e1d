"""Packed tensors in, the `decode` graph out: one step over visual and suffix tokens, five logits.

Inputs: visual_tokens [B, V, D], prefix_key_values [L, 2, P, H, Dh], suffix_embeds [S, D]; output: logits [B, 5]. The
prompt is an input, so one graph serves every task, medium and custom prompt. A sequence's visual tokens come first,
then its text tokens: T = V + S.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from qalign_export.model_graph import ModelGraph
from qalign_fast.config import DecoderConfig, ModelConfig
from qalign_fast.levels import LEVELS

_HIDDEN = np.finfo(np.float16).min  # added to a score: no weight is left, in float16 either


@dataclass(frozen=True)
class _Layout:
    """What every layer reads of where the tokens are."""

    visual: str  # [1]: V
    is_visual: str  # bool [T, 1]
    cos: str  # [T, Dh/2]
    sin: str
    mask: str  # [1, 1, T, P+T], to be added to scores


def build_decoder(graph: ModelGraph, model: ModelConfig) -> None:
    """Adds the whole graph."""
    config = model.decoder
    width, heads, layers = config.width, config.heads, config.layers
    tokens = graph.input("visual_tokens", TensorProto.FLOAT, ["batch", "visual", width])
    prefix = graph.input("prefix_key_values", TensorProto.FLOAT, [layers, 2, "prefix", heads, width // heads])
    suffix = graph.input("suffix_embeds", TensorProto.FLOAT, ["suffix", width])
    graph.scope = "decoder."
    before = graph.op("Reshape", prefix, graph.const([2 * layers, -1, width]))  # [2L, P, D]
    layout = _layout(graph, config, tokens, before, suffix)
    text = graph.repeat(graph.op("Unsqueeze", suffix, graph.const([0])), tokens)
    x = graph.enter(graph.op("Concat", tokens, text, axis=1))  # [B, T, D]
    parts = graph.ops("Split", 2 * layers, graph.enter(before), axis=0, num_outputs=2 * layers)
    keys_values = [graph.repeat(part, x) for part in parts]  # each [B, P, D]
    unit = graph.rms(x, config.eps)
    for i in range(layers):
        graph.scope = f"decoder.layers.{i}."
        x, unit = _layer(graph, config, x, unit, keys_values[2 * i : 2 * i + 2], layout, last=i == layers - 1)
    graph.scope = "decoder."
    logits = graph.exact_product(graph.leave(graph.op("Mul", unit, graph.weight("decoder.norm"))), "decoder.head")
    logits = graph.op("Reshape", logits, graph.const([-1, len(LEVELS)]))
    graph.output(logits, "logits", TensorProto.FLOAT, ["batch", len(LEVELS)])


def _layer(
    graph: ModelGraph, config: DecoderConfig, x: str, unit: str, before: list[str], layout: _Layout, *, last: bool
) -> tuple[str, str]:
    """x [B, T, D] and its `rms` -> the same after the layer, of the last token alone after the last layer."""
    name, width = graph.scope, config.width
    n = graph.op("Mul", unit, _gain(graph, f"{name}attention_norm", layout))
    k, v = _keys_values(graph, name, config, n, before, layout)
    cos, sin, mask = layout.cos, layout.sin, layout.mask
    if last:
        x, n = (graph.slice(part, -1, None, axis=1) for part in (x, n))
        cos, sin = (graph.slice(table, -1, None, axis=0) for table in (cos, sin))
        mask = ""  # it sees every key
    q = graph.rotate(graph.linear(n, f"{name}q", width), cos, sin, config.heads)
    context = graph.attend(q, k, v, config.heads, mask)
    x, unit = graph.add_rms(x, graph.linear(context, f"{name}o", width), config.eps)
    gain = graph.weight(f"{name}mlp_norm_text") if last else _gain(graph, f"{name}mlp_norm", layout)
    gate, up = graph.linears(graph.op("Mul", unit, gain), f"{name}gate_up", 2, width)
    inner = graph.op("Mul", graph.silu(gate), up)
    return graph.add_rms(x, graph.linear(inner, f"{name}down", config.mlp), config.eps)


def _gain(graph: ModelGraph, name: str, layout: _Layout) -> str:
    """[T, D]: each token's modality's."""
    return graph.op("Where", layout.is_visual, graph.weight(f"{name}_visual"), graph.weight(f"{name}_text"))


def _keys_values(
    graph: ModelGraph, name: str, config: DecoderConfig, n: str, before: list[str], layout: _Layout
) -> tuple[str, str]:
    """Keys (rotated) and values [B, P+T, D], the constant prefix first; k and v of a modality are one linear."""
    parts = {
        "visual": graph.slice(n, 0, layout.visual, axis=1),
        "text": graph.slice(n, layout.visual, None, axis=1),
    }
    both = [graph.linears(part, f"{name}kv_{modality}", 2, config.width) for modality, part in parts.items()]
    k, v = (graph.op("Concat", *pair, axis=1) for pair in zip(*both, strict=True))
    k = graph.rotate(k, layout.cos, layout.sin, config.heads)
    return graph.op("Concat", before[0], k, axis=1), graph.op("Concat", before[1], v, axis=1)


def _layout(graph: ModelGraph, config: DecoderConfig, tokens: str, before: str, suffix: str) -> _Layout:
    """tokens [B, V, D], before [2L, P, D], suffix [S, D]."""
    visual, start = (graph.op("Shape", x, start=1, end=2) for x in (tokens, before))
    of_prefix, of_picture = (graph.op("Gather", x, graph.const(0), axis=0) for x in (before, tokens))
    columns = [graph.slice(x, 0, 1, axis=1) for x in (of_prefix, of_picture, suffix)]  # [P, 1], [V, 1], [S, 1]
    end = graph.op("Shape", graph.op("Concat", *columns, axis=0), start=0, end=1)  # [1]: P + T
    is_visual = [
        graph.op("Expand", graph.const([[modality]], np.bool_), graph.op("Shape", column))
        for modality, column in zip((True, False), columns[1:], strict=True)
    ]
    every = graph.array("decoder.positions", np.arange(config.positions, dtype=np.float32)[:, None])
    positions = graph.slice(every, start, end, axis=0)  # [T, 1]
    cos, sin = _rotary_tables(graph, config, positions)
    return _Layout(visual, graph.op("Concat", *is_visual, axis=0), cos, sin, _mask(graph, config, positions, end))


def _mask(graph: ModelGraph, config: DecoderConfig, positions: str, end: str) -> str:
    """[1, 1, T, P+T] for queries at `positions`: what comes after one is hidden from it."""
    every = graph.array("decoder.key_positions", np.arange(config.positions, dtype=np.float32)[None])
    hidden = graph.op("Less", positions, graph.slice(every, 0, end, axis=1))
    mask = graph.op("Where", hidden, graph.const(_HIDDEN, np.float32), graph.const(0, np.float32))
    return graph.enter(graph.op("Unsqueeze", mask, graph.const([0, 1])))


def _rotary_tables(graph: ModelGraph, config: DecoderConfig, positions: str) -> tuple[str, str]:
    """Cosines and sines [T, Dh/2] of the half-split form; both halves turn alike."""
    half = config.width // config.heads // 2
    frequency = (config.rope_theta ** (-np.arange(half, dtype=np.float32) / np.float32(half))).astype(np.float32)
    angle = graph.op("Mul", positions, graph.array("decoder.frequency", frequency))
    return graph.enter(graph.op("Cos", angle)), graph.enter(graph.op("Sin", angle))
