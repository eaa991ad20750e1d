"""The model's two activations, in float32. A fast form agrees to 2e-6 of the result or to 1e-6, whichever is more."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def quick_gelu(x: Tensor) -> Tensor:
    """x · sigmoid(1.702 x), as CLIP has it."""
    return x * torch.sigmoid(1.702 * x)


def swiglu(gate_up: Tensor) -> Tensor:
    """[..., 2I] -> silu(gate) · up [..., I]; the gate is the first half (Shazeer, arXiv 2002.05202)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up
