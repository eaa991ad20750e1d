"""Folded tensors in, the `encode` graph out: pixels uint8 [B, S, S, 3] -> visual_tokens [B, Q+1, D].

It follows qalign_fast.families.mplug_owl2.model.folded operator by operator, on [B, T, D].
"""

from __future__ import annotations

from onnx import TensorProto

from qalign_export.onnx_graphs.model import ModelGraph
from qalign_fast.families.mplug_owl2.sizes import NORM_EPS, AbstractorConfig, ModelConfig, VisionConfig


def build_vision(graph: ModelGraph, config: ModelConfig) -> None:
    """Adds the input, all layers and the output to an empty graph."""
    side = config.vision.side
    pixels = graph.input("pixels", TensorProto.UINT8, ["batch", side, side, 3])
    features = _vision(graph, config.vision, pixels)
    tokens = graph.leave(_abstractor(graph, config.abstractor, features))
    graph.output(tokens, "visual_tokens", TensorProto.FLOAT, ["batch", config.abstractor.tokens, config.decoder.width])


def _vision(graph: ModelGraph, vision: VisionConfig, pixels: str) -> str:
    """Pixels -> [B, T, D] after the last layer and its norm."""
    graph.scope = "vision."
    x = graph.layer_norm(_embed(graph, vision, pixels), "vision.pre_norm", vision.eps)
    norms = [f"vision.layers.{i}.attention_norm" for i in range(vision.layers)] + ["vision.post_norm"]
    n = graph.layer_norm(x, norms[0], vision.eps)
    for i in range(vision.layers):
        x, n = _vision_layer(graph, f"vision.layers.{i}.", x, n, norms[i + 1], vision)
    return n


def _embed(graph: ModelGraph, vision: VisionConfig, pixels: str) -> str:
    """Pixels -> [B, T, D], the class token first."""
    grid = vision.side // vision.patch
    x = graph.op("Reshape", pixels, graph.const([0, grid, vision.patch, grid, 3 * vision.patch]))
    x = graph.op("Transpose", x, perm=[0, 1, 3, 2, 4])
    x = graph.op("Reshape", x, graph.const([0, grid * grid, -1]))
    patches = graph.exact_product(graph.op("Cast", x, to=TensorProto.FLOAT), "vision.patch")
    x = graph.op("Add", graph.enter(patches), graph.weight("vision.patch_table"))
    first = graph.op("Unsqueeze", graph.weight("vision.class_token"), graph.const([0]))
    return graph.op("Concat", graph.repeat(first, x), x, axis=1)


def _vision_layer(
    graph: ModelGraph, name: str, x: str, n: str, following: str, vision: VisionConfig
) -> tuple[str, str]:
    """x and its norm n -> the same after the layer; `following` is the norm that comes next."""
    graph.scope = name
    q, k, v = graph.linears(n, f"{name}qkv", 3, vision.width)
    context = graph.attend(q, k, v, vision.heads)
    x, n = graph.add_layer_norm(x, context, f"{name}out", vision.width, f"{name}mlp_norm", vision.eps)
    n = graph.quick_gelu(graph.linear(n, f"{name}fc1", vision.width))
    return graph.add_layer_norm(x, n, f"{name}fc2", vision.mlp, following, vision.eps)


def _abstractor(graph: ModelGraph, config: AbstractorConfig, features: str) -> str:
    """Features [B, T, D] -> visual tokens [B, Q+1, Dllm]."""
    graph.scope = "abstractor.features."
    normed = graph.layer_norm(features, "abstractor.features.norm", NORM_EPS)
    parts = graph.linears(normed, "abstractor.features.kv", 2 * config.layers, config.width)
    x = ""
    for i in range(config.layers):
        name = graph.scope = f"abstractor.layers.{i}."
        x, q, k, v = _queries(graph, name, x, config, features, first=i == 0)
        keys = graph.op("Add", parts[2 * i], graph.weight(f"{name}key_table"))
        k = graph.op("Concat", k, keys, axis=1)  # queries first, then features
        v = graph.op("Concat", v, parts[2 * i + 1], axis=1)
        context = graph.attend(q, k, v, config.heads)
        x, n = graph.add_layer_norm(x, context, f"{name}out", config.width, f"{name}mlp_norm", NORM_EPS)
        x = graph.op("Add", x, _abstractor_mlp(graph, name, n, config))
    graph.scope = "abstractor."
    tokens = graph.linear(x, "abstractor.project", config.width)
    end = graph.op("Unsqueeze", graph.weight("abstractor.end_token"), graph.const([0]))
    return graph.op("Concat", tokens, graph.repeat(end, features), axis=1)


def _queries(
    graph: ModelGraph, name: str, x: str, config: AbstractorConfig, features: str, *, first: bool
) -> tuple[str, str, str, str]:
    """The normed queries x [B, Q, D], and their q, k and v [B, Q, D]; constants in the first layer."""
    if first:
        constants = [graph.op("Unsqueeze", graph.weight(f"{name}{n}"), graph.const([0])) for n in "xqkv"]
        x, q, k, v = (graph.repeat(constant, features) for constant in constants)
        return x, q, k, v
    x = graph.layer_norm(x, f"{name}query_norm", NORM_EPS)
    qkv = graph.op("Add", graph.linear(x, f"{name}qkv", config.width), graph.weight(f"{name}qkv_table"))
    q, k, v = graph.ops("Split", 3, qkv, axis=-1, num_outputs=3)
    return x, q, k, v


def _abstractor_mlp(graph: ModelGraph, name: str, n: str, config: AbstractorConfig) -> str:
    gate, up = graph.linears(n, f"{name}gate_up", 2, config.width)
    inner = graph.layer_norm(graph.op("Mul", graph.silu(gate), up), f"{name}inner_norm", config.eps)
    return graph.linear(inner, f"{name}down", config.mlp)
