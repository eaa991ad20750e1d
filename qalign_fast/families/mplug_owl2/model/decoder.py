"""Visual tokens [B, V, D] in, five logits [B, 5] out: one step of a LLaMA with keys, values and norms per modality.

The text before the picture never changes: `prefix` computes its keys and values once, `forward` runs what follows.
All visual rows of a batch lie first, then all text rows, so everything the modalities share is one product over all
rows and what they do not share is two products over two slices.

Letters: B batch, V visual tokens, S suffix tokens, P prefix tokens, T = V + S, N = B*T rows, D width, H heads, Dh head
width, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qalign_fast.families.mplug_owl2.sizes import DecoderConfig
from qalign_fast.levels import LEVELS


class Decoder(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Parameter(torch.empty(config.vocab, config.width))
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.layers))
        self.norm = nn.Parameter(torch.empty(config.width))
        self.head = nn.Parameter(torch.empty(len(LEVELS), config.width))  # the level tokens' rows, excellent first

    def forward(self, tokens: Tensor, prefix: Tensor, suffix: Tensor) -> Tensor:
        """tokens [B, V, D], prefix keys and values [L, 2, P, H, Dh], suffix embeddings [S, D] -> float32 [B, 5]."""
        return self.logits(self.last_rows(tokens, prefix, suffix)[-1])

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(rms_norm(hidden, self.norm, self.config.eps), self.head).float()

    def last_rows(self, tokens: Tensor, prefix: Tensor, suffix: Tensor) -> list[Tensor]:
        """The last row of every sequence before layer 0, between layers and after the last: L + 1 of [B, D]."""
        batch, visual = tokens.shape[:2]
        pack = make_pack(self.config, batch, visual, len(suffix), len(prefix[0, 0]), tokens.device)
        rows = pack.rows(tokens, suffix.to(tokens.dtype).expand(batch, -1, -1))  # [N, D]
        last = [pack.last(rows)]
        for i, layer in enumerate(self.layers):
            k, v = layer.keys_values(rows, pack)
            k, v = (torch.cat((p.expand(batch, -1, -1, -1), x), dim=1) for p, x in zip(prefix[i], (k, v), strict=True))
            rows = layer(rows, k, v, pack, last_only=i == len(self.layers) - 1)
            last.append(pack.last(rows))
        return last

    def prefix(self, ids: Sequence[int]) -> Tensor:
        """The constant part: keys (rotated) and values [L, 2, P, H, Dh] of the tokens before the picture."""
        pack = make_pack(self.config, 1, 0, len(ids), 0, self.embed.device)
        rows = self.suffix(ids)
        constant = []
        for layer in self.layers:
            k, v = layer.keys_values(rows, pack)
            constant.append(torch.cat((k, v)))  # [2, P, H, Dh]
            rows = layer(rows, k, v, pack)
        return torch.stack(constant)

    def suffix(self, ids: Sequence[int]) -> Tensor:
        """The embeddings [S, D] of text tokens, in the norms' type; the vocabulary's may be kept in a smaller one."""
        return self.embed[list(ids)].to(self.norm.dtype)


def make_pack(config: DecoderConfig, batch: int, visual: int, text: int, start: int, device: torch.device) -> Pack:
    """How `batch` sequences of that many visual and text tokens lie, their positions counted from `start`."""
    head_width = config.width // config.heads
    frequency = config.rope_theta ** (-torch.arange(0, head_width, 2, device=device).float() / head_width)
    positions = torch.arange(start, start + visual + text, device=device).float()
    angle = positions.outer(frequency).repeat(1, 2).unsqueeze(1)  # [T, 1, Dh]: both halves turn alike
    key = torch.arange(start + visual + text, device=device)
    mask = key <= positions.unsqueeze(1)  # [T, P+T], causal over everything, the picture included
    return Pack(batch, visual, angle.cos(), angle.sin(), mask)


class Pack(NamedTuple):
    """How B sequences of V visual and S text tokens lie as rows: [B*V] visual, then [B*S] text."""

    batch: int
    visual: int
    cos: Tensor  # [T, 1, Dh]
    sin: Tensor
    mask: Tensor  # [T, P+T]

    @property
    def split(self) -> int:
        """The first text row."""
        return self.batch * self.visual

    def rows(self, visual: Tensor, text: Tensor) -> Tensor:
        """[B, V, ...] and [B, S, ...] -> [N, ...]."""
        return torch.cat((visual.flatten(0, 1), text.flatten(0, 1)))

    def sequence(self, rows: Tensor) -> Tensor:
        """[N, ...] -> [B, T, ...]."""
        visual = rows[: self.split].unflatten(0, (self.batch, self.visual))
        text = rows[self.split :].unflatten(0, (self.batch, -1))
        return torch.cat((visual, text), dim=1)

    def unsequence(self, x: Tensor) -> Tensor:
        """[B, T, ...] -> [N, ...]."""
        return self.rows(x[:, : self.visual], x[:, self.visual :])

    def last(self, rows: Tensor) -> Tensor:
        """The last row of each sequence, [B, D]; of rows that are only those already, all."""
        return rows if len(rows) == self.batch else rows[self.split :].unflatten(0, (self.batch, -1))[:, -1]

    def last_only(self) -> Pack:
        """How the last rows alone lie."""
        return Pack(self.batch, 0, self.cos[-1:], self.sin[-1:], self.mask[-1:])


class DecoderLayer(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        width, mlp = config.width, config.mlp
        self.heads, self.eps = config.heads, config.eps
        self.attention_norm_text = nn.Parameter(torch.empty(width))
        self.attention_norm_visual = nn.Parameter(torch.empty(width))
        self.q = nn.Linear(width, width, bias=False)
        self.k_text = nn.Linear(width, width, bias=False)
        self.k_visual = nn.Linear(width, width, bias=False)
        self.v_text = nn.Linear(width, width, bias=False)
        self.v_visual = nn.Linear(width, width, bias=False)
        self.o = nn.Linear(width, width, bias=False)
        self.mlp_norm_text = nn.Parameter(torch.empty(width))
        self.mlp_norm_visual = nn.Parameter(torch.empty(width))
        self.gate = nn.Linear(width, mlp, bias=False)
        self.up = nn.Linear(width, mlp, bias=False)
        self.down = nn.Linear(mlp, width, bias=False)

    def keys_values(self, rows: Tensor, pack: Pack) -> tuple[Tensor, Tensor]:
        """Keys (rotated) and values of every row, each [B, T, H, Dh]."""
        visual = rms_norm(rows[: pack.split], self.attention_norm_visual, self.eps)
        text = rms_norm(rows[pack.split :], self.attention_norm_text, self.eps)
        k = pack.sequence(torch.cat((self.k_visual(visual), self.k_text(text))))
        v = pack.sequence(torch.cat((self.v_visual(visual), self.v_text(text))))
        return rotate(self.split_heads(k), pack.cos, pack.sin), self.split_heads(v)

    def forward(self, rows: Tensor, k: Tensor, v: Tensor, pack: Pack, last_only: bool = False) -> Tensor:
        """rows [N, D], keys and values [B, P+T, H, Dh] -> rows [N, D]; with last_only each sequence's last [B, D]."""
        if last_only:
            rows, pack = pack.last(rows), pack.last_only()
        normed = self.norm(rows, self.attention_norm_visual, self.attention_norm_text, pack.split)
        q = self.split_heads(pack.sequence(self.q(normed)))  # [B, T or 1, H, Dh]
        q, k, v = (x.transpose(1, 2) for x in (rotate(q, pack.cos, pack.sin), k, v))
        context = F.scaled_dot_product_attention(q, k.to(q.dtype), v.to(q.dtype), attn_mask=pack.mask)
        rows = rows + self.o(pack.unsequence(context.transpose(1, 2).flatten(2)))
        normed = self.norm(rows, self.mlp_norm_visual, self.mlp_norm_text, pack.split)
        return rows + self.down(F.silu(self.gate(normed)) * self.up(normed))

    def norm(self, rows: Tensor, visual: Tensor, text: Tensor, split: int) -> Tensor:
        return torch.cat((rms_norm(rows[:split], visual, self.eps), rms_norm(rows[split:], text, self.eps)))

    def split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) · gain, in float32."""
    y = x.float()
    return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * gain


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions in the half-split form: x [B, T, H, Dh], cos and sin [T, 1, Dh]."""
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin
