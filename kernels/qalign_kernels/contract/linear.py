"""The product of rows and a weight in every precision, 8 and 4 bits above all: the definition that every engine keeps.

    int8:  x̂ = s_m · round(x / s_m), s_m = max|x_m| / 127, per row;   ŵ = s_n · w, per output channel
    fp8:   x̂ = s_m · e4m3(x / s_m), s_m = max|x_m| / 448, per row;    ŵ = s_n · w, per output channel, w in e4m3
    int4:  as int8;                                   ŵ = s_n · k_ng · (w - z_ng), w and z in 0..15, k in 1..16

y = x̂ ŵᵀ + b. `quantized_rows` says how x is rounded. For int8 and int4 the sums of products are whole numbers, exact in
any order: int4's weights become int8 before the product, because |k (w - z)| is at most 127 (the idea of two levels is
QServe's, Lin et al., arXiv 2405.04532). For fp8 the sums are taken in float32, before the scales; GPUs keep fewer bits.
A float weight (float32, float16, bfloat16) reads rows rounded to its type, and its products are summed in float32.

A fast form agrees to 1e-6 of the largest result for int8 and int4, and to 1e-5 for fp8 and floats (for fp8 on a GPU's
tensor cores, to 2^-8). Rounding to a 16-bit result comes on top.

int4's inputs lie in blocks of 128, filled up with zeros: byte j of a block has input j in its low half and input j + 64
in its high half. `groups` has a byte for each 32 inputs in a row: k - 1 in its high half, z in its low half.

Letters: M rows, K inputs, N output channels, B = ceil(K / 128) blocks, G = 4 B groups.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from qalign_kernels.contract.precisions import BLOCK, GROUP
from qalign_kernels.contract.quantized_rows import quantize_rows
from qalign_kernels.contract.weight import Modal, Weight

_EXACT = 1024  # inputs whose products float32 sums exactly: 1024 · 127² < 2²⁴
_CHUNK = 1 << 24  # weights expanded to float32 at a time, 64 MB


def linear(x: Tensor, w: Weight) -> Tensor:
    """Rows float32 [..., K] -> float32 [..., N], bias included, in the precision the weight has."""
    if w.scale is not None:
        return scaled_linear(x.flatten(0, -2), w).unflatten(0, x.shape[:-1])
    y = F.linear(x.to(w.weight.dtype), w.weight).float()
    return y if w.bias is None else y + w.bias


def modal_linear(x: Tensor, w: Weight, modal: Modal) -> Tensor:
    """Rows float32 [M, K], visual ones first -> float32 [M, N], by a weight of three linears."""
    own = (len(w.weight) - modal.common) // 2
    visual, text = (modal.common + own * i for i in range(2))
    of_visual, of_text = (
        linear(x[: modal.split], w.part(visual, text)),
        linear(x[modal.split :], w.part(text, text + own)),
    )
    return torch.cat((linear(x, w.part(0, modal.common)), torch.cat((of_visual, of_text))), dim=1)


def scaled_linear(x: Tensor, w: Weight) -> Tensor:
    """x float32 [M, K], by a weight with a scale -> float32 [M, N], bias included."""
    assert w.scale is not None, w.name
    rows = quantize_rows(x, row_dtype(w.weight))
    y = _product(rows.values, w) * rows.scale * w.scale
    return y if w.bias is None else y + w.bias


def row_dtype(weight: Tensor) -> torch.dtype:
    """The dtype of the rows that a weight multiplies: its own, or int8 for 4 bits."""
    return torch.int8 if weight.dtype == torch.uint8 else weight.dtype


def _product(rows: Tensor, w: Weight) -> Tensor:
    """int8 or e4m3 [M, K] -> float32 [M, N], the sums before the scales."""
    if w.weight.dtype == torch.int8:
        return int8_product(rows, w.weight).float()
    step = max(1, _CHUNK // rows.shape[-1])
    parts = [w.part(first, first + step) for first in range(0, max(1, len(w.weight)), step)]
    rows = rows.float() if w.groups is None else rows
    return torch.cat([_part_product(rows, part) for part in parts], dim=-1)


def _part_product(rows: Tensor, w: Weight) -> Tensor:
    if w.groups is None:
        return F.linear(rows, w.weight.float())
    return int8_product(rows, spread_int4(w.weight, w.groups, rows.shape[-1])).float()


def int8_product(rows: Tensor, weight: Tensor) -> Tensor:
    """int8 [M, K] and [N, K] -> int32 [M, N], exact.

    On a CPU without VNNI `_int_mm` takes products one by one, and float32, which holds such sums, is ten times as fast.
    """
    if rows.device.type != "cpu" or torch.cpu._is_vnni_supported():
        return torch._int_mm(rows, weight.T)
    parts = zip(rows.float().split(_EXACT, dim=1), weight.split(_EXACT, dim=1), strict=True)
    return torch.stack([F.linear(x, w.float()).int() for x, w in parts]).sum(0, dtype=torch.int32)


def expand_weight(weight: Tensor, scale: Tensor, groups: Tensor | None = None, width: int | None = None) -> Tensor:
    """ŵ: a weight's tensors -> float32 [N, K]. int4's need `width`, which is K."""
    if groups is not None:
        assert width is not None
        weight = spread_int4(weight, groups, width)
    return weight.float() * scale.unsqueeze(1)


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
