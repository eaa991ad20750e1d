"""Folded tensors in, `encode` and `decode` out: the model that artifacts hold, on any set of operations.

The arrays are torch tensors or numpy's, as the operations take them; this file imports neither.

It computes the same function as `Model`, arranged for engines. The normalization of pixels is inside the patch
embedding and the scale of attention inside q. One product serves all that reads the same rows, and features are
projected once for all layers of the abstractor. The dtype of a weight tells the precision of its linear: float32,
float16, bfloat16, float8_e4m3fn, int8, or uint8 for two 4-bit weights.

Letters: B batch, T vision tokens, D width, H heads, Dh head width, Q queries, L layers, N rows, K inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from qalign_fast.families.mplug_owl2.model.layout import Layout, turns_of
from qalign_fast.families.mplug_owl2.sizes import NORM_EPS, ModelConfig
from qalign_kernels.contract.operations import Activation, Operations
from qalign_kernels.contract.weight import Array, Weight


class FoldedModel:
    """The model on folded tensors. They may be mapped from a file or come block by block."""

    def __init__(self, config: ModelConfig, tensors: Mapping[str, Array], ops: Operations | None = None) -> None:
        """`tensors`: by the names of folded_schema.py. Each is read when it is used. `ops` None: plain torch."""
        if ops is None:
            from qalign_kernels.contract.ops import PLAIN

            ops = PLAIN
        self.config = config
        self.tensors = tensors
        self.ops: Operations = ops

    def encode(self, pixels: Array) -> Array:
        """uint8 [B, S, S, 3] -> visual tokens [B, Q+1, Dllm]."""
        batch = len(pixels)
        x = self.embed_patches(pixels)
        for i in range(self.config.vision.layers):
            x = self.vision_layer(i, x, batch)
        queries = None
        for i, (keys, values) in enumerate(self.project_features(x, batch)):
            queries = self.abstractor_layer(i, queries, keys, values)
        return self.visual_tokens(queries)

    def decode(self, tokens: Array, prefix: Array, suffix: Array, turns: Array | None = None) -> Array:
        """Visual tokens [B, V, D], prefix keys and values [L, 2, P, H, Dh], suffix [S, D] -> float32 logits [B, N].

        `turns`: the result of `self.turns`, if it was made before; it is the same for all tokens of one length.
        """
        batch, visual = tokens.shape[:2]
        turns = self.turns(visual, prefix, suffix) if turns is None else turns
        layout = Layout(batch, visual, turns)
        rows = layout.rows(tokens, suffix, self.ops)
        for i in range(self.config.decoder.layers):
            rows = self.decoder_layer(i, rows, layout, prefix[i])
        return self.logits(rows)

    def turns(self, visual: int, prefix: Array, suffix: Array) -> Array:
        """The rotary tables [2, V+S, Dh] of sequences with V = `visual` tokens between this prefix and suffix."""
        return self.ops.place(turns_of(self.config.decoder, prefix.shape[2], visual + len(suffix)), suffix)

    def linear(self, name: str, x: Array, activation: Activation = None, residual: Array | None = None) -> Array:
        """x [..., K] -> [..., N], by the linear of that name."""
        return self.ops.linear(x, self.weight(name), activation=activation, residual=residual)

    def weight(self, name: str) -> Weight:
        """The weight of a linear, with its scale, groups and bias where it has them."""
        parts = (self.tensors.get(f"{name}.{part}") for part in ("scale", "groups", "bias"))
        return Weight(name, self.tensors[f"{name}.weight"], *parts)

    def embed_patches(self, pixels: Array) -> Array:
        """uint8 [B, S, S, 3] -> rows [B*T, D]; the class token first of each picture."""
        weight = self.weight("vision.patch")
        patches = self.ops.linear(self.ops.patches_for(weight, pixels, self.config.vision.patch), weight)
        first = self.ops.repeat(self.tensors["vision.class_token"], len(pixels))  # [B, 1, D]
        x = self.ops.cat((first, patches + self.tensors["vision.patch_table"]), dim=1)  # [B, T, D]
        return self.norm("vision.pre_norm", x, self.config.vision.eps).reshape(-1, self.config.vision.width)

    def vision_layer(self, i: int, x: Array, batch: int) -> Array:
        """Rows [B*T, D] -> rows [B*T, D]."""
        name, vision = f"vision.layers.{i}.", self.config.vision
        qkv = self.normed_linear(f"{name}qkv", f"{name}attention_norm", x, vision.eps)
        q, k, v = _split(qkv.reshape(batch, -1, 3 * vision.width), 3)  # each [B, T, D]
        context = self.ops.attention(q, k, v, vision.heads).reshape(-1, vision.width)
        x = self.linear(f"{name}out", context, residual=x)
        n = self.normed_linear(f"{name}fc1", f"{name}mlp_norm", x, vision.eps, activation="quick_gelu")
        return self.linear(f"{name}fc2", n, residual=x)

    def project_features(self, x: Array, batch: int) -> Iterator[tuple[Array, Array]]:
        """Rows [B*T, D] after the vision layers -> keys and values [B, T, D] for one abstractor layer after another."""
        layers = self.config.abstractor.layers
        x = self.norm("vision.post_norm", x, self.config.vision.eps)
        kv = self.normed_linear("abstractor.features.kv", "abstractor.features.norm", x, NORM_EPS)
        kv = _split(kv.reshape(batch, -1, kv.shape[-1]), 2 * layers)
        for i in range(layers):  # one by one, because the keys of all are as large as the vision tower's largest rows
            yield kv[2 * i] + self.tensors[f"abstractor.layers.{i}.key_table"], kv[2 * i + 1]

    def abstractor_layer(self, i: int, x: Array | None, keys: Array, values: Array) -> Array:
        """Queries [B, Q, D], keys and values [B, T, D] of the features -> [B, Q, D]. Layer 0 has its own queries."""
        name, config = f"abstractor.layers.{i}.", self.config.abstractor
        if i == 0:
            x, q, k, v = (self.ops.repeat(self.tensors[f"{name}{part}"], len(keys)) for part in ("x", "q", "k", "v"))
            if len(keys) > 1:
                q = self.ops.cat([q[:1]] * len(keys))  # cuDNN's attention cannot run on a batch stride of 0
        else:
            x = self.norm(f"{name}query_norm", x, NORM_EPS)
            q, k, v = _split(self.linear(f"{name}qkv", x) + self.tensors[f"{name}qkv_table"], 3)
        k, v = self.ops.cat((k, keys), dim=1), self.ops.cat((v, values), dim=1)  # queries first, then features
        x = self.linear(f"{name}out", self.ops.attention(q, k, v, config.heads), residual=x)
        n = self.ops.swiglu(self.normed_linear(f"{name}gate_up", f"{name}mlp_norm", x, NORM_EPS))
        return self.normed_linear(f"{name}down", f"{name}inner_norm", n, config.eps, residual=x)

    def visual_tokens(self, x: Array) -> Array:
        """Queries [B, Q, D] -> visual tokens [B, Q+1, Dllm], the end token last."""
        end = self.ops.repeat(self.tensors["abstractor.end_token"], len(x))  # [B, 1, Dllm]
        return self.ops.cat((self.linear("abstractor.project", x), end), dim=1)

    def decoder_layer(self, i: int, rows: Array, layout: Layout, prefix: Array) -> Array:
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

    def queries_keys_values(self, name: str, normed: Array, split: int, asking: slice) -> tuple[Array, Array, Array]:
        """Normed rows [N, D] -> q of the `asking` rows, kv_visual [split, 2D] and kv_text [N - split, 2D]."""
        kv_visual = self.linear(f"{name}kv_visual", normed[:split])
        kv_text = self.linear(f"{name}kv_text", normed[split:])
        return self.linear(f"{name}q", normed[asking]), kv_visual, kv_text

    def logits(self, rows: Array) -> Array:
        """Last rows [B, D] -> float32 [B, N], N = `config.outputs`."""
        return self.linear("decoder.head", self.rms_norm(rows, "decoder.norm", "decoder.norm", 0))

    def normed_linear(
        self, name: str, norm: str, x: Array, eps: float, activation: Activation = None, residual: Array | None = None
    ) -> Array:
        """Layer norm of x, then the linear called `name`."""
        weight = self.weight(name)
        n = self.ops.layer_norm_for((weight,), x, *self.gain_and_bias(norm), eps)
        return self.ops.linear(n, weight, activation=activation, residual=residual)

    def modal_norm(self, name: str, rows: Array, split: int) -> Array:
        """Rows [N, D] -> the same, normed. The first `split` rows are visual; each modality has its own gain."""
        return self.rms_norm(rows, f"{name}_visual", f"{name}_text", split)

    def modal_norm_for(self, readers: Sequence[str], layer: str, norm: str, rows: Array, split: int) -> Array:
        """The same, if only the linears `readers` of a layer read the result, which may then be rounded to 8 bits."""
        visual, text = (self.tensors[f"{layer}{norm}_{modality}"] for modality in ("visual", "text"))
        weights = [self.weight(f"{layer}{reader}") for reader in readers]
        return self.ops.rms_norm_for(weights, rows, visual, text, split, self.config.decoder.eps)

    def rms_norm(self, rows: Array, visual: str, text: str, split: int) -> Array:
        """RMS norm of rows [N, D], with the gains of these names for the first `split` rows and for the others."""
        return self.ops.rms_norm(rows, self.tensors[visual], self.tensors[text], split, self.config.decoder.eps)

    def norm(self, name: str, x: Array, eps: float) -> Array:
        """Layer norm of x [..., D] with the gain and bias of that name."""
        return self.ops.layer_norm(x, *self.gain_and_bias(name), eps)

    def gain_and_bias(self, name: str) -> tuple[Array, Array]:
        """The gain [D] and bias [D] of a layer norm."""
        return self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]


def _split(x: Array, parts: int) -> list[Array]:
    """[..., parts * D] -> that many views [..., D]."""
    width = x.shape[-1] // parts
    return [x[..., i * width : (i + 1) * width] for i in range(parts)]
