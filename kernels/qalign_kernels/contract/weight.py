"""A linear's tensors, as every set of operations takes them: torch tensors, or numpy arrays. Imports neither."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

Array: TypeAlias = Any  # a torch tensor, or a numpy array


@dataclass(frozen=True)
class Weight:
    """A linear's tensors under its name. Letters are those of `qalign_kernels.contract.linear`.

    weight  float32, float16, bfloat16, int8 or e4m3 [N, K]; int4's are uint8 [N, B, 64]
    scale   float32 [N], for int8, e4m3 and int4
    groups  uint8 [N, G], for int4
    bias    any float [N]

    numpy has no bfloat16: such weights are uint16 there.
    """

    name: str
    weight: Array
    scale: Array | None = None
    groups: Array | None = None
    bias: Array | None = None

    def part(self, first: int, end: int) -> Weight:
        """Its output channels first .. end - 1."""
        parts = (self.scale, self.groups, self.bias)
        return Weight(self.name, self.weight[first:end], *(None if p is None else p[first:end] for p in parts))


class Modal(NamedTuple):
    """How one weight holds three linears: one that all rows read (q), one of visual and one of text rows (k and v).

    The first `common` columns of y [M, N] are the weight's first `common` channels, for every row. The other N - common
    columns are the weight's next N - common channels for the first `split` rows, which are visual, and its last
    N - common channels for the other rows, which are text.
    """

    split: int
    common: int
