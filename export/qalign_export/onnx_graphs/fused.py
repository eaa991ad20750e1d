"""The model's operations as onnxruntime's CUDA provider runs them fastest: in float16, fused where it has an operator.

Every operator here has a float16 kernel there (docs/OperatorKernels.md of onnxruntime), so that no part of a graph
falls back to a CPU. Inputs and outputs stay float32, as in every engine's graphs.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from qalign_export.onnx_graphs.model import ModelGraph
from qalign_fast.families.mplug_owl2.sizes import DecoderConfig

_SKIPPED = (1, 2)  # a fused norm's mean and variance


class FusedGraph(ModelGraph):
    """A graph for engine onnx-cuda; ModelGraph says what its methods do. Values are float16 between enter and leave."""

    def enter(self, x: str) -> str:
        return self.op("Cast", x, to=TensorProto.FLOAT16)

    def leave(self, x: str) -> str:
        return self.op("Cast", x, to=TensorProto.FLOAT)

    def weight(self, name: str) -> str:
        return self.array(name, self.tensors[name].astype(np.float16))

    def product(self, x: str, name: str, inputs: int) -> str:
        return self._product(x, f"{name}.weight", self.tensors[f"{name}.weight"])

    def linears(self, x: str, name: str, parts: int, inputs: int) -> list[str]:
        """A product for each part, because splitting one product would copy it."""
        weights = np.split(self.tensors[f"{name}.weight"], parts)
        products = [self._product(x, f"{name}.weight.{i}", weight) for i, weight in enumerate(weights)]
        if f"{name}.bias" not in self.tensors:
            return products
        biases = np.split(self.tensors[f"{name}.bias"].astype(np.float16), parts)
        return [
            self.op("Add", y, self.array(f"{name}.bias.{i}", bias))
            for i, (y, bias) in enumerate(zip(products, biases, strict=True))
        ]

    def _product(self, x: str, name: str, weight: np.ndarray) -> str:
        if weight.dtype == np.float16:
            return self._multiply(x, name, weight)
        return self.enter(self._multiply(self.leave(x), name, weight))  # its rows may leave float16's range

    def add_layer_norm(self, x: str, y: str, linear: str, inputs: int, norm: str, eps: float) -> tuple[str, str]:
        biases = [self.weight(f"{linear}.bias")] if f"{linear}.bias" in self.tensors else []
        gain, shift = self.weight(f"{norm}.weight"), self.weight(f"{norm}.bias")
        product = self.product(y, linear, inputs)
        normed, _, _, total = self.contribs(
            "SkipLayerNormalization", 4, product, x, gain, shift, *biases, unused=_SKIPPED, epsilon=eps
        )
        return total, normed

    def rms(self, x: str, eps: float) -> str:
        return self.enter(super().rms(self.leave(x), eps))

    def add_rms(self, x: str, y: str, eps: float) -> tuple[str, str]:
        ones = self.array("ones", np.ones_like(self.tensors["decoder.norm"], np.float16))
        normed, _, _, total = self.contribs(
            "SkipSimplifiedLayerNormalization", 4, y, x, ones, unused=_SKIPPED, epsilon=eps
        )
        return total, normed

    def quick_gelu(self, x: str) -> str:
        return self.contrib("QuickGelu", x, alpha=1.702)

    def silu(self, x: str) -> str:
        return self.contrib("QuickGelu", x, alpha=1.0)

    def rotate(self, x: str, cos: str, sin: str, heads: int) -> str:
        start = self.const([0])  # row 0 of the tables is the first token's
        return self.contrib("RotaryEmbedding", x, start, cos, sin, num_heads=heads)

    def attend(self, q: str, k: str, v: str, heads: int, mask: str = "") -> str:
        assert not mask  # an added mask's width would have to be a multiple of eight
        return self.contrib("MultiHeadAttention", q, k, v, num_heads=heads, scale=1.0)

    def before(self, prefix: str, config: DecoderConfig, batch: str) -> list[str]:
        """Each [B, H, P, Dh], as the operator takes them."""
        count, width = 2 * config.layers, config.width // config.heads
        by_head = self.op("Transpose", self.enter(prefix), perm=[0, 1, 3, 2, 4])
        by_head = self.op("Reshape", by_head, self.const([count, config.heads, -1, width]))
        parts = self.ops("Split", count, by_head, axis=0, num_outputs=count)
        return [self.repeat(part, batch, rank=4) for part in parts]

    def join(self, before: str, x: str) -> str:
        rows = self.op("Transpose", before, perm=[0, 2, 1, 3])
        return super().join(self.op("Reshape", rows, self.const([0, 0, -1])), x)

    def mask(self, positions: str, keys: str) -> str:
        return ""

    def attend_after(self, before: tuple[str, str], q: str, k: str, v: str, heads: int, mask: str) -> str:
        # outputs two and three, the keys and values of all tokens, must be named: the operator needs their memory
        return self.contribs(
            "MultiHeadAttention", 3, q, k, v, "", "", "", *before, num_heads=heads, scale=1.0, unidirectional=1
        )[0]
