"""A device's name in, the one that torch runs on out, or why it cannot be had and what can."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from qalign_fast.errors import DeviceError, one_line

_LEAST_CAPABILITY = (8, 0)  # 8-bit tensor cores and copies to shared memory as the kernels use them


def choose_device(asked: str) -> str:
    """One of "cpu", "mps" and "cuda:N". "auto" is the first CUDA device where it can be had, else "cpu".

    Raises DeviceError for a named one that cannot be had.
    """
    if asked == "auto":
        return "cpu" if cuda_problem(0) else "cuda:0"
    problem = device_problem(asked)
    if problem:
        raise DeviceError(f"device {asked!r}: {problem}; available: {', '.join(available())}")
    return "cuda:0" if asked == "cuda" else asked


def available() -> list[str]:
    """What `choose_device` takes on this machine."""
    cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count()) if not cuda_problem(i)]
    return ["auto", "cpu", *(["mps"] if device_problem("mps") is None else []), *cuda]


def device_problem(name: str) -> str | None:
    """Why a named device cannot be had, in one line; None where it can."""
    if name == "mps":
        return None if torch.backends.mps.is_available() else "torch sees no Apple GPU"
    return None if name == "cpu" else cuda_problem(int(name.partition(":")[2] or 0))


def cuda_problem(index: int) -> str | None:
    """Why the kernels cannot run on that CUDA device, in one line; None where they can, as far as torch tells."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA; pytorch.org has builds with it"
    try:  # is_available() would not say why: no driver, or one too old for this torch
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return one_line(error)
    count = torch.cuda.device_count()
    if index >= count:
        return f"torch sees {count} CUDA device{'' if count == 1 else 's'}, counted from 0"
    found = torch.cuda.get_device_capability(index)
    if found < _LEAST_CAPABILITY:
        return f"{torch.cuda.get_device_name(index)} is sm_{found[0]}{found[1]}; the kernels need sm_80 or newer"
    if find_spec("triton") is None:
        return "Triton, which compiles the kernels, is not installed: pip install triton"
    return None
