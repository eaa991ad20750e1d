"""Folded tensors in, the `decode` graph out: one step over visual and suffix tokens, then the head.

Inputs: visual_tokens [B, V, D], prefix_key_values [L, 2, P, H, Dh], suffix_embeds [S, D]; output: logits [B, N],
N = `ModelConfig.outputs`. The prompt is an input, so one graph serves every task, medium and custom prompt. A
sequence's visual tokens come first, then its text tokens: T = V + S.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from qalign_export.onnx_graphs.model import ModelGraph
from qalign_fast.families.mplug_owl2.sizes import DecoderConfig, ModelConfig


@dataclass(frozen=True)
class _Layout:
    """Where the tokens are, as every layer reads it."""

    visual: str  # [1]: V
    is_visual: str  # bool [T, 1]
    cos: str  # [T, Dh/2]
    sin: str
    mask: str  # hides the tokens that come after a token


def build_decoder(graph: ModelGraph, model: ModelConfig) -> None:
    """Adds inputs, all layers and the output to an empty graph."""
    config = model.decoder
    width, heads, layers = config.width, config.heads, config.layers
    tokens = graph.input("visual_tokens", TensorProto.FLOAT, ["batch", "visual", width])
    prefix = graph.input("prefix_key_values", TensorProto.FLOAT, [layers, 2, "prefix", heads, width // heads])
    suffix = graph.input("suffix_embeds", TensorProto.FLOAT, ["suffix", width])
    graph.scope = "decoder."
    layout = _layout(graph, config, tokens, prefix, suffix)
    text = graph.repeat(graph.op("Unsqueeze", suffix, graph.const([0])), tokens)
    x = graph.enter(graph.op("Concat", tokens, text, axis=1))  # [B, T, D]
    before = graph.before(prefix, config, x)
    unit = graph.rms(x, config.eps)
    for i in range(layers):
        graph.scope = f"decoder.layers.{i}."
        x, unit = _layer(graph, config, x, unit, (before[2 * i], before[2 * i + 1]), layout, last=i == layers - 1)
    graph.scope = "decoder."
    logits = graph.exact_product(graph.leave(graph.op("Mul", unit, graph.weight("decoder.norm"))), "decoder.head")
    logits = graph.op("Reshape", logits, graph.const([-1, model.outputs]))
    graph.output(logits, "logits", TensorProto.FLOAT, ["batch", model.outputs])


def _layer(
    graph: ModelGraph, config: DecoderConfig, x: str, unit: str, before: tuple[str, str], layout: _Layout, *, last: bool
) -> tuple[str, str]:
    """x [B, T, D] and its `rms` -> the same after the layer. The last layer gives those of the last token alone."""
    name, width = graph.scope, config.width
    n = graph.op("Mul", unit, _gain(graph, f"{name}attention_norm", layout))
    k, v = _keys_values(graph, name, config, n, layout)
    if last:
        x, n = (graph.slice(part, -1, None, axis=1) for part in (x, n))
        cos, sin = (graph.slice(table, -1, None, axis=0) for table in (layout.cos, layout.sin))
        q = graph.rotate(graph.linear(n, f"{name}q", width), cos, sin, config.heads)
        k, v = (graph.join(one, other) for one, other in zip(before, (k, v), strict=True))
        context = graph.attend(q, k, v, config.heads)  # the last token sees all others
    else:
        q = graph.rotate(graph.linear(n, f"{name}q", width), layout.cos, layout.sin, config.heads)
        context = graph.attend_after(before, q, k, v, config.heads, layout.mask)
    x, unit = graph.add_rms(x, graph.linear(context, f"{name}o", width), config.eps)
    gain = graph.weight(f"{name}mlp_norm_text") if last else _gain(graph, f"{name}mlp_norm", layout)
    gate, up = graph.linears(graph.op("Mul", unit, gain), f"{name}gate_up", 2, width)
    inner = graph.op("Mul", graph.silu(gate), up)
    return graph.add_rms(x, graph.linear(inner, f"{name}down", config.mlp), config.eps)


def _gain(graph: ModelGraph, name: str, layout: _Layout) -> str:
    """[T, D]: for each token the gain of its modality."""
    return graph.op("Where", layout.is_visual, graph.weight(f"{name}_visual"), graph.weight(f"{name}_text"))


def _keys_values(graph: ModelGraph, name: str, config: DecoderConfig, n: str, layout: _Layout) -> tuple[str, str]:
    """Keys (rotated) and values [B, T, D]. One linear gives k and v of a modality."""
    parts = {
        "visual": graph.slice(n, 0, layout.visual, axis=1),
        "text": graph.slice(n, layout.visual, None, axis=1),
    }
    both = [graph.linears(part, f"{name}kv_{modality}", 2, config.width) for modality, part in parts.items()]
    k, v = (graph.op("Concat", *pair, axis=1) for pair in zip(*both, strict=True))
    return graph.rotate(k, layout.cos, layout.sin, config.heads), v


def _layout(graph: ModelGraph, config: DecoderConfig, tokens: str, prefix: str, suffix: str) -> _Layout:
    flat = graph.op("Reshape", prefix, graph.const([2 * config.layers, -1, config.width]))  # [2L, P, D]
    visual, start = (graph.op("Shape", x, start=1, end=2) for x in (tokens, flat))
    of_prefix, of_picture = (graph.op("Gather", x, graph.const(0), axis=0) for x in (flat, tokens))
    columns = [graph.slice(x, 0, 1, axis=1) for x in (of_prefix, of_picture, suffix)]  # [P, 1], [V, 1], [S, 1]
    end = graph.op("Shape", graph.op("Concat", *columns, axis=0), start=0, end=1)  # [1]: P + T
    is_visual = [
        graph.op("Expand", graph.const([[modality]], np.bool_), graph.op("Shape", column))
        for modality, column in zip((True, False), columns[1:], strict=True)
    ]
    every = graph.array("decoder.positions", np.arange(config.positions, dtype=np.float32)[:, None])
    positions = graph.slice(every, start, end, axis=0)  # [T, 1]
    cos, sin = _rotary_tables(graph, config, positions)
    mask = graph.mask(positions, graph.slice(every, 0, end, axis=0))
    return _Layout(visual, graph.op("Concat", *is_visual, axis=0), cos, sin, mask)


def _rotary_tables(graph: ModelGraph, config: DecoderConfig, positions: str) -> tuple[str, str]:
    """Cosines and sines [T, Dh/2] of the half-split form, in which both halves turn by the same angles."""
    half = config.width // config.heads // 2
    frequency = (config.rope_theta ** (-np.arange(half, dtype=np.float32) / np.float32(half))).astype(np.float32)
    angle = graph.op("Mul", positions, graph.array("decoder.frequency", frequency))
    return graph.enter(graph.op("Cos", angle)), graph.enter(graph.op("Sin", angle))
