"""The C++ kernels on numpy arrays, and what lies between them in numpy: all that an engine without torch runs on."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qalign_kernels.contract.operations import Operations
from qalign_kernels.contract.weight import Weight
from qalign_kernels.cpu.calls import NativeCalls
from qalign_kernels.cpu.table import KINDS, find_table

BFLOAT16 = np.dtype(np.uint16)  # stands for it: numpy has no bfloat16, and no other weight has this dtype
_KINDS = {BFLOAT16 if name == "bfloat16" else np.dtype(name): kind for name, kind in KINDS.items()}
_FLOAT = np.dtype(np.float32)
_LINE = 64  # bytes of a cache line
_LARGE = 1 << 14  # numbers, from which its place in memory matters more than the microseconds to choose it


def load_numpy(
    instruction_set: str | None = None,
    threads: int | None = None,
    library_path: Path | None = None,
    *,
    exact: bool = True,
) -> NumpyOps | None:
    """The operations on this CPU's best instruction set, or on a named one. None as `find_table` has it.

    `exact` says whether attention must be exact: see its contract.
    """
    table = find_table(instruction_set, threads, library_path)
    return None if table is None else NumpyOps(table, exact)


class NumpyArrays(Operations):
    """What every set of operations on numpy arrays has beside its kernels."""

    def patches_for(self, w: Weight, pixels: npt.NDArray[np.uint8], patch: int) -> npt.NDArray[np.float32]:
        """As the contract's `split_patches`, in float32."""
        batch, side, _, _ = pixels.shape
        grid = side // patch
        x = pixels.reshape(batch, grid, patch, grid, patch, 3).transpose(0, 1, 3, 2, 4, 5)  # [B, g, g, p, p, 3]
        return x.astype(_FLOAT, order="C").reshape(batch, grid * grid, -1)

    def cat(self, parts: Sequence[npt.NDArray], dim: int = 0) -> npt.NDArray:
        shape = list(parts[0].shape)
        shape[dim] = sum(part.shape[dim] for part in parts)
        return np.concatenate(tuple(parts), dim, out=_empty(shape))

    def repeat(self, x: npt.NDArray, batch: int) -> npt.NDArray:
        return np.broadcast_to(x, (batch, *x.shape))

    def place(self, values: npt.NDArray[np.float32], beside: npt.NDArray) -> npt.NDArray[np.float32]:
        return values


class NumpyOps(NumpyArrays, NativeCalls):
    """The operations in C++. Weights of e4m3 have no kernel, and no dtype in numpy."""

    def empty(self, shape: Sequence[int]) -> npt.NDArray[np.float32]:
        return _empty(shape)

    def solid(self, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.ascontiguousarray(x)

    def address(self, x: Any) -> int:
        if x.flags.c_contiguous and x.flags.writeable and x.size:  # the quick way, which asks for all three
            return ctypes.addressof(ctypes.c_char.from_buffer(x))
        return int(x.ctypes.data)

    def strides(self, x: npt.NDArray[Any]) -> Sequence[int]:
        return [step // x.itemsize for step in x.strides]

    def kind(self, weight: npt.NDArray[Any]) -> int:
        return _KINDS[weight.dtype]


def _empty(shape: Sequence[int]) -> npt.NDArray[np.float32]:
    """An array whose values are unset. A large one begins at a cache line, as a vector of the kernels does.

    numpy's own begin 16 bytes behind: with them attention takes a tenth longer at full size.
    """
    count = math.prod(shape)
    if count < _LARGE:
        return np.empty(shape, _FLOAT)
    memory = np.empty(count + _LINE // _FLOAT.itemsize, _FLOAT)
    first = -memory.ctypes.data % _LINE // _FLOAT.itemsize
    return memory[first : first + count].reshape(shape)
