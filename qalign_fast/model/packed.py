"""Packed tensors in, `encode` and `decode` out: the model as artifacts hold it, every constant folded, in plain torch.

The same function as `Model`, arranged as engines run it: normalization inside the patch embedding, attention's scale
inside q, one product for all that reads the same rows, the abstractor's features projected once for all its layers.
A linear is what the dtype of its weight says: float32, float16 or bfloat16, int8, or uint8 for two 4-bit weights.

Letters: B batch, T vision tokens, D width, H heads, Dh head width, Q queries, L layers, N rows, K inputs.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from qalign_fast.config import ModelConfig
from qalign_fast.model.abstractor import NORM_EPS
from qalign_fast.model.decoder import Pack, make_pack, rms_norm, rotate
from qalign_fast.model.vision import quick_gelu, split_patches
from qalign_kernels.linear import int4_linear, int8_linear


class PackedModel:
    """Runs from any mapping of names to tensors, so that they may be mapped from a file or come block by block."""

    def __init__(self, config: ModelConfig, tensors: Mapping[str, Tensor]) -> None:
        self.config = config
        self.tensors = tensors

    def encode(self, pixels: Tensor) -> Tensor:
        """uint8 [B, S, S, 3] -> visual tokens [B, Q+1, Dllm]."""
        batch = len(pixels)
        x = self.embed_patches(pixels)
        for i in range(self.config.vision.layers):
            x = self.vision_layer(i, x, batch)
        features = self.project_features(x, batch)
        x = x.new_empty(0)
        for i in range(self.config.abstractor.layers):
            x = self.abstractor_layer(i, x, *features[i])
        return self.visual_tokens(x)

    def decode(self, tokens: Tensor, prefix: Tensor, suffix: Tensor) -> Tensor:
        """Visual tokens [B, V, D], prefix keys and values [L, 2, P, H, Dh], suffix [S, D] -> logits [B, 5]."""
        batch, visual = tokens.shape[:2]
        pack = make_pack(self.config.decoder, batch, visual, len(suffix), prefix.shape[2], tokens.device)
        rows = pack.rows(tokens, suffix.expand(batch, -1, -1))
        for i in range(self.config.decoder.layers):
            rows = self.decoder_layer(i, rows, pack, prefix[i])
        return self.logits(rows)

    def linear(self, name: str, x: Tensor) -> Tensor:
        """x float32 [..., K] -> float32 [..., N], by the weight called name."""
        weight, bias = self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias")
        if weight.dtype == torch.int8:
            y = int8_linear(x.flatten(0, -2), weight, self.tensors[f"{name}.scale"], bias)
        elif weight.dtype == torch.uint8:
            scale, zero = self.tensors[f"{name}.scale"], self.tensors[f"{name}.zero"]
            y = int4_linear(x.flatten(0, -2), weight, scale, zero, 2 * weight.shape[2], bias)
        else:
            y = F.linear(x.to(weight.dtype), weight).float()
            return y if bias is None else y + bias
        return y.unflatten(0, x.shape[:-1])

    def embed_patches(self, pixels: Tensor) -> Tensor:
        """uint8 [B, S, S, 3] -> rows [B*T, D]; the class token first of each picture."""
        patches = self.linear("vision.patch", split_patches(pixels, self.config.vision.patch).float())
        first = self.tensors["vision.class_token"].expand(len(pixels), 1, -1)
        x = torch.cat((first, patches + self.tensors["vision.patch_table"]), dim=1)  # [B, T, D]
        return self.norm("vision.pre_norm", x, self.config.vision.eps).flatten(0, 1)

    def vision_layer(self, i: int, x: Tensor, batch: int) -> Tensor:
        """Rows [B*T, D] -> rows [B*T, D]."""
        name, vision = f"vision.layers.{i}.", self.config.vision
        qkv = self.linear(f"{name}qkv", self.norm(f"{name}attention_norm", x, vision.eps))
        q, k, v = qkv.unflatten(0, (batch, -1)).chunk(3, dim=-1)  # each [B, T, D]
        x = x + self.linear(f"{name}out", attend(q, k, v, vision.heads).flatten(0, 1))
        n = self.linear(f"{name}fc1", self.norm(f"{name}mlp_norm", x, vision.eps))
        return x + self.linear(f"{name}fc2", quick_gelu(n))

    def project_features(self, x: Tensor, batch: int) -> list[tuple[Tensor, Tensor]]:
        """Rows [B*T, D] after the vision layers -> each abstractor layer's keys and values [B, T, D] of them."""
        layers = self.config.abstractor.layers
        x = self.norm("vision.post_norm", x, self.config.vision.eps)
        x = self.norm("abstractor.features.norm", x, NORM_EPS)
        kv = self.linear("abstractor.features.kv", x).unflatten(0, (batch, -1)).chunk(2 * layers, dim=-1)
        return [(kv[2 * i] + self.tensors[f"abstractor.layers.{i}.key_table"], kv[2 * i + 1]) for i in range(layers)]

    def abstractor_layer(self, i: int, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Queries [B, Q, D] (layer 0 brings its own), keys and values [B, T, D] of the features -> [B, Q, D]."""
        name, config = f"abstractor.layers.{i}.", self.config.abstractor
        if i == 0:
            x, q, k, v = (self.tensors[f"{name}{part}"].expand(len(keys), -1, -1) for part in ("x", "q", "k", "v"))
        else:
            x = self.norm(f"{name}query_norm", x, NORM_EPS)
            q, k, v = (self.linear(f"{name}qkv", x) + self.tensors[f"{name}qkv_table"]).chunk(3, dim=-1)
        context = attend(q, torch.cat((k, keys), dim=1), torch.cat((v, values), dim=1), config.heads)
        x = x + self.linear(f"{name}out", context)
        gate, up = self.linear(f"{name}gate_up", self.norm(f"{name}mlp_norm", x, NORM_EPS)).chunk(2, dim=-1)
        return x + self.linear(f"{name}down", self.norm(f"{name}inner_norm", F.silu(gate) * up, config.eps))

    def visual_tokens(self, x: Tensor) -> Tensor:
        """Queries [B, Q, D] -> visual tokens [B, Q+1, Dllm], the end token last."""
        end = self.tensors["abstractor.end_token"].expand(len(x), 1, -1)
        return torch.cat((self.linear("abstractor.project", x), end), dim=1)

    def decoder_layer(self, i: int, rows: Tensor, pack: Pack, prefix: Tensor) -> Tensor:
        """Rows [N, D], prefix keys and values [2, P, H, Dh] -> rows [N, D]; the last layer gives last rows [B, D]."""
        name = f"decoder.layers.{i}."
        visual, text = self.modal_norms(f"{name}attention_norm", rows, pack)
        k, v = self.keys_values(i, visual, text, pack)
        k, v = (torch.cat((p.expand(len(x), -1, -1, -1), x), dim=1) for p, x in zip(prefix, (k, v), strict=True))
        if i == self.config.decoder.layers - 1:
            rows, visual, text = pack.last(rows), visual[:0], text.unflatten(0, (pack.batch, -1))[:, -1]
            pack = pack.last_only()
        q = self.heads(pack.sequence(self.linear(f"{name}q", torch.cat((visual, text)))))  # [B, T or 1, H, Dh]
        q, k, v = (x.transpose(1, 2) for x in (rotate(q, pack.cos, pack.sin), k, v))
        context = F.scaled_dot_product_attention(q, k, v, attn_mask=pack.mask, scale=1.0).transpose(1, 2).flatten(2)
        rows = rows + self.linear(f"{name}o", pack.unsequence(context))
        normed = torch.cat(self.modal_norms(f"{name}mlp_norm", rows, pack))
        gate, up = self.linear(f"{name}gate_up", normed).chunk(2, dim=-1)
        return rows + self.linear(f"{name}down", F.silu(gate) * up)

    def keys_values(self, i: int, visual: Tensor, text: Tensor, pack: Pack) -> tuple[Tensor, Tensor]:
        """Normed rows [B*V, D] and [B*S, D] -> keys (rotated) and values, each [B, T, H, Dh]."""
        parts = [
            self.linear(f"decoder.layers.{i}.kv_{modality}", rows).chunk(2, dim=-1)
            for modality, rows in (("visual", visual), ("text", text))
        ]
        k, v = (self.heads(pack.sequence(torch.cat(part))) for part in zip(*parts, strict=True))
        return rotate(k, pack.cos, pack.sin), v

    def logits(self, rows: Tensor) -> Tensor:
        """Last rows [B, D] -> float32 [B, 5]."""
        return self.linear("decoder.head", rms_norm(rows, self.tensors["decoder.norm"], self.config.decoder.eps))

    def modal_norms(self, name: str, rows: Tensor, pack: Pack) -> tuple[Tensor, Tensor]:
        """Visual and text rows, each normed with its modality's gain."""
        eps, split = self.config.decoder.eps, pack.split
        visual = rms_norm(rows[:split], self.tensors[f"{name}_visual"], eps)
        return visual, rms_norm(rows[split:], self.tensors[f"{name}_text"], eps)

    def norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"], eps)

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.config.decoder.heads, -1))


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """q [B, Tq, D], scaled already, k and v [B, T, D] -> context [B, Tq, D]."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=1.0).transpose(1, 2).flatten(2)
