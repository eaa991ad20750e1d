"""Vision and abstractor weights in, the `encode` graph out: pixels uint8 [B, S, S, 3] -> visual_tokens [B, Q+1, D].

What never changes is computed here, in float64: the normalization inside the patch embedding, q's scale, the positional
part of the abstractor's keys, its first layer's queries. All its layers' keys and values of the features are one
product: each `feature_norm` is a plain normalization, shared, and a gain and bias folded into the layer's own weights.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from onnx import TensorProto

from qalign_export.graph import Graph
from qalign_fast.config import AbstractorConfig, ModelConfig
from qalign_fast.model.abstractor import NORM_EPS

Array: TypeAlias = np.ndarray
Weights: TypeAlias = "dict[str, np.ndarray]"


def build_vision(graph: Graph, weights: Weights, config: ModelConfig) -> None:
    """Adds the whole graph; `weights` are the stations' parameters by name, float32."""
    side = config.vision.side
    pixels = graph.input("pixels", TensorProto.UINT8, ["batch", side, side, 3])
    features = _vision(graph, weights, config, pixels)
    tokens = _abstractor(graph, weights, config.abstractor, features, _batch(graph, pixels))
    graph.output(tokens, "visual_tokens", TensorProto.FLOAT, ["batch", config.abstractor.tokens, config.decoder.width])


def _vision(graph: Graph, weights: Weights, config: ModelConfig, pixels: str) -> str:
    vision = config.vision
    grid = vision.side // vision.patch
    graph.scope = "vision."
    x = graph.op("Reshape", pixels, graph.const([0, grid, vision.patch, grid, 3 * vision.patch]))
    x = graph.op("Transpose", x, perm=[0, 1, 3, 2, 4])
    x = graph.op("Cast", graph.op("Reshape", x, graph.const([0, grid * grid, -1])), to=TensorProto.FLOAT)
    weight, bias = _fold_normalization(weights["vision.patch"], config)
    positions = weights["vision.positions"].astype(np.float64)
    x = graph.op("MatMul", x, graph.weight("patch", weight.T))
    x = graph.op("Add", x, graph.weight("patch_positions", _f32(positions[1:] + bias)))
    first = graph.weight("class_token", _f32(weights["vision.class_token"] + positions[:1])[None])
    x = graph.op("Concat", _expand(graph, first, _batch(graph, pixels)), x, axis=1)  # [B, T, D]
    x = _norm(graph, weights, x, "vision.pre_norm", vision.eps)
    for i in range(vision.layers):
        x = _vision_layer(graph, weights, f"vision.layers.{i}.", x, vision.heads, vision.eps)
    graph.scope = "vision."
    return _norm(graph, weights, x, "vision.post_norm", vision.eps)


def _vision_layer(graph: Graph, weights: Weights, name: str, x: str, heads: int, eps: float) -> str:
    graph.scope = name
    qkv = weights[f"{name}qkv.weight"], weights[f"{name}qkv.bias"]
    n = _norm(graph, weights, x, f"{name}attention_norm", eps)
    n = graph.linear(n, "qkv", *(_order_qkv(part, heads) for part in qkv))
    q, k, v = graph.ops("Split", 3, n, axis=-1, num_outputs=3)
    context = attention(graph, q, k, v, heads)
    x = graph.op("Add", x, graph.linear(context, "out", weights[f"{name}out.weight"], weights[f"{name}out.bias"]))
    n = _norm(graph, weights, x, f"{name}mlp_norm", eps)
    n = graph.linear(n, "fc1", weights[f"{name}fc1.weight"], weights[f"{name}fc1.bias"])
    gate = graph.op("Sigmoid", graph.op("Mul", n, graph.const(1.702, np.float32)))
    n = graph.linear(graph.op("Mul", n, gate), "fc2", weights[f"{name}fc2.weight"], weights[f"{name}fc2.bias"])
    return graph.op("Add", x, n)


def _abstractor(graph: Graph, weights: Weights, config: AbstractorConfig, features: str, batch: str) -> str:
    keys, values = _project_features(graph, weights, config, features)
    x = ""
    for i in range(config.layers):
        name = f"abstractor.layers.{i}."
        graph.scope = name
        w = {key[len(name) :]: value.astype(np.float64) for key, value in weights.items() if key.startswith(name)}
        if i == 0:
            x, q, k, v = _constant_queries(
                graph, weights["abstractor.queries"].astype(np.float64), w, config.heads, batch
            )
        else:
            x = _norm(graph, weights, x, f"{name}query_norm", NORM_EPS)
            q, k, v = _layer_queries(graph, x, w, config.heads)
        k = graph.op("Concat", k, keys[i], axis=1)  # queries first, then features
        v = graph.op("Concat", v, values[i], axis=1)
        context = attention(graph, q, k, v, config.heads)
        x = graph.op("Add", x, graph.linear(context, "out", _f32(w["out.weight"]), _f32(w["out.bias"])))
        x = graph.op("Add", x, _abstractor_mlp(graph, weights, name, x, config.eps))
    graph.scope = "abstractor."
    tokens = graph.linear(x, "project", weights["abstractor.project.weight"], weights["abstractor.project.bias"])
    end = graph.weight("end_token", weights["abstractor.end_token"][None, None])
    return graph.op("Concat", tokens, _expand(graph, end, batch), axis=1)


def _project_features(
    graph: Graph, weights: Weights, config: AbstractorConfig, features: str
) -> tuple[list[str], list[str]]:
    """Every layer's keys and values [B, T, D] of the features, by one product."""
    graph.scope = "abstractor.features."
    stacked, tables = [], []
    for i in range(config.layers):
        w = {part: weights[f"abstractor.layers.{i}.{part}"].astype(np.float64) for part in _FEATURE_PARTS}
        for part in ("k", "v"):
            matrix = w[f"{part}.weight"]
            stacked.append(matrix * w["feature_norm.weight"])
            shift = w["feature_norm.bias"] + (w["key_positions"] if part == "k" else 0)  # values get no positions
            tables.append(shift @ matrix.T + w[f"{part}.bias"])
    width = config.width
    one, zero = np.ones(width, np.float32), np.zeros(width, np.float32)
    n = graph.op(
        "LayerNormalization", features, graph.weight("one", one), graph.weight("zero", zero), epsilon=NORM_EPS, axis=-1
    )
    all_kv = graph.op("MatMul", n, graph.weight("kv.weight", _f32(np.concatenate(stacked).T)))
    parts = graph.ops("Split", len(stacked), all_kv, axis=-1, num_outputs=len(stacked))
    parts = [
        graph.op("Add", part, graph.weight(f"table.{i}", _f32(table)))
        for i, (part, table) in enumerate(zip(parts, tables))
    ]
    return parts[0::2], parts[1::2]


_FEATURE_PARTS = (
    "feature_norm.weight",
    "feature_norm.bias",
    "key_positions",
    "k.weight",
    "k.bias",
    "v.weight",
    "v.bias",
)


def _constant_queries(graph: Graph, queries: Array, w: Weights, heads: int, batch: str) -> tuple[str, str, str, str]:
    """Layer 0 starts from constants: its normed queries x, and q, k, v of them, are too. Returns x, q, k, v."""
    centred = queries - queries.mean(-1, keepdims=True)
    x = centred / np.sqrt(queries.var(-1, keepdims=True) + NORM_EPS) * w["query_norm.weight"] + w["query_norm.bias"]
    placed = x + w["query_positions"]
    scale = _scale(len(w["q.weight"]), heads)
    q = (placed @ w["q.weight"].T + w["q.bias"]) * scale
    k = placed @ w["k.weight"].T + w["k.bias"]
    v = x @ w["v.weight"].T + w["v.bias"]
    x_, q_, k_, v_ = (graph.weight(f"constant.{n}", _f32(a)[None]) for n, a in zip("xqkv", (x, q, k, v)))
    return x_, q_, _expand(graph, k_, batch), _expand(graph, v_, batch)


def _layer_queries(graph: Graph, x: str, w: Weights, heads: int) -> tuple[str, str, str]:
    """q, k, v of the normed queries x [B, Q, D]; positions become bias tables."""
    scale = _scale(len(w["q.weight"]), heads)
    matrix = np.concatenate((w["q.weight"] * scale, w["k.weight"], w["v.weight"]))
    positions = w["query_positions"]
    q = (positions @ w["q.weight"].T + w["q.bias"]) * scale
    k = positions @ w["k.weight"].T + w["k.bias"]
    v = np.broadcast_to(w["v.bias"], k.shape)
    table = graph.weight("qkv.table", _f32(np.concatenate((q, k, v), axis=1)))
    qkv = graph.op("Add", graph.op("MatMul", x, graph.weight("qkv.weight", _f32(matrix.T))), table)
    q_, k_, v_ = graph.ops("Split", 3, qkv, axis=-1, num_outputs=3)
    return q_, k_, v_


def _abstractor_mlp(graph: Graph, weights: Weights, name: str, x: str, eps: float) -> str:
    n = _norm(graph, weights, x, f"{name}mlp_norm", NORM_EPS)
    gate, up, down = (
        (weights[f"{name}{part}.weight"], weights[f"{name}{part}.bias"]) for part in ("gate", "up", "down")
    )
    both = graph.linear(n, "gate_up", *(np.concatenate(pair) for pair in zip(gate, up)))
    g, u = graph.ops("Split", 2, both, axis=-1, num_outputs=2)
    inner = _norm(graph, weights, graph.op("Mul", silu(graph, g), u), f"{name}inner_norm", eps)
    return graph.linear(inner, "down", *down)


def attention(graph: Graph, q: str, k: str, v: str, heads: int) -> str:
    """q [B or 1, Tq, D], already scaled, k and v [B, Tk, D] -> context [B, Tq, D]."""
    split = graph.const([0, 0, heads, -1])
    q = graph.op("Transpose", graph.op("Reshape", q, split), perm=[0, 2, 1, 3])
    k = graph.op("Transpose", graph.op("Reshape", k, split), perm=[0, 2, 3, 1])
    v = graph.op("Transpose", graph.op("Reshape", v, split), perm=[0, 2, 1, 3])
    context = graph.op("MatMul", graph.op("Softmax", graph.op("MatMul", q, k), axis=-1), v)  # [B, H, Tq, Dh]
    return graph.op("Reshape", graph.op("Transpose", context, perm=[0, 2, 1, 3]), graph.const([0, 0, -1]))


def silu(graph: Graph, x: str) -> str:
    return graph.op("Mul", x, graph.op("Sigmoid", x))


def _norm(graph: Graph, weights: Weights, x: str, name: str, eps: float) -> str:
    short = name.rsplit(".", 1)[-1]
    gain = graph.weight(f"{short}.weight", weights[f"{name}.weight"])
    bias = graph.weight(f"{short}.bias", weights[f"{name}.bias"])
    return graph.op("LayerNormalization", x, gain, bias, epsilon=eps, axis=-1)


def _batch(graph: Graph, pixels: str) -> str:
    return graph.op("Shape", pixels, start=0, end=1)


def _expand(graph: Graph, x: str, batch: str) -> str:
    """[1, *, *] -> [B, *, *]."""
    return graph.op("Expand", x, graph.op("Concat", batch, graph.const([1, 1]), axis=0))


def _order_qkv(rows: Array, heads: int) -> Array:
    """Rows [heads, 3, Dh], upstream's order, to [3, heads, Dh], with attention's scale in q's."""
    split = rows.reshape(heads, 3, -1, *rows.shape[1:]).swapaxes(0, 1).astype(np.float64)
    split[0] *= split.shape[2] ** -0.5
    return _f32(split.reshape(rows.shape))


def _fold_normalization(patch: Array, config: ModelConfig) -> tuple[Array, Array]:
    """As qalign_fast.model.vision.fold_normalization, in float64; the weight is float32 [D, p*p*3]."""
    mean, std = (np.array(x).reshape(3, 1, 1) for x in (config.pixels.mean, config.pixels.std))
    weight = (patch / (255 * std)).transpose(0, 2, 3, 1).reshape(len(patch), -1)
    return _f32(weight), -(patch * (mean / std)).sum(axis=(1, 2, 3))


def _scale(width: int, heads: int) -> float:
    return float((width // heads) ** -0.5)


def _f32(x: Array) -> Array:
    return np.asarray(x, np.float32)
