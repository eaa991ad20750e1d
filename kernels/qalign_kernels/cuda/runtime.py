"""The one file that imports Triton: what kernels are written in, and how they are compiled and launched.

Kernels are compiled for an NVIDIA GPU. Where TRITON_INTERPRET=1 was set before this module is imported, Triton's
interpreter runs them on a CPU's tensors instead. In a kernel's signature a `Pointer` is the address of a tensor's first
element, a `Value` is a number or a tile of numbers, and a `constexpr` is known when the kernel is compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.errors import TritonError
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from qalign_kernels.cuda.launch import Device

__all__ = [
    "GPUTarget",
    "Pointer",
    "TensorDescriptor",
    "TritonError",
    "Value",
    "at_compile_time",
    "begin",
    "cache_hook",
    "constexpr",
    "device_of",
    "gdc_launch_dependents",
    "gdc_wait",
    "gl",
    "gluon_jit",
    "interprets",
    "jit",
    "mbarrier",
    "overlap",
    "set_driver",
    "thread_barrier",
    "tl",
    "tma",
    "triton_cache",
    "warpgroup_mma",
    "warpgroup_mma_wait",
]

Pointer: TypeAlias = tl.pointer_type
Value: TypeAlias = tl.tensor
constexpr: TypeAlias = tl.constexpr
thread_barrier = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier  # the name in Triton 3.6
_OVERLAPS = 90  # the first capability that has "programmatic dependent launch"


def jit(function: Callable[..., Any]) -> Any:
    """Marks a kernel, or a part of kernels."""
    return triton.jit(function)


def gluon_jit(function: Callable[..., Any]) -> Any:
    """Marks a kernel, or a part of kernels, written in Gluon."""
    return gluon.jit(function)


def at_compile_time(function: Callable[..., Any]) -> Any:
    """Marks a function of `constexpr` values that runs while a Gluon kernel is compiled."""
    return gluon.constexpr_function(function)


def overlap() -> dict[str, bool]:
    """What every launch passes on, so that a kernel may begin before the one before it has ended.

    This is the "programmatic dependent launch" of sm_90 and newer: the beginning of a kernel, and its loads of weights,
    then cost no time. Every kernel waits by itself before it reads what another one wrote, so that the kernels after it
    may rely on all that came before.
    """
    late = interprets() or triton.runtime.driver.active.get_current_target().arch < _OVERLAPS
    return {"pdl": False} if late else {"pdl": True, "launch_pdl": True}


def device_of(device: torch.device) -> Device:
    """The facts of a CUDA device."""
    major, minor = torch.cuda.get_device_capability(device)
    index = torch.cuda.current_device() if device.index is None else device.index
    found = triton.runtime.driver.active.utils.get_device_properties(index)
    return Device(10 * major + minor, found["multiprocessor_count"], found["max_shared_mem"])


@jit
def begin(pdl: constexpr) -> None:
    """Lets the next kernel begin, then waits until the one before has ended and its results are in memory."""
    if pdl:
        gdc_launch_dependents()
        gdc_wait()


def set_driver(driver: object) -> None:
    """Sets what kernels are compiled for, loaded by and launched by, in the whole process."""
    triton.runtime.driver.set_active(driver)


def cache_hook(skips: Callable[[str, str], bool]) -> None:
    """Sets what decides, by a kernel's name and what it is specialized for, whether to skip a launch that compiles."""

    def hook(*, key: str, fn: Any, **_: object) -> bool:
        return skips(f"{fn.module}.{fn.name}", key)

    triton.knobs.runtime.jit_cache_hook = hook


def triton_cache() -> Path:
    """The folder where Triton keeps compiled kernels."""
    return Path(triton.knobs.cache.dir)


def interprets() -> bool:
    """Whether Triton's interpreter runs the kernels. It compiles nothing."""
    return bool(triton.knobs.runtime.interpret)
