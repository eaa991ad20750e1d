"""What a reader of a number must know of the machine that it was measured on."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from qalign_kernels.cores import cores
from qalign_kernels.cpu import native

_FLAGS = tuple("avx2 avx512f avx512_vnni avx512_bf16 avx_vnni amx_int8 amx_bf16 asimddp i8mm".split())
_PACKAGES = ("qalign-fast", "numpy", "Pillow", "torch", "onnxruntime", "onnxruntime-gpu")


def environment(*packages: str) -> dict[str, Any]:
    """Processor, memory, system, versions, revision and date. `packages`: more packages to tell the versions of."""
    return {
        "cpu": _cpu_model(),
        "cores": cores(),
        "cpu_flags": _cpu_flags(),
        "instruction_set": native.chosen(),  # the best of our kernels here; None where they are not built
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpu": _gpus(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": versions(*_PACKAGES, *packages),
        "revision": _revision(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def study_environment(*packages: str) -> dict[str, Any]:
    """The same as the files of bench/studies have it: versions beside the other facts, and the load average."""
    facts = environment(*packages)
    return {**facts, **facts["packages"], "load": os.getloadavg()}


def versions(*packages: str) -> dict[str, str]:
    """The versions of those packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def device_name(device: str, facts: dict[str, Any]) -> str:
    """A device as it is shown beside a number: the GPU's name, or the processor's name and its count of cores."""
    if device.startswith("cuda") and facts["gpu"]:
        name: str = facts["gpu"][int(device.partition(":")[2] or 0)]["name"]
        return name
    return f"{facts['cpu']}, {facts['cores']} cores"


def _cpu_info() -> dict[str, str]:
    """The first processor's fields, by name."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _cpu_model() -> str:
    return _cpu_info().get("model name") or platform.processor() or platform.machine()


def _cpu_flags() -> list[str]:
    info = _cpu_info()
    has = set((info.get("flags") or info.get("Features") or "").split())
    return [flag for flag in _FLAGS if flag in has]


def _gpus() -> list[dict[str, str]]:
    """Name, memory and driver of each NVIDIA GPU, in the order in which nvidia-smi lists them."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    lines = _output(query)
    return [dict(zip(("name", "memory", "driver"), line.split(", "))) for line in lines.splitlines()]


def _revision() -> str | None:
    """The git revision of the project's checkout, with "+" where it has changes; None for an installed package."""
    root = Path(__file__).parents[3]
    if not (root / "pyproject.toml").exists():  # else git could tell about another project that we are installed in
        return None
    revision = _output(["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"])
    changed = _output(["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"])
    return revision + ("+" if changed else "") if revision else None


def _output(command: list[str]) -> str:
    """What a program prints; an empty text where it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
