"""Whether the machine was quiet while a bench ran: how even its speed was, and who else used its cores."""

from __future__ import annotations

import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qalign_bench.figures.spread import median
from qalign_kernels.cores import cores

_BLOCK = bytes(1 << 20)  # it is hashed over and over, which is always the same work, without memory traffic
_HASHES = 9
_UNEVEN = 0.1  # the share by which that work may take longer in some rounds
_OTHERS = 0.05  # the share of the cores' time that others may use
_LOAD = 0.25  # the load average for each core that may be there before us, where the system tells no more


class Noise:
    """Watches the machine from the moment when it is made."""

    def __init__(self) -> None:
        self._load = os.getloadavg()[0]
        self._start = _Ticks.now()
        self._samples: list[float] = []

    def sample(self) -> None:
        """Times a small fixed piece of work on all cores at once, some ms. Call it between rounds."""
        with ThreadPoolExecutor(cores()) as pool:
            list(pool.map(_hash, range(cores())))  # starts the threads
            self._samples.append(median([_time(pool) for _ in range(_HASHES)]))

    def report(self) -> dict[str, Any]:
        """What was seen. `warning` is one line where numbers taken meanwhile may be off, else None.

        Call it after all of our processes have ended, for only then the system counts their time as ours.
        """
        uneven = max(self._samples) / min(self._samples) - 1 if self._samples else 0.0
        others, stolen = _Ticks.now().since(self._start) if self._start.all else (None, None)
        reasons = []
        if uneven > _UNEVEN:
            reasons.append(f"the same small work took up to {uneven:.0%} longer in some rounds")
        if others is not None and others > _OTHERS:
            reasons.append(f"other processes used {others:.0%} of the cores' time")
        if stolen is not None and stolen > _OTHERS:
            reasons.append(f"the hypervisor gave {stolen:.0%} of the cores' time to others")
        if others is None and self._load > _LOAD * cores():
            reasons.append(f"the load average was {self._load:.1f} before it began")
        return {
            "load_average": self._load,
            "fixed_work_ms": self._samples,
            "others_share": others,
            "stolen_share": stolen,
            "warning": f"noisy machine: {'; '.join(reasons)}" if reasons else None,
        }


@dataclass(frozen=True)
class _Ticks:
    """Seconds of all cores since the machine started, and of this process and its children that have ended."""

    all: float  # 0 where the system has no such counts
    busy: float
    stolen: float
    ours: float

    @classmethod
    def now(cls) -> _Ticks:
        try:
            fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        except OSError:
            return cls(0, 0, 0, 0)
        user, nice, system, idle, waiting, irq, softirq, stolen = (int(n) / os.sysconf("SC_CLK_TCK") for n in fields)
        busy = user + nice + system + irq + softirq
        return cls(busy + idle + waiting + stolen, busy, stolen, sum(os.times()[:4]))

    def since(self, start: _Ticks) -> tuple[float, float]:
        """The shares of the cores' time that other processes used and that the hypervisor gave away."""
        whole = max(self.all - start.all, 1e-9)
        others = self.busy - start.busy - (self.ours - start.ours)
        return max(0.0, others) / whole, (self.stolen - start.stolen) / whole


def _hash(_: int) -> None:
    hashlib.sha256(_BLOCK).digest()  # it lets other threads run meanwhile


def _time(pool: ThreadPoolExecutor) -> float:
    """The ms until every core has hashed the block once."""
    started = time.perf_counter()
    list(pool.map(_hash, range(cores())))
    return 1e3 * (time.perf_counter() - started)
