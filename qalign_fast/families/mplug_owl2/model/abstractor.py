"""Vision features [B, T, D] in, visual tokens [B, Q+1, Dllm] out: learned queries that read the picture.

Letters: B batch, T vision tokens, D width, H heads, Dh head width, Q queries.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qalign_fast.families.mplug_owl2.sizes import NORM_EPS, AbstractorConfig


class Abstractor(nn.Module):
    """Learned queries read the features in every layer, then become visual tokens.

    Source: upstream's q_align/model/visual_encoder.py.
    """

    def __init__(self, config: AbstractorConfig, feature_tokens: int, decoder_width: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(config.queries, config.width))
        self.layers = nn.ModuleList(AbstractorLayer(config, feature_tokens) for _ in range(config.layers))
        self.project = nn.Linear(config.width, decoder_width)
        self.end_token = nn.Parameter(torch.empty(decoder_width))

    def forward(self, features: Tensor) -> Tensor:
        """Vision features [B, T, D] -> visual tokens [B, Q+1, Dllm], the end token last."""
        batch = len(features)
        x = self.queries.expand(batch, -1, -1)  # [B, Q, D]
        for layer in self.layers:
            x = layer(x, features)
        tokens = self.project(x)  # [B, Q, Dllm]
        return torch.cat((tokens, self.end_token.to(tokens.dtype).expand(batch, 1, -1)), dim=1)


class AbstractorLayer(nn.Module):
    """Attention of the queries to queries and features together, then a gated MLP with a norm inside."""

    query_positions: Tensor
    key_positions: Tensor

    def __init__(self, config: AbstractorConfig, feature_tokens: int) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.query_norm = nn.LayerNorm(width, NORM_EPS)
        self.feature_norm = nn.LayerNorm(width, NORM_EPS)
        self.register_buffer("query_positions", torch.empty(config.queries, width))
        self.register_buffer("key_positions", torch.empty(feature_tokens, width))
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width, NORM_EPS)
        self.gate = nn.Linear(width, config.mlp)
        self.up = nn.Linear(width, config.mlp)
        self.inner_norm = nn.LayerNorm(config.mlp, config.eps)
        self.down = nn.Linear(config.mlp, width)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        """Queries [B, Q, D] and features [B, T, D] -> queries [B, Q, D]."""
        x = self.query_norm(x)
        x = x + self.attention(x, self.feature_norm(features))  # the residual adds onto the normed queries
        n = self.mlp_norm(x)
        return x + self.down(self.inner_norm(F.silu(self.gate(n)) * self.up(n)))

    def attention(self, x: Tensor, features: Tensor) -> Tensor:
        """Normed queries and features -> [B, Q, D]."""
        both = torch.cat((x, features), dim=1)  # [B, Q+T, D]
        q = self.split_heads(self.q(x + self.query_positions))
        k = self.split_heads(self.k(both + torch.cat((self.query_positions, self.key_positions))))
        v = self.split_heads(self.v(both))
        context = F.scaled_dot_product_attention(q, k, v)  # [B, H, Q, Dh]
        return self.out(context.transpose(1, 2).flatten(2))

    def split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, H, *, Dh]
