"""The operations in plain torch, as one value: `PLAIN` is the contracts themselves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qalign_kernels.contract.activation import quick_gelu, swiglu
from qalign_kernels.contract.attention import attention, attention_by_modality
from qalign_kernels.contract.linear import linear, modal_linear
from qalign_kernels.contract.norm import layer_norm, rms_norm
from qalign_kernels.contract.operations import Activation, Operations
from qalign_kernels.contract.patches import split_patches
from qalign_kernels.contract.quantized_rows import QuantizedRows
from qalign_kernels.contract.weight import Modal, Weight


class Ops(Operations):
    """The operations in plain torch. A subclass that only multiplies in another way overrides `product`."""

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

    def cat(self, parts: Sequence[Tensor], dim: int = 0) -> Tensor:
        return torch.cat(tuple(parts), dim)

    def repeat(self, x: Tensor, batch: int) -> Tensor:
        return x.expand(batch, *x.shape)

    def place(self, values: npt.NDArray[np.float32], beside: Tensor) -> Tensor:
        return torch.from_numpy(values).to(beside.device)


PLAIN = Ops()
