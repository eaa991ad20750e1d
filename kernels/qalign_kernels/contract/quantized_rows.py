"""Rows rounded to 8 bits, on their way from the operation that made them to the linears that read them.

    int8    s_m = max|x_m| / 127    x̂ = s_m · round(x / s_m)
    e4m3    s_m = max|x_m| / 448    x̂ = s_m · e4m3(x / s_m)

`round` and `e4m3` (torch's float8_e4m3fn, whose largest value is 448) go to the nearest, ties to even. A fast form of
`quantize_rows` gives the same bits, but for a zero's sign.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

E4M3 = torch.float8_e4m3fn
LARGEST = {torch.int8: 127, E4M3: 448}  # the largest number of each dtype that rows and weights with a scale have
_SMALLEST = 1e-30  # stands in for a smaller max|x_m|: a row of zeros keeps a scale that can be divided by


@dataclass(frozen=True)
class QuantizedRows:
    """int8 or e4m3 [..., K] and each row's float32 scale [..., 1]. `len` and `shape` are those of the values."""

    values: Tensor
    scale: Tensor

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, some: slice) -> QuantizedRows:
        return QuantizedRows(self.values[some], self.scale[some])

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)


def quantize_rows(x: Tensor, dtype: torch.dtype = torch.int8) -> QuantizedRows:
    """float32 [..., K] -> the same in int8 or e4m3, with a scale for each row."""
    scale = _row_scale(x, dtype)
    return QuantizedRows(_round(x / scale, dtype).to(dtype), scale)


def fake_rows(x: Tensor, dtype: torch.dtype = torch.int8) -> Tensor:
    """x̂: float32 [..., K] -> what its rows become through 8 bits, in float32."""
    scale = _row_scale(x, dtype)
    return _round(x / scale, dtype).float() * scale


def _row_scale(x: Tensor, dtype: torch.dtype) -> Tensor:
    """float32 [..., K] -> [..., 1]."""
    return x.abs().amax(-1, keepdim=True).clamp_min(_SMALLEST) / LARGEST[dtype]


def _round(x: Tensor, dtype: torch.dtype) -> Tensor:
    """To numbers that the dtype has: whole ones stay float32, e4m3 is itself."""
    return x.round_() if dtype == torch.int8 else x.to(dtype)
