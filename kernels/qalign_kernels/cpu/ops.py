"""The C++ kernels on torch tensors, for products that torch's own model, an export or a bench asks for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qalign_kernels.contract.operations import Activation
from qalign_kernels.contract.ops import PLAIN
from qalign_kernels.contract.quantized_rows import QuantizedRows
from qalign_kernels.contract.weight import Weight
from qalign_kernels.cpu.calls import NativeCalls
from qalign_kernels.cpu.table import KINDS, exact_for, find_table

__all__ = ["NativeOps", "exact_for", "load_native"]

_KINDS = {getattr(torch, name): kind for name, kind in KINDS.items()}


def load_native(
    instruction_set: str | None = None,
    threads: int | None = None,
    library_path: Path | None = None,
    *,
    exact: bool = True,
) -> NativeOps | None:
    """The operations on this CPU's best instruction set, or on a named one. None as `find_table` has it.

    `exact` says whether attention must be exact: see its contract.
    """
    table = find_table(instruction_set, threads, library_path)
    return None if table is None else NativeOps(table, exact)


class NativeOps(NativeCalls):
    """The operations in C++. Plain torch multiplies by weights whose dtype the C++ kernels do not have (e4m3)."""

    def linear(
        self, x: Tensor | QuantizedRows, w: Weight, *, activation: Activation = None, residual: Tensor | None = None
    ) -> Tensor:
        if w.weight.dtype not in _KINDS:
            return PLAIN.linear(x, w, activation=activation, residual=residual)
        out: Tensor = super().linear(x, w, activation=activation, residual=residual)
        return out

    def empty(self, shape: Sequence[int]) -> Tensor:
        return torch.empty(*shape)

    def solid(self, x: Tensor) -> Tensor:
        return x.contiguous()

    def address(self, x: Tensor) -> int:
        return x.data_ptr()

    def strides(self, x: Tensor) -> Sequence[int]:
        return x.stride()

    def kind(self, weight: Tensor) -> int:
        return _KINDS[weight.dtype]

    def patches_for(self, w: Weight, pixels: Tensor, patch: int) -> Tensor | QuantizedRows:
        return PLAIN.patches_for(w, pixels, patch)

    def cat(self, parts: Sequence[Tensor], dim: int = 0) -> Tensor:
        return PLAIN.cat(parts, dim)

    def repeat(self, x: Tensor, batch: int) -> Tensor:
        return PLAIN.repeat(x, batch)

    def place(self, values: npt.NDArray[np.float32], beside: Tensor) -> Tensor:
        return PLAIN.place(values, beside)
