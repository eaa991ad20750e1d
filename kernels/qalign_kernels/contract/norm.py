"""Rows in, normed rows out, in float32.

    layer_norm   (x - mean) / sqrt(var + eps) · gain + bias          var over the row, divided by its width
    rms_norm     x / sqrt(mean(x²) + eps) · gain                      a gain for visual rows, one for text rows

A fast form agrees to 2e-6 of the row's largest value: its sums run in another order.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def layer_norm(x: Tensor, gain: Tensor, bias: Tensor, eps: float) -> Tensor:
    """x [..., D] -> the same shape."""
    return F.layer_norm(x, x.shape[-1:], gain, bias, eps)


def rms_norm(x: Tensor, visual_gain: Tensor, text_gain: Tensor, split: int, eps: float) -> Tensor:
    """Rows [N, D], the first `split` of them visual, the rest text -> [N, D]."""
    y = x.float()
    unit = (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)).to(x.dtype)
    return torch.cat((unit[:split] * visual_gain, unit[split:] * text_gain))
