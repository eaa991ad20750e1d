"""A GGUF file of the LLaMA family in, its float32 decoder and its tokenizer out: real weights to measure on.

It needs `gguf` and `tokenizers`. The rows of q and k in the file are interleaved pairs, so RoPE turns neighbours here.

Letters: B sequences, T tokens, D width, H query heads, J key and value heads, Dh head width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, ReaderTensor, dequantize
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from torch.nn import functional as F

KINDS = ("q", "k", "v", "o", "gate", "up", "down")
_NAMES = dict(zip(KINDS, "attn_q attn_k attn_v attn_output ffn_gate ffn_up ffn_down".split(), strict=True))
_Q4_1 = np.dtype([("step", "<f2"), ("low", "<f2"), ("codes", "u1", 16)])  # a block of 32 weights

Linear = Callable[[str, Tensor], Tensor]  # (kind, x [B, T, K]) -> [B, T, N]


@dataclass(frozen=True)
class Layer:
    """One decoder layer. The caller passes its linears, so that it can record or replace them."""

    weights: dict[str, Tensor]  # by kind, [N, K]
    attention_norm: Tensor
    mlp_norm: Tensor
    heads: int
    kv_heads: int
    eps: float

    def linear(self, kind: str, x: Tensor) -> Tensor:
        """The linear as the file has it."""
        return F.linear(x, self.weights[kind])

    def __call__(self, x: Tensor, turns: Tensor, linear: Linear) -> Tensor:
        """x [B, T, D], turns complex [T, Dh/2] -> [B, T, D]."""
        h = F.rms_norm(x, x.shape[-1:], self.attention_norm, self.eps)
        q = _turn(_split(linear("q", h), self.heads), turns)  # [B, H, T, Dh]
        k, v = _turn(_split(linear("k", h), self.kv_heads), turns), _split(linear("v", h), self.kv_heads)
        context = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + linear("o", context.transpose(1, 2).flatten(2))
        h = F.rms_norm(x, x.shape[-1:], self.mlp_norm, self.eps)
        return x + linear("down", F.silu(linear("gate", h)) * linear("up", h))


@dataclass(frozen=True)
class Llama:
    """The whole decoder, its tokenizer, and how many tensors of each quantization the file holds."""

    embed: Tensor  # [V, D], the head as well
    layers: list[Layer]
    norm: Tensor
    theta: float
    bos: int
    tokenizer: Tokenizer
    types: dict[str, int]

    def turns(self, tokens: int) -> Tensor:
        """RoPE as unit complex numbers [T, Dh/2]."""
        width = self.layers[0].weights["q"].shape[0] // self.layers[0].heads
        angles = torch.outer(torch.arange(tokens), self.theta ** (-torch.arange(0, width, 2) / width))
        return torch.polar(torch.ones_like(angles), angles)

    def loss(self, ids: Tensor, first: int = 1, linears: Iterable[Linear] | None = None) -> float:
        """Mean negative log-likelihood, in nats, of the tokens of ids [B, T] from `first` on."""
        return float(F.cross_entropy(self.logits(ids, first, linears), ids[:, first:].flatten()))

    def logits(self, ids: Tensor, first: int = 1, linears: Iterable[Linear] | None = None) -> Tensor:
        """The predictions for the tokens of ids [B, T] from `first` on: [B * (T - first), V]."""
        x, turns = self.embed[ids], self.turns(ids.shape[1])
        for layer, linear in zip(self.layers, linears or [layer.linear for layer in self.layers], strict=True):
            x = layer(x, turns, linear)
        x = F.rms_norm(x[:, first - 1 : -1], x.shape[-1:], self.norm, self.layers[0].eps)
        return F.linear(x, self.embed).flatten(0, 1)


def load(path: Path, dither: int | None = None) -> Llama:
    """Reads the file. `dither` is a seed: each 4-bit weight then moves within its step, where it was rounded from."""
    reader = GGUFReader(path)
    settings = {name: field.contents() for name, field in reader.fields.items()}
    assert settings["general.architecture"] == "llama", settings["general.architecture"]
    random = None if dither is None else np.random.default_rng(dither)
    tensors = {t.name: torch.from_numpy(_float32(t, random)) for t in reader.tensors}
    types = [t.tensor_type.name for t in reader.tensors]
    return Llama(
        tensors["token_embd.weight"],
        [_layer(tensors, f"blk.{i}", settings) for i in range(settings["llama.block_count"])],
        tensors["output_norm.weight"],
        settings["llama.rope.freq_base"],
        settings["tokenizer.ggml.bos_token_id"],
        _tokenizer(settings),
        {name: types.count(name) for name in sorted(set(types))},
    )


def _layer(tensors: dict[str, Tensor], prefix: str, settings: dict[str, Any]) -> Layer:
    return Layer(
        {kind: tensors[f"{prefix}.{name}.weight"] for kind, name in _NAMES.items()},
        tensors[f"{prefix}.attn_norm.weight"],
        tensors[f"{prefix}.ffn_norm.weight"],
        settings["llama.attention.head_count"],
        settings["llama.attention.head_count_kv"],
        settings["llama.attention.layer_norm_rms_epsilon"],
    )


def _float32(tensor: ReaderTensor, random: np.random.Generator | None) -> np.ndarray:
    values: np.ndarray = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
    if random is not None and tensor.tensor_type == GGMLQuantizationType.Q4_1:
        steps = tensor.data.view(_Q4_1)["step"].astype(np.float32).repeat(32, axis=-1)
        values += steps * random.uniform(-0.5, 0.5, values.shape).astype(np.float32)
    return values


def _tokenizer(settings: dict[str, Any]) -> Tokenizer:
    vocabulary = {token: i for i, token in enumerate(settings["tokenizer.ggml.tokens"])}
    merges = [tuple(pair.split(" ")) for pair in settings["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    digits, words = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])  # "smollm"
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _split(x: Tensor, heads: int) -> Tensor:
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def _turn(x: Tensor, turns: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turns).flatten(-2)
