"""The name of a device in, the device that torch runs on out, or the reason why torch cannot use it."""

from __future__ import annotations

from importlib.util import find_spec
from typing import NamedTuple

import torch

from qalign_fast.errors import DeviceError, one_line
from qalign_kernels.contract.precisions import PRECISIONS


class Needs(NamedTuple):
    """What kernels need of a GPU."""

    who: str  # the kernels, as messages name them
    capability: tuple[int, int]  # the lowest compute capability of an NVIDIA GPU
    triton: bool = False  # whether they need Triton
    mps: bool = False  # whether the model also runs on an Apple GPU
    instead: str = ""  # what to use instead on an older device


# The kernels use 8-bit tensor cores and asynchronous copies to shared memory.
KERNELS = Needs("the kernels", (8, 0), triton=True, mps=True)


def choose_device(asked: str, needs: Needs = KERNELS) -> str:
    """The device to run on: "cpu", "mps" or "cuda:N". "auto" is the first CUDA device if it can be used, else "cpu".

    Raises DeviceError for a named device that cannot be used.
    """
    if asked == "auto":
        return "cpu" if cuda_problem(0, needs) else "cuda:0"
    problem = device_problem(asked, needs)
    if problem:
        raise DeviceError(f"device {asked!r}: {problem}; available: {', '.join(available(needs))}")
    return "cuda:0" if asked == "cuda" else asked


def needs_of(precision: str) -> Needs:
    """What an artifact's torch weights in this precision need of a GPU."""
    wanted = PRECISIONS[precision]
    if wanted.capability == KERNELS.capability:
        return KERNELS
    instead = f"; {wanted.nearest} and fp16 artifacts run there"
    return Needs(f"the {precision} kernels", wanted.capability, triton=True, instead=instead)


def available(needs: Needs = KERNELS) -> list[str]:
    """The names that `choose_device` accepts on this machine."""
    cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count()) if not cuda_problem(i, needs)]
    return ["auto", "cpu", *(["mps"] if device_problem("mps", needs) is None else []), *cuda]


def device_problem(name: str, needs: Needs = KERNELS) -> str | None:
    """The reason why a named device cannot be used, in one line. None if it can."""
    if name == "mps" and not needs.mps:
        return f"{needs.who} are for CUDA devices and CPUs{needs.instead}"
    if name == "mps":
        return None if torch.backends.mps.is_available() else "torch sees no Apple GPU"
    return None if name == "cpu" else cuda_problem(int(name.partition(":")[2] or 0), needs)


def cuda_problem(index: int, needs: Needs = KERNELS) -> str | None:
    """The reason why `needs.who` cannot run on that CUDA device, in one line. None if they can, as torch sees it."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA; pytorch.org has builds with it"
    try:  # is_available() would not give the reason: no driver, or one that is too old for this torch
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return one_line(error)
    count = torch.cuda.device_count()
    if index >= count:
        return f"torch sees {count} CUDA device{'' if count == 1 else 's'}, counted from 0"
    found = torch.cuda.get_device_capability(index)
    if found < needs.capability:
        name, least = torch.cuda.get_device_name(index), "".join(map(str, needs.capability))
        return f"{name} is sm_{found[0]}{found[1]}; {needs.who} need sm_{least} or newer{needs.instead}"
    if needs.triton and find_spec("triton") is None:
        return "Triton, which compiles the kernels, is not installed: pip install triton"
    return None
