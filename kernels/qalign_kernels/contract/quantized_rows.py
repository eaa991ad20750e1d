"""Rows through 8 bits, on their way from the operation that made them to the linears that read them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """int8 or fp8 [..., K] and each row's float32 scale [..., 1]: `linear.quantize_rows` gives them."""

    values: Tensor
    scale: Tensor

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, some: slice) -> Rows:
        return Rows(self.values[some], self.scale[some])

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)
