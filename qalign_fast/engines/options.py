"""The options of loading a model, as one value."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from qalign_fast.errors import DeviceError
from qalign_kernels.cores import cores

_MOST_THREADS = 4096
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d{1,3})?")


@dataclass(frozen=True)
class LoadOptions:
    """The options of `qalign_fast.engines.load.load_engine`, which says what they mean.

    Raises DeviceError for `threads` below 1 or over 4096 and for a `device` that no machine has.
    """

    device: str = "auto"  # or "cpu", "cuda", "cuda:1" (and so on), "mps"
    precision: str | None = None  # None: an artifact's own, or "fp32" for a checkpoint
    engine: str = "auto"
    threads: int | None = None  # that were asked for; None: every core
    verify: bool = True  # whether the SHA-256 of an artifact's files is checked
    base: str | Path | None = None  # of a LoRA adapter; None: the one that it names

    def __post_init__(self) -> None:
        if self.threads is not None and (not isinstance(self.threads, int) or not 1 <= self.threads <= _MOST_THREADS):
            raise DeviceError(f"threads is {self.threads!r}; expected a whole number, 1 to {_MOST_THREADS}")
        if not _DEVICE.fullmatch(str(self.device)):
            raise DeviceError(f"device {self.device!r} is not one; there are: auto, cpu, cuda, cuda:1 and so on, mps")

    @property
    def usable_threads(self) -> int | None:
        """`threads`, but at most one for each core that this process may use: more would wait for each other."""
        return None if self.threads is None else min(self.threads, cores())


def threads_remark(threads: int | None) -> str | None:
    """What a user should know who asked for more threads than there are cores. None for any other number.

    Raises DeviceError as `LoadOptions` does.
    """
    used = LoadOptions(threads=threads).usable_threads
    return None if threads == used else f"threads: {threads} asked, {used} used, one for each core here"
