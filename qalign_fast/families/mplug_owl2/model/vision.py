"""uint8 pixels [B, S, S, 3] in, features [B, T, D] out: a CLIP-like tower whose last norm keeps every token.

Letters: B batch, T tokens (the class token first), D width, H heads, Dh head width, S side, p patch side, n patches.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qalign_fast.families.mplug_owl2.sizes import VisionConfig
from qalign_fast.pixels.rule import SquareRule
from qalign_kernels.contract.activation import quick_gelu
from qalign_kernels.contract.patches import split_patches


class VisionEncoder(nn.Module):
    """The vision tower, with the normalization of pixels inside its patch embedding."""

    def __init__(self, config: VisionConfig, pixels: SquareRule) -> None:
        super().__init__()
        self.config, self.rule = config, pixels
        self.patch = nn.Parameter(torch.empty(config.width, 3, config.patch, config.patch))
        self.class_token = nn.Parameter(torch.empty(config.width))
        self.positions = nn.Parameter(torch.empty(config.tokens, config.width))
        self.pre_norm = nn.LayerNorm(config.width, config.eps)
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.layers))
        self.post_norm = nn.LayerNorm(config.width, config.eps)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels uint8 [B, S, S, 3] -> features [B, T, D]."""
        weight, bias = fold_normalization(self.patch, self.rule)
        patches = F.linear(split_patches(pixels, self.config.patch).to(weight.dtype), weight, bias)  # [B, n, D]
        first = self.class_token.expand(len(pixels), 1, -1)
        x = torch.cat((first, patches), dim=1) + self.positions  # [B, T, D]
        x = self.pre_norm(x)
        for layer in self.layers:
            x = layer(x)
        return self.post_norm(x)


class VisionLayer(nn.Module):
    """Attention and an MLP with quick GELU, each after a layer norm."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.attention_norm = nn.LayerNorm(config.width, config.eps)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        self.mlp_norm = nn.LayerNorm(config.width, config.eps)
        self.fc1 = nn.Linear(config.width, config.mlp)
        self.fc2 = nn.Linear(config.mlp, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.fc2(quick_gelu(self.fc1(self.mlp_norm(x))))

    def attention(self, x: Tensor) -> Tensor:
        """Normed rows [B, T, D] -> [B, T, D]."""
        qkv = self.qkv(x).unflatten(-1, (self.heads, 3, -1))  # [B, T, H, 3, Dh]: upstream's order, heads outermost
        q, k, v = qkv.permute(3, 0, 2, 1, 4)  # each [B, H, T, Dh]
        context = F.scaled_dot_product_attention(q, k, v)
        return self.out(context.transpose(1, 2).flatten(2))


def fold_normalization(patch: Tensor, rule: SquareRule) -> tuple[Tensor, Tensor]:
    """The patch embedding that takes raw 0..255 pixels: weight [D, p*p*3] and bias [D].

    w · ((x / 255 - mean) / std)  =  (w / (255 std)) · x  -  w · (mean / std)
    """
    mean = torch.tensor(rule.mean, dtype=patch.dtype, device=patch.device).view(3, 1, 1)
    std = torch.tensor(rule.std, dtype=patch.dtype, device=patch.device).view(3, 1, 1)
    weight = (patch / (255 * std)).permute(0, 2, 3, 1).flatten(1)  # channels last, as the pixels lie
    return weight, -(patch * (mean / std)).sum(dim=(1, 2, 3))
