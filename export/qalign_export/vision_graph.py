"""Packed tensors in, the `encode` graph out: pixels uint8 [B, S, S, 3] -> visual_tokens [B, Q+1, D].

The same arrangement as qalign_fast.model.packed, operator by operator. Rows are [B*T, D] wherever nothing attends.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from qalign_export.graph import Graph
from qalign_fast.config import AbstractorConfig, ModelConfig
from qalign_fast.model.abstractor import NORM_EPS


def build_vision(graph: Graph, config: ModelConfig) -> None:
    """Adds the whole graph."""
    side = config.vision.side
    pixels = graph.input("pixels", TensorProto.UINT8, ["batch", side, side, 3])
    batch = graph.op("Shape", pixels, start=0, end=1)
    features = _vision(graph, config, pixels, batch)
    tokens = _abstractor(graph, config.abstractor, features, batch)
    graph.output(tokens, "visual_tokens", TensorProto.FLOAT, ["batch", config.abstractor.tokens, config.decoder.width])


def _vision(graph: Graph, config: ModelConfig, pixels: str, batch: str) -> str:
    """Pixels -> rows [B*T, D] after the last layer and its norm."""
    vision = config.vision
    grid = vision.side // vision.patch
    graph.scope = "vision."
    x = graph.op("Reshape", pixels, graph.const([0, grid, vision.patch, grid, 3 * vision.patch]))
    x = graph.op("Transpose", x, perm=[0, 1, 3, 2, 4])
    x = graph.op("Reshape", x, graph.const([-1, 3 * vision.patch**2]))
    x = graph.linear(graph.op("Cast", x, to=TensorProto.FLOAT), "vision.patch", 3 * vision.patch**2)
    x = graph.op("Reshape", x, graph.const([-1, grid * grid, vision.width]))
    x = graph.op("Add", x, graph.weight("vision.patch_table"))
    first = graph.op("Unsqueeze", graph.weight("vision.class_token"), graph.const([0]))
    x = graph.op("Concat", _expand(graph, first, batch), x, axis=1)  # [B, T, D]
    x = graph.op("Reshape", x, graph.const([-1, vision.width]))
    x = _norm(graph, x, "vision.pre_norm", vision.eps)
    for i in range(vision.layers):
        x = _vision_layer(graph, f"vision.layers.{i}.", x, config)
    graph.scope = "vision."
    return _norm(graph, x, "vision.post_norm", vision.eps)


def _vision_layer(graph: Graph, name: str, x: str, config: ModelConfig) -> str:
    graph.scope, vision = name, config.vision
    qkv = graph.linear(_norm(graph, x, f"{name}attention_norm", vision.eps), f"{name}qkv", vision.width)
    qkv = graph.op("Reshape", qkv, graph.const([-1, vision.tokens, 3 * vision.width]))
    q, k, v = graph.ops("Split", 3, qkv, axis=-1, num_outputs=3)
    context = _attend(graph, q, k, v, vision.heads, vision.width)
    x = graph.op("Add", x, graph.linear(context, f"{name}out", vision.width))
    n = graph.linear(_norm(graph, x, f"{name}mlp_norm", vision.eps), f"{name}fc1", vision.width)
    gate = graph.op("Sigmoid", graph.op("Mul", n, graph.const(1.702, np.float32)))
    return graph.op("Add", x, graph.linear(graph.op("Mul", n, gate), f"{name}fc2", vision.mlp))


def _abstractor(graph: Graph, config: AbstractorConfig, features: str, batch: str) -> str:
    """Feature rows [B*T, D] -> visual tokens [B, Q+1, Dllm]."""
    graph.scope = "abstractor.features."
    normed = _norm(graph, features, "abstractor.features.norm", NORM_EPS)
    kv = graph.linear(normed, "abstractor.features.kv", config.width)
    split = graph.op("Concat", batch, graph.const([-1, 2 * config.layers * config.width]), axis=0)
    parts = graph.ops(
        "Split", 2 * config.layers, graph.op("Reshape", kv, split), axis=-1, num_outputs=2 * config.layers
    )
    x = ""
    for i in range(config.layers):
        name = graph.scope = f"abstractor.layers.{i}."
        x, q, k, v = _queries(graph, name, x, config, batch, first=i == 0)
        keys = graph.op("Add", parts[2 * i], graph.weight(f"{name}key_table"))
        k = graph.op("Concat", k, keys, axis=1)  # queries first, then features
        v = graph.op("Concat", v, parts[2 * i + 1], axis=1)
        context = _attend(graph, q, k, v, config.heads, config.width)
        x = graph.op("Add", x, graph.linear(context, f"{name}out", config.width))
        x = graph.op("Add", x, _abstractor_mlp(graph, name, x, config))
    graph.scope = "abstractor."
    tokens = graph.linear(x, "abstractor.project", config.width)
    tokens = graph.op("Reshape", tokens, graph.op("Concat", batch, graph.const([config.queries, -1]), axis=0))
    end = graph.op("Unsqueeze", graph.weight("abstractor.end_token"), graph.const([0]))
    return graph.op("Concat", tokens, _expand(graph, end, batch), axis=1)


def _queries(
    graph: Graph, name: str, x: str, config: AbstractorConfig, batch: str, *, first: bool
) -> tuple[str, str, str, str]:
    """The normed query rows x [B*Q, D], and q, k, v [B, Q, D] of them; constants in the first layer."""
    rows = graph.const([-1, config.width])
    if first:
        constants = [graph.op("Unsqueeze", graph.weight(f"{name}{n}"), graph.const([0])) for n in "xqkv"]
        x, q, k, v = (_expand(graph, constant, batch) for constant in constants)
        return graph.op("Reshape", x, rows), q, k, v
    x = _norm(graph, x, f"{name}query_norm", NORM_EPS)
    qkv = graph.linear(x, f"{name}qkv", config.width)
    qkv = graph.op("Reshape", qkv, graph.const([-1, config.queries, 3 * config.width]))
    q, k, v = graph.ops("Split", 3, graph.op("Add", qkv, graph.weight(f"{name}qkv_table")), axis=-1, num_outputs=3)
    return x, q, k, v


def _abstractor_mlp(graph: Graph, name: str, x: str, config: AbstractorConfig) -> str:
    both = graph.linear(_norm(graph, x, f"{name}mlp_norm", NORM_EPS), f"{name}gate_up", config.width)
    gate, up = graph.ops("Split", 2, both, axis=-1, num_outputs=2)
    inner = _norm(graph, graph.op("Mul", silu(graph, gate), up), f"{name}inner_norm", config.eps)
    return graph.linear(inner, f"{name}down", config.mlp)


def _attend(graph: Graph, q: str, k: str, v: str, heads: int, width: int) -> str:
    """q [B, Tq, D], scaled already, k and v [B, Tk, D] -> context rows [B*Tq, D]."""
    rows = graph.const([-1, width])
    if graph.uses_contrib:  # one operator, twice as fast: its scores stay in the cache
        return graph.op("Reshape", graph.contrib("MultiHeadAttention", q, k, v, num_heads=heads, scale=1.0), rows)
    split = graph.const([0, 0, heads, -1])
    q = graph.op("Transpose", graph.op("Reshape", q, split), perm=[0, 2, 1, 3])
    k = graph.op("Transpose", graph.op("Reshape", k, split), perm=[0, 2, 3, 1])
    v = graph.op("Transpose", graph.op("Reshape", v, split), perm=[0, 2, 1, 3])
    context = graph.op("MatMul", graph.op("Softmax", graph.op("MatMul", q, k), axis=-1), v)  # [B, H, Tq, Dh]
    return graph.op("Reshape", graph.op("Transpose", context, perm=[0, 2, 1, 3]), rows)


def silu(graph: Graph, x: str) -> str:
    return graph.op("Mul", x, graph.op("Sigmoid", x))


def _norm(graph: Graph, x: str, name: str, eps: float) -> str:
    gain, bias = graph.weight(f"{name}.weight"), graph.weight(f"{name}.bias")
    return graph.op("LayerNormalization", x, gain, bias, epsilon=eps, axis=-1)


def _expand(graph: Graph, x: str, batch: str) -> str:
    """[1, *, *] -> [B, *, *]."""
    return graph.op("Expand", x, graph.op("Concat", batch, graph.const([1, 1]), axis=0))
