"""The one place that imports Triton, and what a launch must know of a device.

Kernels are compiled for an NVIDIA GPU, or run by Triton's interpreter on a CPU's tensors where TRITON_INTERPRET=1 was
set before this module is imported. In a kernel's signature a `Pointer` is a tensor's first element, a `Value` a number
or a tile of numbers, and a `constexpr` a part of what is compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.errors import TritonError
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

__all__ = [
    "TRITON",
    "Device",
    "GPUTarget",
    "Pointer",
    "TensorDescriptor",
    "TritonError",
    "Value",
    "at_compile_time",
    "begin",
    "block_of",
    "cache_folder",
    "cache_hook",
    "cdiv",
    "constexpr",
    "gdc_launch_dependents",
    "gdc_wait",
    "gl",
    "gluon_jit",
    "interprets",
    "jit",
    "mbarrier",
    "overlap",
    "power_of_2",
    "row_view",
    "set_driver",
    "thread_barrier",
    "tl",
    "tma",
    "warpgroup_mma",
    "warpgroup_mma_wait",
]

Pointer: TypeAlias = tl.pointer_type
Value: TypeAlias = tl.tensor
constexpr: TypeAlias = tl.constexpr
thread_barrier = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier  # as Triton 3.6 has it
TRITON: str = triton.__version__
_OVERLAPS = 90
_PER_WARP = 512  # elements of a row that a warp holds well: 16 a thread


def jit(function: Callable[..., Any]) -> Any:
    """A kernel, or a part of kernels."""
    return triton.jit(function)


def gluon_jit(function: Callable[..., Any]) -> Any:
    """The same in Gluon."""
    return gluon.jit(function)


def at_compile_time(function: Callable[..., Any]) -> Any:
    """Of `constexpr` values."""
    return gluon.constexpr_function(function)


def overlap() -> dict[str, bool]:
    """What a launch passes on so that the kernel may begin before the one before it has ended, and waits for it itself.

    Its "programmatic dependent launch", of sm_90 and newer: beginning and loading weights cost no time then. Every
    kernel here waits before it reads what another wrote, so that whoever comes after it may rely on all before.
    """
    late = interprets() or triton.runtime.driver.active.get_current_target().arch < _OVERLAPS
    return {"pdl": False} if late else {"pdl": True, "launch_pdl": True}


class Device(NamedTuple):
    """What tiles are chosen by."""

    capability: int  # 86 is sm_86
    processors: int  # streaming multiprocessors
    shared: int  # bytes of shared memory that one program may have

    @classmethod
    def of(cls, device: torch.device) -> Device:
        """Of a CUDA device."""
        major, minor = torch.cuda.get_device_capability(device)
        index = torch.cuda.current_device() if device.index is None else device.index
        found = triton.runtime.driver.active.utils.get_device_properties(index)
        return cls(10 * major + minor, found["multiprocessor_count"], found["max_shared_mem"])


@jit
def begin(pdl: constexpr) -> None:
    """Lets the next kernel begin, and waits until the one before has ended and what it wrote is there."""
    if pdl:
        gdc_launch_dependents()
        gdc_wait()


def power_of_2(x: int) -> int:
    """The smallest that is at least x."""
    return 1 << (x - 1).bit_length()


def cdiv(x: int, y: int) -> int:
    return -(-x // y)


def block_of(width: int) -> dict[str, int]:
    """How a program that holds a whole row of that width is compiled."""
    block = power_of_2(width)
    return {"block": block, "num_warps": min(16, max(4, block // _PER_WARP))}


def row_view(x: Tensor) -> Tensor:
    """[..., K] -> [M, K] whose rows are contiguous, though they need not follow one another."""
    x = x.reshape(-1, x.shape[-1])
    return x if x.stride(1) == 1 else x.contiguous()


def set_driver(driver: object) -> None:
    """What kernels are compiled for, loaded and launched by, in this whole process."""
    triton.runtime.driver.set_active(driver)


def cache_hook(skips: Callable[[str, str], bool]) -> None:
    """(a kernel's name, what it is specialized for) -> whether a launch is to do nothing where it would compile it."""

    def hook(*, key: str, fn: Any, **_: object) -> bool:
        return skips(f"{fn.module}.{fn.name}", key)

    triton.knobs.runtime.jit_cache_hook = hook


def cache_folder() -> Path:
    """Where compiled kernels are kept."""
    return Path(triton.knobs.cache.dir)


def interprets() -> bool:
    """Whether kernels are run by the interpreter, which compiles nothing."""
    return bool(triton.knobs.runtime.interpret)
