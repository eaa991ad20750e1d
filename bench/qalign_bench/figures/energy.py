"""The joules that a device has used, where the machine counts them: RAPL for CPUs, NVML for NVIDIA GPUs."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

_RAPL = Path("/sys/class/powercap")
_SUCCESS = 0


def energy_meter(device: str) -> Callable[[], float] | None:
    """A function that reads the joules that "cpu" or "cuda:N" has used since some moment; None where nothing counts.

    For "cpu" it is the sum over all packages, whichever process used them.
    """
    return _nvml(int(device.partition(":")[2] or 0)) if device.startswith("cuda") else _rapl(_RAPL)


def _rapl(folder: Path) -> Callable[[], float] | None:
    """The kernel's counters of microjoules, one for each package. On most systems only root may read them."""
    counters = []
    for zone in sorted(folder.glob("intel-rapl:?")):  # AMD's have the same name; intel-rapl:0:1 is a part of a package
        try:
            int((zone / "energy_uj").read_text())
            counters.append(_Counter(zone / "energy_uj", int((zone / "max_energy_range_uj").read_text())))
        except (OSError, ValueError):
            continue
    return (lambda: sum(counter.joules() for counter in counters)) if counters else None


class _Counter:
    """A counter that starts again at 0 after the end of its range."""

    def __init__(self, path: Path, span: int) -> None:
        self._path, self._span = path, span
        self._last = self._total = 0

    def joules(self) -> float:
        now = int(self._path.read_text())
        self._total += (now - self._last) % (self._span + 1)
        self._last = now
        return self._total / 1e6


def _nvml(index: int) -> Callable[[], float] | None:
    """The driver's counter of millijoules of one GPU (Volta and later)."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    name = (visible.split(",") + [""] * (index + 1))[index].strip() or str(index)
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    handle, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
    nvml.nvmlInit_v2()
    if name.isdecimal():
        found = nvml.nvmlDeviceGetHandleByIndex_v2(int(name), ctypes.byref(handle))
    else:
        found = nvml.nvmlDeviceGetHandleByUUID(name.encode(), ctypes.byref(handle))

    def joules() -> float:
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules))
        return millijoules.value / 1e3

    if found != _SUCCESS:
        return None
    counts = nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)) == _SUCCESS
    return joules if counts else None
