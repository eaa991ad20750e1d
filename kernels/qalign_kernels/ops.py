"""The operations an engine runs the model with, as one value: `PLAIN`, the contracts themselves in plain torch.

A faster set keeps the signatures, on tensors of its own device: `qalign_kernels.native_ops` on a CPU.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from qalign_kernels.activation import quick_gelu, swiglu
from qalign_kernels.attention import attention, packed_attention
from qalign_kernels.linear import Weight, linear
from qalign_kernels.norm import layer_norm, rms_norm

Activation = Literal["quick_gelu"] | None


class Ops:
    """Plain torch; what changes how a linear multiplies overrides `product`."""

    name = "plain torch"

    def linear(self, x: Tensor, w: Weight, *, activation: Activation = None, residual: Tensor | None = None) -> Tensor:
        """residual + activation(x Wᵀ + b): x float32 [..., K], residual and result float32 [..., N]."""
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


PLAIN = Ops()
