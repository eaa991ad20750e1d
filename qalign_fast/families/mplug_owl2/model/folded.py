"""Folded tensors in, `encode` and `decode` out: the model that artifacts hold, on any set of operations.

It computes the same function as `Model`, arranged for engines. The normalization of pixels is inside the patch
embedding and the scale of attention inside q. One product serves all that reads the same rows, and features are
projected once for all layers of the abstractor. The dtype of a weight tells the precision of its linear: float32,
float16, bfloat16, float8_e4m3fn, int8, or uint8 for two 4-bit weights.

Letters: B batch, T vision tokens, D width, H heads, Dh head width, Q queries, L layers, N rows, K inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from qalign_fast.families.mplug_owl2.model.abstractor import NORM_EPS
from qalign_fast.families.mplug_owl2.model.layout import Layout, turns_of
from qalign_fast.families.mplug_owl2.sizes import ModelConfig
from qalign_kernels.contract.attention import rotate
from qalign_kernels.contract.linear import Weight
from qalign_kernels.contract.ops import PLAIN, Activation, Ops
from qalign_kernels.contract.quantized_rows import QuantizedRows


class FoldedModel:
    """The model on folded tensors. They may be mapped from a file or come block by block."""

    def __init__(self, config: ModelConfig, tensors: Mapping[str, Tensor], ops: Ops = PLAIN) -> None:
        """`tensors`: by the names of folded_schema.py. Each is read when it is used."""
        self.config = config
        self.tensors = tensors
        self.ops = ops

    def encode(self, pixels: Tensor) -> Tensor:
        """uint8 [B, S, S, 3] -> visual tokens [B, Q+1, Dllm]."""
        batch = len(pixels)
        x = self.embed_patches(pixels)
        for i in range(self.config.vision.layers):
            x = self.vision_layer(i, x, batch)
        queries = x.new_empty(0)
        for i, (keys, values) in enumerate(self.project_features(x, batch)):
            queries = self.abstractor_layer(i, queries, keys, values)
        return self.visual_tokens(queries)

    def decode(self, tokens: Tensor, prefix: Tensor, suffix: Tensor, turns: Tensor | None = None) -> Tensor:
        """Visual tokens [B, V, D], prefix keys and values [L, 2, P, H, Dh], suffix [S, D] -> float32 logits [B, 5].

        `turns`: the result of `self.turns`, if it was made before; it is the same for all tokens of one length.
        """
        batch, visual = tokens.shape[:2]
        turns = self.turns(visual, prefix, suffix) if turns is None else turns
        layout = Layout(batch, visual, turns)
        rows = layout.rows(tokens, suffix)
        for i in range(self.config.decoder.layers):
            rows = self.decoder_layer(i, rows, layout, prefix[i])
        return self.logits(rows)

    def turns(self, visual: int, prefix: Tensor, suffix: Tensor) -> Tensor:
        """The rotary tables [2, V+S, Dh] of sequences with V = `visual` tokens between this prefix and suffix."""
        return turns_of(self.config.decoder, prefix.shape[2], visual + len(suffix), suffix.device)

    def linear(
        self, name: str, x: Tensor | QuantizedRows, activation: Activation = None, residual: Tensor | None = None
    ) -> Tensor:
        """x [..., K] -> [..., N], by the linear of that name."""
        return self.ops.linear(x, self.weight(name), activation=activation, residual=residual)

    def weight(self, name: str) -> Weight:
        """The weight of a linear, with its scale, groups and bias where it has them."""
        parts = (self.tensors.get(f"{name}.{part}") for part in ("scale", "groups", "bias"))
        return Weight(name, self.tensors[f"{name}.weight"], *parts)

    def embed_patches(self, pixels: Tensor) -> Tensor:
        """uint8 [B, S, S, 3] -> rows [B*T, D]; the class token first of each picture."""
        weight = self.weight("vision.patch")
        patches = self.ops.linear(self.ops.patches_for(weight, pixels, self.config.vision.patch), weight)
        first = self.tensors["vision.class_token"].expand(len(pixels), 1, -1)
        x = torch.cat((first, patches + self.tensors["vision.patch_table"]), dim=1)  # [B, T, D]
        return self.norm("vision.pre_norm", x, self.config.vision.eps).flatten(0, 1)

    def vision_layer(self, i: int, x: Tensor, batch: int) -> Tensor:
        """Rows [B*T, D] -> rows [B*T, D]."""
        name, vision = f"vision.layers.{i}.", self.config.vision
        qkv = self.normed_linear(f"{name}qkv", f"{name}attention_norm", x, vision.eps)
        q, k, v = qkv.unflatten(0, (batch, -1)).chunk(3, dim=-1)  # each [B, T, D]
        x = self.linear(f"{name}out", self.ops.attention(q, k, v, vision.heads).flatten(0, 1), residual=x)
        n = self.normed_linear(f"{name}fc1", f"{name}mlp_norm", x, vision.eps, activation="quick_gelu")
        return self.linear(f"{name}fc2", n, residual=x)

    def project_features(self, x: Tensor, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows [B*T, D] after the vision layers -> keys and values [B, T, D] for one abstractor layer after another."""
        layers = self.config.abstractor.layers
        x = self.norm("vision.post_norm", x, self.config.vision.eps)
        kv = self.normed_linear("abstractor.features.kv", "abstractor.features.norm", x, NORM_EPS)
        kv = kv.unflatten(0, (batch, -1)).chunk(2 * layers, dim=-1)
        for i in range(layers):  # one by one, because the keys of all are as large as the vision tower's largest rows
            yield kv[2 * i] + self.tensors[f"abstractor.layers.{i}.key_table"], kv[2 * i + 1]

    def abstractor_layer(self, i: int, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Queries [B, Q, D] (layer 0 has its own), keys and values [B, T, D] of the features -> [B, Q, D]."""
        name, config = f"abstractor.layers.{i}.", self.config.abstractor
        if i == 0:
            x, q, k, v = (self.tensors[f"{name}{part}"].expand(len(keys), -1, -1) for part in ("x", "q", "k", "v"))
            q = q.contiguous()  # cuDNN's attention cannot run on a batch stride of 0
        else:
            x = self.norm(f"{name}query_norm", x, NORM_EPS)
            q, k, v = (self.linear(f"{name}qkv", x) + self.tensors[f"{name}qkv_table"]).chunk(3, dim=-1)
        k, v = torch.cat((k, keys), dim=1), torch.cat((v, values), dim=1)  # queries first, then features
        x = self.linear(f"{name}out", self.ops.attention(q, k, v, config.heads), residual=x)
        n = self.ops.swiglu(self.normed_linear(f"{name}gate_up", f"{name}mlp_norm", x, NORM_EPS))
        return self.normed_linear(f"{name}down", f"{name}inner_norm", n, config.eps, residual=x)

    def visual_tokens(self, x: Tensor) -> Tensor:
        """Queries [B, Q, D] -> visual tokens [B, Q+1, Dllm], the end token last."""
        end = self.tensors["abstractor.end_token"].expand(len(x), 1, -1)
        return torch.cat((self.linear("abstractor.project", x), end), dim=1)

    def decoder_layer(self, i: int, rows: Tensor, layout: Layout, prefix: Tensor) -> Tensor:
        """Rows [N, D], prefix keys and values [2, P, H, Dh] -> rows [N, D]. The last layer returns last rows [B, D]."""
        name, split = f"decoder.layers.{i}.", layout.split
        normed = self.modal_norm_for(("kv_visual", "kv_text", "q"), name, "attention_norm", rows, split)
        asking = slice(None)
        if i == self.config.decoder.layers - 1:
            asking = layout.last(len(rows))
            rows = rows[asking]
        q, kv_visual, kv_text = self.queries_keys_values(name, normed, split, asking)
        if asking != slice(None):
            split = 0
        context = self.ops.attention_by_modality(q, kv_visual, kv_text, prefix, layout.turns, layout.batch)
        rows = self.linear(f"{name}o", context, residual=rows)
        gate_up = self.linear(f"{name}gate_up", self.modal_norm_for(("gate_up",), name, "mlp_norm", rows, split))
        n = self.ops.swiglu_for((self.weight(f"{name}down"),), gate_up)
        return self.linear(f"{name}down", n, residual=rows)

    def queries_keys_values(
        self, name: str, normed: Tensor | QuantizedRows, split: int, asking: slice
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Normed rows [N, D] -> q of the `asking` rows, kv_visual [split, 2D] and kv_text [N - split, 2D]."""
        kv_visual = self.linear(f"{name}kv_visual", normed[:split])
        kv_text = self.linear(f"{name}kv_text", normed[split:])
        return self.linear(f"{name}q", normed[asking]), kv_visual, kv_text

    def prefix_keys_values(self, i: int, rows: Tensor, layout: Layout) -> Tensor:
        """The text rows [P, D] of one prefix before layer i -> its keys (rotated) and values [2, P, H, Dh]."""
        name = f"decoder.layers.{i}."
        kv = self.linear(f"{name}kv_text", self.modal_norm(f"{name}attention_norm", rows, 0))
        k, v = kv.unflatten(-1, (2, self.config.decoder.heads, -1)).unbind(1)
        return torch.stack((rotate(k.unsqueeze(0), layout.turns)[0], v))

    def logits(self, rows: Tensor) -> Tensor:
        """Last rows [B, D] -> float32 [B, 5]."""
        return self.linear("decoder.head", self.rms_norm(rows, "decoder.norm", "decoder.norm", 0))

    def normed_linear(
        self, name: str, norm: str, x: Tensor, eps: float, activation: Activation = None, residual: Tensor | None = None
    ) -> Tensor:
        """Layer norm of x, then the linear called `name`."""
        weight = self.weight(name)
        n = self.ops.layer_norm_for((weight,), x, *self.gain_and_bias(norm), eps)
        return self.ops.linear(n, weight, activation=activation, residual=residual)

    def modal_norm(self, name: str, rows: Tensor, split: int) -> Tensor:
        """Rows [N, D] -> the same, normed. The first `split` rows are visual; each modality has its own gain."""
        return self.rms_norm(rows, f"{name}_visual", f"{name}_text", split)

    def modal_norm_for(
        self, readers: Sequence[str], layer: str, norm: str, rows: Tensor, split: int
    ) -> Tensor | QuantizedRows:
        """The same, if only the linears `readers` of a layer read the result, which may then be rounded to 8 bits."""
        visual, text = (self.tensors[f"{layer}{norm}_{modality}"] for modality in ("visual", "text"))
        weights = [self.weight(f"{layer}{reader}") for reader in readers]
        return self.ops.rms_norm_for(weights, rows, visual, text, split, self.config.decoder.eps)

    def rms_norm(self, rows: Tensor, visual: str, text: str, split: int) -> Tensor:
        """RMS norm of rows [N, D], with the gains of these names for the first `split` rows and for the others."""
        return self.ops.rms_norm(rows, self.tensors[visual], self.tensors[text], split, self.config.decoder.eps)

    def norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        """Layer norm of x [..., D] with the gain and bias of that name."""
        return self.ops.layer_norm(x, *self.gain_and_bias(name), eps)

    def gain_and_bias(self, name: str) -> tuple[Tensor, Tensor]:
        """The gain [D] and bias [D] of a layer norm."""
        return self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
