"""A process in, what it and its children use out: processor time, memory, descriptors and threads, by /proc."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process and its children use at a moment; seconds of processors since their start."""

    cpu_s: float
    resident: int  # bytes, pages of mapped files included
    anonymous: int  # bytes, without those
    descriptors: int
    threads: int


def usage_of(pid: int) -> Usage:
    """What a process and its children use. A process that ends meanwhile counts as nothing."""
    found = [use for each in processes_of(pid) if (use := _usage(each)) is not None]
    return Usage(
        sum(use.cpu_s for use in found),
        sum(use.resident for use in found),
        sum(use.anonymous for use in found),
        sum(use.descriptors for use in found),
        sum(use.threads for use in found),
    )


def processes_of(pid: int) -> list[int]:
    """The process, its children and theirs."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            parents.setdefault(int(fields[1]), []).append(int(folder.name))
    found = [pid]
    for each in found:
        found += parents.get(each, [])
    return found


def _usage(pid: int) -> Usage | None:
    folder = Path("/proc", str(pid))
    try:
        times = (folder / "stat").read_text().rpartition(")")[2].split()[11:15]  # of children that have ended, too
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        descriptors = sum(1 for _ in (folder / "fd").iterdir())
        resident, anonymous = (1024 * int(status[name].split()[0]) for name in ("VmRSS", "RssAnon"))
    except (OSError, KeyError):
        return None
    cpu_s = sum(map(int, times)) / os.sysconf("SC_CLK_TCK")
    return Usage(cpu_s, resident, anonymous, descriptors, int(status["Threads"]))
