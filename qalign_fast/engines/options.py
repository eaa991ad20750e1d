"""What a model is loaded with, as one value."""

from __future__ import annotations

import re
from dataclasses import dataclass

from qalign_fast.errors import DeviceError

_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d{1,3})?")


@dataclass(frozen=True)
class LoadOptions:
    """`qalign_fast.engines.load.load_engine` says what each one means. Raises DeviceError for what no machine has."""

    device: str = "auto"  # or "cpu", "cuda", "cuda:1" (and so on), "mps"
    precision: str | None = None  # None: an artifact's own, a checkpoint's "fp32"
    engine: str = "auto"
    threads: int | None = None  # None: every core
    verify: bool = True  # whether the files of an artifact are hashed

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise DeviceError(f"threads is {self.threads}; expected 1 or more")
        if not _DEVICE.fullmatch(self.device):
            raise DeviceError(f"device {self.device!r} is not one; there are: auto, cpu, cuda, cuda:1 and so on, mps")
