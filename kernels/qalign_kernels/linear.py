"""Rows and a weight in, rows out: the definition of every precision, 8 and 4 bits above all, that every engine keeps.

    int8:  x̂ = s_m · round(x / s_m), s_m = max|x_m| / 127, per row;   ŵ = s_n · w, per output channel
    fp8:   x̂ = s_m · e4m3(x / s_m), s_m = max|x_m| / 448, per row;    ŵ = s_n · w, per output channel, w in e4m3
    int4:  as int8, per row and group of g inputs;                     ŵ = s_ng · (w - z_ng), w and z in 0..15

y = x̂ ŵᵀ + b. round and e4m3 (float8_e4m3fn, whose largest value is 448) are to the nearest, ties to even. For int8 and
int4 the sums of products are whole numbers: exact in any order for int8; for int4 exact within a group. For fp8 they
are taken in float32, before the scales; GPUs keep fewer bits. The int4 layout is that of onnxruntime's MatMulNBits. A
float weight (float32, float16, bfloat16) reads rows rounded to its type; its products are summed in float32.

Letters: M rows, K inputs, N output channels, g inputs a group, G = ceil(K / g) groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

FP8 = torch.float8_e4m3fn
LARGEST = {torch.int8: 127, FP8: 448}  # of what rows and weights with a scale are made of
_SMALLEST = 1e-30  # a row of zeros keeps a scale that can be divided by
_EXACT = 1024  # inputs whose products float32 sums exactly: 1024 · 127² < 2²⁴
_CHUNK = 1 << 24  # weights expanded to float32 at a time, 64 MB


@dataclass(frozen=True)
class Weight:
    """A linear's tensors under its name: float [N, K], int8 or fp8 [N, K] with a scale, uint8 with scale and zero."""

    name: str
    weight: Tensor
    scale: Tensor | None = None
    zero: Tensor | None = None
    bias: Tensor | None = None

    def part(self, first: int, end: int) -> Weight:
        """Some of its output channels."""
        parts = (self.scale, self.zero, self.bias)
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
        if w.zero is not None:
            y = int4_linear(rows, w.weight, w.scale, w.zero, 2 * w.weight.shape[2], w.bias)
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


def fake_rows(x: Tensor, group: int | None = None) -> Tensor:
    """x̂: what the rows become through 8 bits, by row or by row and group of inputs, in float32."""
    if group is None:
        scale = row_scale(x)
        return (x / scale).round_() * scale
    width = x.shape[-1]
    padded = F.pad(x, (0, -width % group)).unflatten(-1, (-1, group))  # [..., G, g]
    return fake_rows(padded).flatten(-2)[..., :width]


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


def int4_linear(
    x: Tensor, weight: Tensor, scale: Tensor, zero: Tensor, group: int, bias: Tensor | None = None
) -> Tensor:
    """x float32 [M, K], weight uint8 [N, G, g/2], scale float32 [N, G], zero uint8 [N, ceil(G/2)] -> float32 [M, N]."""
    rows = fake_rows(x, group)
    step = max(1, _CHUNK // x.shape[-1])
    y = torch.cat(
        [
            F.linear(rows, expand_int4(*part, width=x.shape[-1]))
            for part in zip(weight.split(step), scale.split(step), zero.split(step), strict=True)
        ],
        dim=-1,
    )
    return y if bias is None else y + bias


def expand_int8(weight: Tensor, scale: Tensor) -> Tensor:
    """ŵ: int8 [N, K] and scale [N] -> float32 [N, K]."""
    return weight * scale.unsqueeze(1)


def expand_fp8(weight: Tensor, scale: Tensor) -> Tensor:
    """ŵ: fp8 [N, K] and scale [N] -> float32 [N, K]."""
    return expand_int8(weight.float(), scale)


def expand_int4(weight: Tensor, scale: Tensor, zero: Tensor, width: int) -> Tensor:
    """ŵ: uint8 [N, G, g/2], scale [N, G], zero [N, ceil(G/2)] -> float32 [N, K = width]."""
    zeros = unpack_nibbles(zero)[:, : scale.shape[1]]
    steps = unpack_nibbles(weight).to(torch.int8) - zeros.to(torch.int8).unsqueeze(-1)  # [N, G, g]
    return (steps * scale.unsqueeze(-1)).flatten(1)[:, :width]


def pack_nibbles(x: Tensor) -> Tensor:
    """uint8 [..., n] of 0..15 -> uint8 [..., ceil(n/2)], the even one in the low half."""
    x = F.pad(x, (0, x.shape[-1] % 2))
    return x[..., 0::2] | (x[..., 1::2] << 4)


def unpack_nibbles(x: Tensor) -> Tensor:
    """uint8 [..., n] -> uint8 [..., 2n]: `pack_nibbles`' inverse, a padding one included."""
    return torch.stack((x & 15, x >> 4), dim=-1).flatten(-2)
