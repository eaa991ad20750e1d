"""A block's parameters in, its folded tensors out: whatever is the same for all pictures is computed here, in float64.

The normalization of pixels goes into the patch embedding and attention's scale into q. The positional part of the
abstractor's keys becomes a table, and the queries of its first layer become constants. One product gives the keys and
values of the features for all its layers: each layer's `feature_norm` is a plain normalization, which they share, and a
gain and a bias, which are folded into the layer's own weights.

`blocks` lists the blocks in the order in which they run. `FoldedModel` can run a block with only its tensors in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from qalign_fast.families.mplug_owl2.model.vision import fold_normalization
from qalign_fast.families.mplug_owl2.sizes import NORM_EPS, ModelConfig
from qalign_fast.pixels.rule import SquareRule

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Migration:
    """Linears whose common input x can become x / s while their weights W become W · s, exactly."""

    consumers: tuple[str, ...]  # the linears that read x
    producers: tuple[
        tuple[str, int, int], ...
    ]  # tensors to divide by s, and which part of axis 0; 2, 3: the last third
    seen: tuple[str, ...] = ()  # if each consumer reads only a part of the rows: those that together read all of them
    of_values: bool = False  # x comes from the decoder's values: the constant prefixes' values are divided too


@dataclass(frozen=True)
class Block:
    """A part of the model that is read, folded, rounded and written before the next."""

    kind: str
    index: int  # of the layer
    reads: tuple[str, ...]  # parameters, by the reference's names
    fold: Callable[[Tensors], Tensors]  # parameters, float32 -> folded tensors, float32
    linears: tuple[str, ...] = ()  # whose weights are rounded
    migrations: tuple[Migration, ...] = ()


def blocks(config: ModelConfig) -> Iterator[Block]:
    """All blocks of a model, in the order in which they run."""
    yield _embedding(config)
    for i in range(config.vision.layers):
        yield _vision_layer(config, i)
    yield _features(config)
    for i in range(config.abstractor.layers):
        yield _abstractor_layer(config, i)
    yield _tokens()
    for i in range(config.decoder.layers):
        yield _decoder_layer(config, i)
    yield _head(config)


def _embedding(config: ModelConfig) -> Block:
    names = ("patch", "class_token", "positions", "pre_norm.weight", "pre_norm.bias")
    return Block("embedding", 0, tuple(f"vision.{n}" for n in names), partial(fold_embedding, rule=config.pixels))


def fold_embedding(w: Tensors, rule: SquareRule) -> Tensors:
    """The normalization of pixels goes into the patches' weight and, with the positions, into a table [T, D]."""
    weight, bias = fold_normalization(w["vision.patch"].double(), rule)
    positions = w["vision.positions"].double()
    return {
        "vision.patch.weight": weight.float(),
        "vision.patch_table": (positions[1:] + bias).float(),
        "vision.class_token": (w["vision.class_token"] + positions[:1]).float(),
        "vision.pre_norm.weight": w["vision.pre_norm.weight"],
        "vision.pre_norm.bias": w["vision.pre_norm.bias"],
    }


def _vision_layer(config: ModelConfig, i: int) -> Block:
    name = f"vision.layers.{i}."
    linears = tuple(f"{name}{n}" for n in ("qkv", "out", "fc1", "fc2"))
    qkv, out, fc1, _ = linears
    return Block(
        "vision_layer",
        i,
        _both(name, "attention_norm", "qkv", "out", "mlp_norm", "fc1", "fc2"),
        partial(fold_vision_layer, name=name, heads=config.vision.heads),
        linears,
        (
            Migration((qkv,), _norm_of(f"{name}attention_norm")),
            # attention's weights sum to one, so that v's bias passes through it unchanged
            Migration((out,), ((f"{qkv}.weight", 2, 3), (f"{qkv}.bias", 2, 3))),
            Migration((fc1,), _norm_of(f"{name}mlp_norm")),
        ),
    )


def fold_vision_layer(w: Tensors, name: str, heads: int) -> Tensors:
    """qkv's rows go from upstream's order [heads, 3, Dh] to [3, heads, Dh]; attention's scale goes into those of q."""
    folded = dict(w)
    for part in ("weight", "bias"):
        rows = w[f"{name}qkv.{part}"]
        split = rows.unflatten(0, (heads, 3, -1)).transpose(0, 1).double()
        split[0] *= split.shape[2] ** -0.5
        folded[f"{name}qkv.{part}"] = split.reshape(rows.shape).float()
    return folded


_FEATURES = ("feature_norm.weight", "feature_norm.bias", "key_positions", "k.weight", "k.bias", "v.weight", "v.bias")


def _features(config: ModelConfig) -> Block:
    layers = [f"abstractor.layers.{i}." for i in range(config.abstractor.layers)]
    reads = tuple(f"{layer}{part}" for layer in layers for part in _FEATURES)
    kv = "abstractor.features.kv"
    return Block(
        "features",
        0,
        ("vision.post_norm.weight", "vision.post_norm.bias", *reads),
        partial(fold_features, layers=layers),
        (kv,),
        (Migration((kv,), _norm_of("abstractor.features.norm")),),
    )


def fold_features(w: Tensors, layers: list[str]) -> Tensors:
    """kv's rows are layer 0's keys, layer 0's values, layer 1's keys, ...; tables hold the keys' positional part."""
    weights, biases, tables = [], [], {}
    for layer in layers:
        gain, shift = (w[f"{layer}feature_norm.{part}"].double() for part in ("weight", "bias"))
        for part in ("k", "v"):
            matrix = w[f"{layer}{part}.weight"].double()
            weights.append((matrix * gain).float())
            biases.append((matrix @ shift + w[f"{layer}{part}.bias"]).float())
        table = w[f"{layer}key_positions"].double() @ w[f"{layer}k.weight"].double().T
        tables[f"{layer}key_table"] = table.float()
    width = len(w["vision.post_norm.weight"])
    return {
        "vision.post_norm.weight": w["vision.post_norm.weight"],
        "vision.post_norm.bias": w["vision.post_norm.bias"],
        "abstractor.features.norm.weight": torch.ones(width),
        "abstractor.features.norm.bias": torch.zeros(width),
        "abstractor.features.kv.weight": torch.cat(weights),
        "abstractor.features.kv.bias": torch.cat(biases),
        **tables,
    }


def _abstractor_layer(config: ModelConfig, i: int) -> Block:
    name = f"abstractor.layers.{i}."
    out, gate_up, down = (f"{name}{n}" for n in ("out", "gate_up", "down"))
    norms_linears = ("query_norm", "q", "k", "v", "out", "mlp_norm", "gate", "up", "inner_norm", "down")
    first = ("abstractor.queries",) if i == 0 else ()
    return Block(
        "abstractor_layer",
        i,
        (*first, f"{name}query_positions", *_both(name, *norms_linears)),
        partial(fold_abstractor_layer, name=name, heads=config.abstractor.heads),
        (out, gate_up, down) if i == 0 else (f"{name}qkv", out, gate_up, down),
        (
            Migration((gate_up,), _norm_of(f"{name}mlp_norm")),
            Migration((down,), _norm_of(f"{name}inner_norm")),
        ),
    )


def fold_abstractor_layer(w: Tensors, name: str, heads: int) -> Tensors:
    """q, k and v become one linear and a table of their positional part, gate and up another linear.

    The first layer, which has the queries, gets constants x, q, k and v [Q, D] in place of the former.
    """
    part = {key.removeprefix(name): value for key, value in w.items()}
    folded = {f"{name}{n}": part[n] for n in ("out.weight", "out.bias", "down.weight", "down.bias")}
    folded |= {f"{name}{norm}.{n}": part[f"{norm}.{n}"] for norm in ("mlp_norm", "inner_norm") for n in _PARTS}
    folded |= {f"{name}gate_up.{n}": torch.cat((part[f"gate.{n}"], part[f"up.{n}"])) for n in _PARTS}
    scale = (len(part["q.weight"]) // heads) ** -0.5
    weight = torch.cat((part["q.weight"].double() * scale, part["k.weight"].double(), part["v.weight"].double()))
    bias = torch.cat((part["q.bias"].double() * scale, part["k.bias"].double(), part["v.bias"].double()))
    queries_keys = 2 * len(part["q.weight"])  # values get no positions
    positional = part["query_positions"].double() @ weight[:queries_keys].T
    table = torch.cat((positional, torch.zeros_like(part["query_positions"], dtype=torch.float64)), dim=-1)
    if "abstractor.queries" in w:
        x = _layer_norm(w["abstractor.queries"].double(), part["query_norm.weight"], part["query_norm.bias"])
        q, k, v = (x @ weight.T + bias + table).chunk(3, dim=-1)
        return folded | {f"{name}{n}": t.float().contiguous() for n, t in zip("xqkv", (x, q, k, v), strict=True)}
    folded |= {f"{name}query_norm.{n}": part[f"query_norm.{n}"] for n in _PARTS}
    return folded | {
        f"{name}qkv.weight": weight.float(),
        f"{name}qkv.bias": bias.float(),
        f"{name}qkv_table": table.float(),
    }


def _layer_norm(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (x.var(-1, keepdim=True, correction=0) + NORM_EPS).sqrt() * gain + bias


def _tokens() -> Block:
    project = "abstractor.project"
    reads = (f"{project}.weight", f"{project}.bias", "abstractor.end_token")
    return Block("tokens", 0, reads, fold_tokens, (project,))


def fold_tokens(w: Tensors) -> Tensors:
    """The end token [D] becomes a row [1, D]."""
    return w | {"abstractor.end_token": w["abstractor.end_token"].unsqueeze(0)}


def _decoder_layer(config: ModelConfig, i: int) -> Block:
    name = f"decoder.layers.{i}."
    norms = tuple(f"{name}{n}_norm_{m}" for n in ("attention", "mlp") for m in _MODALITIES)
    weights = ("q", "k_visual", "k_text", "v_visual", "v_text", "o", "gate", "up", "down")
    linears = tuple(f"{name}{n}" for n in ("q", "kv_visual", "kv_text", "o", "gate_up", "down"))
    q, kv_visual, kv_text, o, gate_up, down = linears
    return Block(
        "decoder_layer",
        i,
        (*norms, *(f"{name}{n}.weight" for n in weights)),
        partial(fold_decoder_layer, name=name, heads=config.decoder.heads),
        linears,
        (
            Migration((q, kv_visual, kv_text), tuple((n, 0, 1) for n in norms[:2]), seen=(kv_visual, kv_text)),
            Migration((o,), ((f"{kv_visual}.weight", 1, 2), (f"{kv_text}.weight", 1, 2)), of_values=True),
            Migration((gate_up,), tuple((n, 0, 1) for n in norms[2:])),
            Migration((down,), ((f"{gate_up}.weight", 1, 2),)),
        ),
    )


def fold_decoder_layer(w: Tensors, name: str, heads: int) -> Tensors:
    """k and v of a modality become one linear, gate and up another; attention's scale goes into q.

    Takes the parameters out of w as it goes: at full size each copy of them is a gigabyte.
    """
    folded = {key: w.pop(key) for key in list(w) if "_norm_" in key}
    q = w.pop(f"{name}q.weight")
    folded[f"{name}q.weight"] = (q.double() * (len(q) // heads) ** -0.5).float()
    for modality in _MODALITIES:
        pair = [w.pop(f"{name}{n}_{modality}.weight") for n in ("k", "v")]
        folded[f"{name}kv_{modality}.weight"] = torch.cat(pair)
    folded[f"{name}gate_up.weight"] = torch.cat([w.pop(f"{name}{n}.weight") for n in ("gate", "up")])
    return folded | {key: w.pop(key) for key in (f"{name}o.weight", f"{name}down.weight")}


def _head(config: ModelConfig) -> Block:
    first = ("mlp.0.weight", "mlp.0.bias") if config.mlp else ()
    return Block("head", 0, ("decoder.norm", "decoder.head", *first), fold_head)


def fold_head(w: Tensors) -> Tensors:
    """The levels' rows, which have no bias, and the first layer of an MLP, where a model has one, become one linear."""
    folded = {"decoder.norm": w["decoder.norm"], "decoder.head.weight": w["decoder.head"]}
    if "mlp.0.weight" in w:
        folded["decoder.head.weight"] = torch.cat((w["decoder.head"], w["mlp.0.weight"]))
        folded["decoder.head.bias"] = torch.cat((torch.zeros(len(w["decoder.head"])), w["mlp.0.bias"]))
    return folded


_PARTS = ("weight", "bias")
_MODALITIES = ("visual", "text")


def _both(name: str, *modules: str) -> tuple[str, ...]:
    return tuple(f"{name}{module}.{part}" for module in modules for part in _PARTS)


def _norm_of(name: str) -> tuple[tuple[str, int, int], ...]:
    return tuple((f"{name}.{part}", 0, 1) for part in _PARTS)
