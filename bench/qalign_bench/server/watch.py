"""A server in, a series of what it used out: sampled by a thread of this process while a load is played."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from threading import Event, Thread
from typing import Self

from qalign_bench.server.processes import Server
from qalign_bench.server.usage import Usage


@dataclass
class Watch:
    """Samples while its block lasts. `moments` are seconds since it began, one for each entry of `usages`."""

    server: Server
    interval: float = 0.25
    moments: list[float] = field(default_factory=list)
    usages: list[Usage] = field(default_factory=list)
    queue_sizes: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._over = Event()
        self._thread = Thread(target=self._sample, name="qalign-watch", daemon=True)

    def __enter__(self) -> Self:
        self._began = time.perf_counter()
        self._before = self.server.usage()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._after = self.server.usage()
        if self._after:  # a block may be shorter than the interval
            self.moments.append(time.perf_counter() - self._began)
            self.usages.append(self._after)

    @property
    def cpu_s(self) -> float | None:
        """Seconds of processors that the server used in the block."""
        return self._after.cpu_s - self._before.cpu_s if self._after and self._before else None

    @property
    def resident(self) -> int | None:
        """The most bytes that were resident."""
        return max((usage.resident for usage in self.usages), default=None)

    @property
    def queue_max(self) -> int | None:
        """The longest queue that was seen."""
        return max(self.queue_sizes, default=None)

    def _sample(self) -> None:
        while not self._over.wait(self.interval):
            if usage := self.server.usage():
                self.moments.append(time.perf_counter() - self._began)
                self.usages.append(usage)
            if (size := self.server.queue_size()) is not None:
                self.queue_sizes.append(size)
