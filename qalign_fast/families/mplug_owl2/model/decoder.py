"""Visual tokens [B, V, D] in, five logits [B, 5] out: one step of a LLaMA with keys, values and norms per modality.

The text before the picture never changes, so `prefix` computes its keys and values once, and `forward` runs what
follows. Rows lie by modality, as `layout.py` says. Norms and rotation are the kernels' contracts, so that the reference
and the fast forms share one definition.

Letters: B batch, V visual tokens, S suffix tokens, P prefix tokens, T = V + S, N = B*T rows, D width, H heads, Dh head
width, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qalign_fast.families.mplug_owl2.model.layout import Layout, turns_of
from qalign_fast.families.mplug_owl2.sizes import DecoderConfig
from qalign_fast.levels import LEVELS
from qalign_kernels.contract.attention import rotate, sequence
from qalign_kernels.contract.norm import rms_norm
from qalign_kernels.contract.ops import PLAIN


class Decoder(nn.Module):
    """The language model: everything after the visual tokens. Source: upstream's q_align/model/modeling_llama2.py."""

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
        """Last rows [B, D] -> float32 [B, 5]; float64 of a model in float64."""
        logits = F.linear(self.normed(hidden), self.head)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def normed(self, hidden: Tensor) -> Tensor:
        """Last rows [B, D] -> the same after the final norm."""
        return rms_norm(hidden, self.norm, self.norm, 0, self.config.eps)

    def last_rows(self, tokens: Tensor, prefix: Tensor, suffix: Tensor) -> list[Tensor]:
        """The last row of every sequence, before layer 0 and after each layer: L + 1 tensors [B, D]."""
        batch, visual = tokens.shape[:2]
        turns = turns_of(self.config, len(prefix[0, 0]), visual + len(suffix))
        layout = Layout(batch, visual, PLAIN.place(turns, tokens))
        rows = layout.rows(tokens, suffix.to(tokens.dtype), PLAIN)  # [N, D]
        last = [rows[layout.last(len(rows))]]
        for i, layer in enumerate(self.layers):
            k, v = layer.keys_values(rows, layout)
            k, v = (torch.cat((p.expand(batch, -1, -1, -1), x), dim=1) for p, x in zip(prefix[i], (k, v), strict=True))
            final = i == len(self.layers) - 1
            rows = layer(rows, k, v, layout, last_only=final)
            last.append(rows if final else rows[layout.last(len(rows))])
        return last

    def prefix(self, ids: Sequence[int]) -> Tensor:
        """Keys (rotated) and values [L, 2, P, H, Dh] of the tokens before the picture, which are constant."""
        config, text = self.config, self.suffix(ids)
        nothing = text.new_empty(config.layers, 2, 0, config.heads, config.width // config.heads)
        return self.extend(nothing, text.new_empty(1, 0, config.width), text)

    def extend(self, before: Tensor, tokens: Tensor, text: Tensor) -> Tensor:
        """Keys and values [L, 2, P, H, Dh], then those of visual tokens [1, V, D] and of text rows [S, D] after them.

        Returns all of them, [L, 2, P+V+S, H, Dh].
        """
        visual = tokens.shape[1]
        turns = turns_of(self.config, before.shape[2], visual + len(text))
        layout = Layout(1, visual, PLAIN.place(turns, text))
        rows = layout.rows(tokens.to(text.dtype), text, PLAIN)
        constant = []
        for i, layer in enumerate(self.layers):
            new = torch.cat(layer.keys_values(rows, layout))  # [2, V+S, H, Dh]
            constant.append(torch.cat((before[i], new), dim=1))
            rows = layer(rows, *constant[-1].split(1), layout)
        return torch.stack(constant)

    def suffix(self, ids: Sequence[int]) -> Tensor:
        """The embeddings [S, D] of text tokens, in the norms' dtype. The vocabulary may be kept in a smaller dtype."""
        return self.embed[list(ids)].to(self.norm.dtype)


class DecoderLayer(nn.Module):
    """Attention and a gated MLP. Norms, keys and values have one weight for each modality."""

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

    def keys_values(self, rows: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Keys (rotated) and values of every row, each [B, T, H, Dh]."""
        n = rms_norm(rows, self.attention_norm_visual, self.attention_norm_text, layout.split, self.eps)
        visual, text = n[: layout.split], n[layout.split :]
        k = sequence(self.k_visual(visual), self.k_text(text), layout.batch)
        v = sequence(self.v_visual(visual), self.v_text(text), layout.batch)
        return rotate(self.split_heads(k), layout.turns), self.split_heads(v)

    def forward(self, rows: Tensor, k: Tensor, v: Tensor, layout: Layout, last_only: bool = False) -> Tensor:
        """rows [N, D], keys and values [B, P+T, H, Dh] -> rows [N, D]; with last_only the last of each [B, D]."""
        if last_only:
            rows, layout = rows[layout.last(len(rows))], Layout(layout.batch, 0, layout.turns[:, -1:])
        split = layout.split
        n = self.q(rms_norm(rows, self.attention_norm_visual, self.attention_norm_text, split, self.eps))
        q = rotate(self.split_heads(sequence(n[:split], n[split:], layout.batch)), layout.turns)  # [B, T or 1, H, Dh]
        places = torch.arange(k.shape[1], device=rows.device)
        seen = places <= places[-q.shape[1] :].unsqueeze(1)  # [T or 1, P+T]: causal, for visual tokens too
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        context = F.scaled_dot_product_attention(q, k.to(q.dtype), v.to(q.dtype), attn_mask=seen)
        context = context.transpose(1, 2).flatten(2)  # [B, T or 1, D]
        visual, text = context[:, : layout.visual], context[:, layout.visual :]
        rows = rows + self.o(torch.cat((visual.flatten(0, 1), text.flatten(0, 1))))
        n = rms_norm(rows, self.mlp_norm_visual, self.mlp_norm_text, split, self.eps)
        return rows + self.down(F.silu(self.gate(n)) * self.up(n))

    def split_heads(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, H, Dh]."""
        return x.unflatten(-1, (self.heads, -1))
