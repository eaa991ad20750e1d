"""The operations that an engine runs the model with, as one value. `PLAIN` is the contracts themselves, in plain torch.

Faster sets keep the signatures, on tensors of their own device: `qalign_kernels.cpu.ops` and `qalign_kernels.cuda.ops`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from qalign_kernels.contract.activation import quick_gelu, swiglu
from qalign_kernels.contract.attention import attention, attention_by_modality
from qalign_kernels.contract.linear import Modal, Weight, linear, modal_linear
from qalign_kernels.contract.norm import layer_norm, rms_norm
from qalign_kernels.contract.patches import split_patches
from qalign_kernels.contract.quantized_rows import QuantizedRows

Activation = Literal["quick_gelu"] | None


class Ops:
    """The operations in plain torch. A subclass that only multiplies in another way overrides `product`.

    The operations called `..._for` make rows that only the linears `readers` read. A set may return them in 8 bits
    already, as `QuantizedRows`; its own `linear` and `modal_linear` then take these. Plain torch never does.
    """

    name = "plain torch"

    def linear(
        self, x: Tensor | QuantizedRows, w: Weight, *, activation: Activation = None, residual: Tensor | None = None
    ) -> Tensor:
        """residual + activation(x Wᵀ + b): x float32 [..., K], residual and result float32 [..., N]."""
        assert isinstance(x, Tensor)
        y = self.product(x, w)
        if activation == "quick_gelu":
            y = quick_gelu(y)
        return y if residual is None else residual + y

    def product(self, x: Tensor, w: Weight) -> Tensor:
        """x Wᵀ + b: float32 [..., K] -> float32 [..., N]."""
        return linear(x, w)

    swiglu = staticmethod(swiglu)
    layer_norm = staticmethod(layer_norm)
    rms_norm = staticmethod(rms_norm)
    attention = staticmethod(attention)
    attention_by_modality = staticmethod(attention_by_modality)

    def modal_linear(self, x: Tensor | QuantizedRows, w: Weight, modal: Modal) -> Tensor:
        """x float32 [M, K] -> float32 [M, N], by a weight of three linears."""
        assert isinstance(x, Tensor)
        return modal_linear(x, w, modal)

    def patches_for(self, w: Weight, pixels: Tensor, patch: int) -> Tensor | QuantizedRows:
        """uint8 [B, S, S, 3] -> rows [B, n, p*p*3] that the linear w reads."""
        return split_patches(pixels, patch).float()

    def layer_norm_for(
        self, readers: Sequence[Weight], x: Tensor, gain: Tensor, bias: Tensor, eps: float
    ) -> Tensor | QuantizedRows:
        return self.layer_norm(x, gain, bias, eps)

    def rms_norm_for(
        self, readers: Sequence[Weight], x: Tensor, visual_gain: Tensor, text_gain: Tensor, split: int, eps: float
    ) -> Tensor | QuantizedRows:
        return self.rms_norm(x, visual_gain, text_gain, split, eps)

    def swiglu_for(self, readers: Sequence[Weight], gate_up: Tensor) -> Tensor | QuantizedRows:
        return self.swiglu(gate_up)


PLAIN = Ops()
