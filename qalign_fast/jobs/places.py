"""Where engines run when there are several: which devices, and how many cores and decoding processes each gets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qalign_fast.engines.candidates import driver_is_there

_NODES = Path("/sys/devices/system/node")


@dataclass(frozen=True)
class Place:
    """A device, and the cores that its engine and its decoding processes may use; None: all."""

    device: str
    cores: frozenset[int] | None = None


def places_of(devices: Sequence[str]) -> list[Place]:
    """A place for each engine. "auto" is every GPU that torch has, else every NUMA node, else the machine as it is.

    Several places on the CPU share its cores, as its NUMA nodes have them where there is one for each.
    """
    if tuple(devices) == ("auto",):
        gpus = _gpus()
        if gpus > 1:
            return [Place(f"cuda:{number}") for number in range(gpus)]
        nodes = numa_nodes()
        return [Place("cpu", node) for node in nodes] if not gpus and len(nodes) > 1 else [Place("auto")]
    cpus = [number for number, device in enumerate(devices) if device == "cpu"]
    if len(cpus) < 2:
        return [Place(device) for device in devices]
    shares = iter(_shares(len(cpus)))
    return [Place(device, next(shares)) if device == "cpu" else Place(device) for device in devices]


def numa_nodes() -> list[frozenset[int]]:
    """The cores of each NUMA node that this process may use. Empty where the system does not tell."""
    mine = _my_cores()
    found = []
    for file in sorted(_NODES.glob("node[0-9]*/cpulist")):
        cores = _parse(file.read_text("ascii")) & mine
        if cores:
            found.append(cores)
    return found


def _shares(count: int) -> list[frozenset[int] | None]:
    nodes = numa_nodes()
    if len(nodes) == count:
        return list(nodes)
    cores = sorted(_my_cores())
    if len(cores) < count:
        return [None] * count
    return [frozenset(cores[i * len(cores) // count : (i + 1) * len(cores) // count]) for i in range(count)]


def _my_cores() -> frozenset[int]:
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def _gpus() -> int:
    """How many GPUs torch can use; none where there is no driver or no torch."""
    if not driver_is_there():
        return 0
    try:
        from qalign_fast.engines.devices import available
    except ModuleNotFoundError:
        return 0
    return sum(name.startswith("cuda") for name in available())


def _parse(text: str) -> frozenset[int]:
    """The cores of "0-3,8"."""
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)
