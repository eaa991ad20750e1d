"""The model computed in upstream's way from this project's stations. It is a re-make, not upstream's code.

It does what costs upstream its time. The whole sequence, its constant beginning too, runs through every layer in full.
Logits are computed at all positions over the whole vocabulary. Attention writes out its scores and probabilities. Keys,
values and norms find each modality's rows, pick them and put them back.

Letters: B batch, T tokens, D width, H heads, Dh head width, Q queries, S side, n patches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qalign_fast.families.mplug_owl2.model.abstractor import Abstractor, AbstractorLayer
from qalign_fast.families.mplug_owl2.model.decoder import Decoder, DecoderLayer
from qalign_fast.families.mplug_owl2.model.layout import turns_of
from qalign_fast.families.mplug_owl2.model.reference import Model
from qalign_fast.families.mplug_owl2.model.vision import VisionEncoder, VisionLayer
from qalign_fast.families.prompt import Prompt
from qalign_kernels.contract.activation import quick_gelu
from qalign_kernels.contract.attention import rotate
from qalign_kernels.contract.norm import rms_norm

Rowwise: TypeAlias = Callable[[Tensor], Tensor]  # of rows [N, *], each by itself


class EagerModel(nn.Module):
    """`head` gives logits over the whole vocabulary. The stations' own head has the five levels' rows alone."""

    def __init__(self, stations: Model, head: nn.Linear) -> None:
        super().__init__()
        self.config = stations.config
        self.vision = EagerVision(stations.vision)
        self.abstractor = EagerAbstractor(stations.abstractor)
        self.decoder = EagerDecoder(stations.decoder)
        self.head = head

    def forward(self, values: Tensor, prompt: Prompt) -> Tensor:
        """Normalized pixels [B, 3, S, S] and a prompt -> logits [B, T, vocabulary]."""
        logits: Tensor = self.head(self.decoder(self.abstractor(self.vision(values)), prompt))
        return logits


class EagerVision(nn.Module):
    """Normalized pixels [B, 3, S, S] -> features [B, T, D]."""

    def __init__(self, station: VisionEncoder) -> None:
        super().__init__()
        self.station = station

    def forward(self, values: Tensor) -> Tensor:
        station = self.station
        patches = F.conv2d(values, station.patch, stride=station.config.patch).flatten(2).transpose(1, 2)  # [B, n, D]
        first = station.class_token.expand(len(values), 1, -1)
        x = station.pre_norm(torch.cat((first, patches), dim=1) + station.positions)  # [B, T, D]
        for layer in station.layers:
            assert isinstance(layer, VisionLayer)
            x = vision_layer(layer, x)
        features: Tensor = station.post_norm(x)
        return features


def vision_layer(layer: VisionLayer, x: Tensor) -> Tensor:
    """x [B, T, D] -> [B, T, D]."""
    qkv = layer.qkv(layer.attention_norm(x)).unflatten(-1, (layer.heads, 3, -1))  # [B, T, H, 3, Dh]
    q, k, v = qkv.permute(3, 0, 2, 1, 4)  # each [B, H, T, Dh]
    x = x + layer.out(join_heads(scores(q, k).softmax(-1) @ v))
    more: Tensor = layer.fc2(quick_gelu(layer.fc1(layer.mlp_norm(x))))
    return x + more


def scores(q: Tensor, k: Tensor) -> Tensor:
    """Attention's scores, before the softmax, of q [B, H, Tq, Dh] and k [B, H, T, Dh]."""
    return q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])  # [B, H, Tq, T]


def join_heads(x: Tensor) -> Tensor:
    """Puts the heads of each row side by side."""
    return x.transpose(1, 2).flatten(2)  # [B, H, T, Dh] -> [B, T, D]


class EagerAbstractor(nn.Module):
    """Features [B, T, D] -> visual tokens [B, Q+1, Dllm]. Every layer normalizes and projects all features anew."""

    def __init__(self, station: Abstractor) -> None:
        super().__init__()
        self.station = station

    def forward(self, features: Tensor) -> Tensor:
        station = self.station
        x = station.queries.expand(len(features), -1, -1)  # [B, Q, D]
        for layer in station.layers:
            assert isinstance(layer, AbstractorLayer)
            x = abstractor_layer(layer, x, features)
        return torch.cat((station.project(x), station.end_token.expand(len(x), 1, -1)), dim=1)


def abstractor_layer(layer: AbstractorLayer, x: Tensor, features: Tensor) -> Tensor:
    """x [B, Q, D] and features [B, T, D] -> [B, Q, D]."""
    x = layer.query_norm(x)
    both = torch.cat((x, layer.feature_norm(features)), dim=1)  # [B, Q+T, D]
    q = layer.split_heads(layer.q(x + layer.query_positions))
    k = layer.split_heads(layer.k(both + torch.cat((layer.query_positions, layer.key_positions))))
    v = layer.split_heads(layer.v(both))
    x = x + layer.out(join_heads(scores(q, k).softmax(-1) @ v))
    n = layer.mlp_norm(x)
    more: Tensor = layer.down(layer.inner_norm(F.silu(layer.gate(n)) * layer.up(n)))
    return x + more


class EagerDecoder(nn.Module):
    """Visual tokens [B, V, D] and a prompt -> all rows of the sequence [B, T, D], after the last norm."""

    def __init__(self, station: Decoder) -> None:
        super().__init__()
        self.station = station

    def forward(self, tokens: Tensor, prompt: Prompt) -> Tensor:
        station = self.station
        before, after = (station.suffix(ids).expand(len(tokens), -1, -1) for ids in (prompt.prefix, prompt.suffix))
        x = torch.cat((before, tokens, after), dim=1)  # [B, T, D]
        visual = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        visual[:, len(prompt.prefix) : -len(prompt.suffix)] = True
        turns = torch.from_numpy(turns_of(station.config, 0, x.shape[1])).to(x)
        places = torch.arange(x.shape[1], device=x.device)
        hidden = places > places.unsqueeze(1)  # [T, T]
        mask = torch.zeros_like(hidden, dtype=x.dtype).masked_fill(hidden, torch.finfo(x.dtype).min)
        for layer in station.layers:
            assert isinstance(layer, DecoderLayer)
            x = decoder_layer(layer, x, visual, turns, mask)
        return rms_norm(x, station.norm, station.norm, 0, station.config.eps)


def decoder_layer(layer: DecoderLayer, x: Tensor, visual: Tensor, turns: Tensor, mask: Tensor) -> Tensor:
    """x [B, T, D] -> [B, T, D]. `visual` [B, T] says which rows are a picture's; `mask` [T, T] is added to scores."""
    n = norm(layer, x, visual, layer.attention_norm_text, layer.attention_norm_visual)
    q = rotate(layer.split_heads(layer.q(n)), turns).transpose(1, 2)  # [B, H, T, Dh]
    k = rotate(layer.split_heads(by_modality(n, visual, layer.k_text, layer.k_visual)), turns).transpose(1, 2)
    v = layer.split_heads(by_modality(n, visual, layer.v_text, layer.v_visual)).transpose(1, 2)
    weights = (scores(q, k) + mask).softmax(-1, dtype=torch.float32).to(x.dtype)
    x = x + layer.o(join_heads(weights @ v))
    n = norm(layer, x, visual, layer.mlp_norm_text, layer.mlp_norm_visual)
    more: Tensor = layer.down(F.silu(layer.gate(n)) * layer.up(n))
    return x + more


def norm(layer: DecoderLayer, x: Tensor, visual: Tensor, text_gain: Tensor, visual_gain: Tensor) -> Tensor:
    """x [B, T, D] -> [B, T, D]: each row by its root mean square, times its modality's gain [D]."""

    def by(gain: Tensor) -> Rowwise:
        return lambda rows: rms_norm(rows, gain, gain, 0, layer.eps)

    return by_modality(x, visual, by(text_gain), by(visual_gain))


def by_modality(x: Tensor, visual: Tensor, for_text: Rowwise, for_visual: Rowwise) -> Tensor:
    """x [B, T, D] -> [B, T, D]: each modality's rows are found, picked, changed and put back."""
    out = torch.empty_like(x)
    for is_mine, work in ((~visual, for_text), (visual, for_visual)):
        places = is_mine.nonzero(as_tuple=True)
        out[places] = work(x[places])
    return out
