"""Rows in, normed rows out, in float32.

    layer_norm   (x - mean) / sqrt(var + eps) · gain + bias          var is the mean of (x - mean)² over the row
    rms_norm     x / sqrt(mean(x²) + eps) · gain                      visual rows have a gain, text rows have another

A fast form sums in another order, and agrees to 2e-6 of the row's largest value.

Letters: N rows, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def layer_norm(x: Tensor, gain: Tensor, bias: Tensor, eps: float) -> Tensor:
    """float32 [..., D] -> the same shape; gain and bias [D]."""
    return F.layer_norm(x, x.shape[-1:], gain, bias, eps)


def rms_norm(x: Tensor, visual_gain: Tensor, text_gain: Tensor, split: int, eps: float) -> Tensor:
    """float32 [N, D], of which the first `split` rows are visual and the rest text -> [N, D]; gains [D].

    Narrower rows are widened first; float64 stays as it is.
    """
    y = x.to(torch.promote_types(x.dtype, torch.float32))
    unit = (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)).to(x.dtype)
    return torch.cat((unit[:split] * visual_gain, unit[split:] * text_gain))
