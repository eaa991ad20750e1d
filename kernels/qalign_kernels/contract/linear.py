"""Rows and a weight in, rows out: the definition of every precision, 8 and 4 bits above all, that every engine keeps.

    int8:  x̂ = s_m · round(x / s_m), s_m = max|x_m| / 127, per row;   ŵ = s_n · w, per output channel
    fp8:   x̂ = s_m · e4m3(x / s_m), s_m = max|x_m| / 448, per row;    ŵ = s_n · w, per output channel, w in e4m3
    int4:  as int8;                                   ŵ = s_n · k_ng · (w - z_ng), w and z in 0..15, k in 1..16

y = x̂ ŵᵀ + b. round and e4m3 (float8_e4m3fn, whose largest value is 448) are to the nearest, ties to even. For int8 and
int4 the sums of products are whole numbers, exact in any order: int4's weights become int8 on their way, |k (w - z)| at
most 127 (the idea of two levels is QServe's, Lin et al., arXiv 2405.04532). For fp8 they are taken in float32, before
the scales; GPUs keep fewer bits. A float weight (float32, float16, bfloat16) reads rows rounded to its type; its
products are summed in float32.

int4's inputs come in blocks of 128, zeros after the last: byte j of a block has input j in its low half and input
j + 64 in its high half. `groups` has a byte for each 32 inputs in a row: k - 1 in its high half, z in its low half.

Letters: M rows, K inputs, N output channels, B = ceil(K / 128) blocks, G = 4 B groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from qalign_kernels.contract.precisions import BLOCK, GROUP

FP8 = torch.float8_e4m3fn
LARGEST = {torch.int8: 127, FP8: 448}  # of what rows and weights with a scale are made of

_SMALLEST = 1e-30  # a row of zeros keeps a scale that can be divided by
_EXACT = 1024  # inputs whose products float32 sums exactly: 1024 · 127² < 2²⁴
_CHUNK = 1 << 24  # weights expanded to float32 at a time, 64 MB


@dataclass(frozen=True)
class Weight:
    """A linear's tensors under its name: float [N, K], int8 or fp8 [N, K] with a scale [N], uint8 with groups too."""

    name: str
    weight: Tensor
    scale: Tensor | None = None
    groups: Tensor | None = None
    bias: Tensor | None = None

    def part(self, first: int, end: int) -> Weight:
        """Some of its output channels."""
        parts = (self.scale, self.groups, self.bias)
        return Weight(self.name, self.weight[first:end], *(None if p is None else p[first:end] for p in parts))


class Modal(NamedTuple):
    """One product for linears of all rows, of visual and of text rows: q, and each modality's k and v.

    Of y [M, N] the first `common` columns are the weight's first `common` channels of every row. The others are its
    next N - common channels for the first `split` rows, and the N - common after those for the rest.
    """

    split: int
    common: int


def linear(x: Tensor, w: Weight) -> Tensor:
    """Rows float32 [..., K] -> float32 [..., N], bias included, in the precision the weight has."""
    if w.scale is not None:
        rows = x.flatten(0, -2)
        if w.groups is not None:
            y = int4_linear(rows, w.weight, w.scale, w.groups, w.bias)
        else:
            by_type = fp8_linear if w.weight.dtype == FP8 else int8_linear
            y = by_type(rows, w.weight, w.scale, w.bias)
        return y.unflatten(0, x.shape[:-1])
    y = F.linear(x.to(w.weight.dtype), w.weight).float()
    return y if w.bias is None else y + w.bias


def modal_linear(x: Tensor, w: Weight, modal: Modal) -> Tensor:
    """Rows float32 [M, K] -> float32 [M, N]."""
    own = (len(w.weight) - modal.common) // 2
    visual, text = (modal.common + own * i for i in range(2))
    of_visual, of_text = (
        linear(x[: modal.split], w.part(visual, text)),
        linear(x[modal.split :], w.part(text, text + own)),
    )
    return torch.cat((linear(x, w.part(0, modal.common)), torch.cat((of_visual, of_text))), dim=1)


def row_scale(x: Tensor, dtype: torch.dtype = torch.int8) -> Tensor:
    """float32 [..., K] -> the scales [..., 1] of its rows."""
    return x.abs().amax(-1, keepdim=True).clamp_min(_SMALLEST) / LARGEST[dtype]


def quantize_rows(x: Tensor, dtype: torch.dtype = torch.int8) -> tuple[Tensor, Tensor]:
    """float32 [..., K] -> int8 or fp8 [..., K] and the scale of each row [..., 1]."""
    scale = row_scale(x, dtype)
    values = x / scale
    return (values if dtype == FP8 else values.round_()).to(dtype), scale


def fake_rows(x: Tensor) -> Tensor:
    """x̂: what the rows become through 8 bits, in float32."""
    scale = row_scale(x)
    return (x / scale).round_() * scale


def fake_fp8_rows(x: Tensor) -> Tensor:
    """The same through fp8, by row."""
    values, scale = quantize_rows(x, FP8)
    return values.float() * scale


def int8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """x float32 [M, K], weight int8 [N, K], scale float32 [N], bias float32 [N] -> float32 [M, N]."""
    rows, rows_scale = quantize_rows(x)
    y = int8_product(rows, weight).float() * rows_scale * scale
    return y if bias is None else y + bias


def int8_product(rows: Tensor, weight: Tensor) -> Tensor:
    """int8 [M, K] and [N, K] -> int32 [M, N], exact.

    On a CPU without VNNI `_int_mm` takes products one by one; float32, which holds such sums, is ten times as fast.
    """
    if rows.device.type != "cpu" or torch.cpu._is_vnni_supported():
        return torch._int_mm(rows, weight.T)
    parts = zip(rows.float().split(_EXACT, dim=1), weight.split(_EXACT, dim=1), strict=True)
    return torch.stack([F.linear(x, w.float()).int() for x, w in parts]).sum(0, dtype=torch.int32)


def fp8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """x float32 [M, K], weight fp8 [N, K], scale float32 [N], bias float32 [N] -> float32 [M, N]."""
    rows, rows_scale = quantize_rows(x, FP8)
    wide, step = rows.float(), max(1, _CHUNK // x.shape[-1])
    products = torch.cat([F.linear(wide, part.float()) for part in weight.split(step)], dim=-1)
    y = products * rows_scale * scale
    return y if bias is None else y + bias


def int4_linear(x: Tensor, weight: Tensor, scale: Tensor, groups: Tensor, bias: Tensor | None = None) -> Tensor:
    """x float32 [M, K], weight uint8 [N, B, 64], scale float32 [N], groups uint8 [N, G] -> float32 [M, N]."""
    rows, rows_scale = quantize_rows(x)
    step = max(1, _CHUNK // x.shape[-1])
    parts = zip(weight.split(step), groups.split(step), strict=True)
    y = torch.cat([int8_product(rows, spread_int4(*part, x.shape[-1])).float() for part in parts], dim=-1)
    y = y * rows_scale * scale
    return y if bias is None else y + bias


def expand_int8(weight: Tensor, scale: Tensor) -> Tensor:
    """ŵ: int8 [N, K] and scale [N] -> float32 [N, K]."""
    return weight * scale.unsqueeze(1)


def expand_fp8(weight: Tensor, scale: Tensor) -> Tensor:
    """ŵ: fp8 [N, K] and scale [N] -> float32 [N, K]."""
    return expand_int8(weight.float(), scale)


def expand_int4(weight: Tensor, scale: Tensor, groups: Tensor, width: int) -> Tensor:
    """ŵ: uint8 [N, B, 64], scale [N], groups [N, G] -> float32 [N, K = width]."""
    return expand_int8(spread_int4(weight, groups, width), scale)


def spread_int4(weight: Tensor, groups: Tensor, width: int) -> Tensor:
    """k (w - z): uint8 [N, B, 64] and groups [N, G] -> int8 [N, K = width]."""
    codes = torch.cat((weight & 15, weight >> 4), dim=-1).to(torch.int8)  # [N, B, 128]
    codes = codes.view(*groups.shape, GROUP)  # [N, G, 32]
    multiplier, zero = (groups >> 4).to(torch.int8) + 1, (groups & 15).to(torch.int8)
    return ((codes - zero.unsqueeze(-1)) * multiplier.unsqueeze(-1)).flatten(1)[:, :width].contiguous()


def pack_int4(codes: Tensor, multiplier: Tensor, zero: Tensor) -> tuple[Tensor, Tensor]:
    """w uint8 [N, 128 B] of 0..15, k [N, G] of 1..16 and z [N, G] of 0..15 -> weight [N, B, 64] and groups [N, G]."""
    low, high = codes.view(len(codes), -1, 2, BLOCK // 2).unbind(2)  # [N, B, 64]
    return low | (high << 4), ((multiplier - 1) << 4 | zero).to(torch.uint8)
