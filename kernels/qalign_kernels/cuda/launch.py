"""What a launch is told that is no kernel: the device, the end of a product, sizes. Nothing here needs Triton."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from qalign_kernels.contract.operations import Activation

_PER_WARP = 512  # elements of a row that a warp holds well: 16 a thread


class Device(NamedTuple):
    """The facts of a GPU that tiles are chosen by."""

    capability: int  # 86 is sm_86
    processors: int  # streaming multiprocessors
    shared: int  # bytes of shared memory that one program may have


class Epilogue(NamedTuple):
    """What happens to a product before it is stored: residual + activation(product), in `dtype`."""

    dtype: torch.dtype
    activation: Activation = None
    residual: Tensor | None = None  # [..., N]


def power_of_2(x: int) -> int:
    """The smallest power of two that is at least x."""
    return 1 << (x - 1).bit_length()


def cdiv(x: int, y: int) -> int:
    """x / y, rounded up."""
    return -(-x // y)


def block_of(width: int) -> dict[str, int]:
    """How a program that holds a whole row of this width is compiled."""
    block = power_of_2(width)
    return {"block": block, "num_warps": min(16, max(4, block // _PER_WARP))}


def row_view(x: Tensor) -> Tensor:
    """[..., K] -> [M, K]. A row's numbers follow one another; the rows need not."""
    x = x.reshape(-1, x.shape[-1])
    return x if x.stride(1) == 1 else x.contiguous()


def row_stride(x: Tensor | None) -> int:
    """Elements from one row of [M, K] to the next, or 0 where there is no tensor."""
    return 0 if x is None else x.stride(0)
