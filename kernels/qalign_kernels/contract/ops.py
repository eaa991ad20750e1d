"""The operations an engine runs the model with, as one value: `PLAIN`, the contracts themselves in plain torch.

A faster set keeps the signatures, on tensors of its own device: `qalign_kernels.cpu.ops` on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from qalign_kernels.contract.activation import quick_gelu, swiglu
from qalign_kernels.contract.attention import attention, packed_attention
from qalign_kernels.contract.linear import Modal, Weight, linear, modal_linear
from qalign_kernels.contract.norm import layer_norm, rms_norm
from qalign_kernels.contract.patches import split_patches
from qalign_kernels.contract.quantized_rows import Rows

Activation = Literal["quick_gelu"] | None


class Ops:
    """Plain torch; what changes how a linear multiplies overrides `product`."""

    name = "plain torch"

    def linear(
        self, x: Tensor | Rows, w: Weight, *, activation: Activation = None, residual: Tensor | None = None
    ) -> Tensor:
        """residual + activation(x Wᵀ + b): x float32 [..., K], residual and result float32 [..., N].

        Rows come only from the set's own `..._for`.
        """
        assert isinstance(x, Tensor)
        y = self.product(x, w)
        if activation == "quick_gelu":
            y = quick_gelu(y)
        return y if residual is None else residual + y

    def product(self, x: Tensor, w: Weight) -> Tensor:
        return linear(x, w)

    swiglu = staticmethod(swiglu)
    layer_norm = staticmethod(layer_norm)
    rms_norm = staticmethod(rms_norm)
    attention = staticmethod(attention)
    packed_attention = staticmethod(packed_attention)

    def modal_linear(self, x: Tensor | Rows, w: Weight, modal: Modal) -> Tensor:
        """x [M, K] -> [M, N], by a weight of several linears."""
        assert isinstance(x, Tensor)
        return modal_linear(x, w, modal)

    def patches_for(self, w: Weight, pixels: Tensor, patch: int) -> Tensor | Rows:
        """uint8 [B, S, S, 3] -> rows [B, n, p*p*3] for that linear."""
        return split_patches(pixels, patch).float()

    # What all `readers` read and nothing else does: a set may hand them rows that are in 8 bits already.

    def layer_norm_for(
        self, readers: Sequence[Weight], x: Tensor, gain: Tensor, bias: Tensor, eps: float
    ) -> Tensor | Rows:
        return self.layer_norm(x, gain, bias, eps)

    def rms_norm_for(
        self, readers: Sequence[Weight], x: Tensor, visual_gain: Tensor, text_gain: Tensor, split: int, eps: float
    ) -> Tensor | Rows:
        return self.rms_norm(x, visual_gain, text_gain, split, eps)

    def swiglu_for(self, readers: Sequence[Weight], gate_up: Tensor) -> Tensor | Rows:
        return self.swiglu(gate_up)


PLAIN = Ops()
