"""The options of `qalign-fast bench`, and the error for a wrong one that the command line cannot see."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from qalign_fast.errors import QAlignError
from qalign_kernels.cache_folder import cache_folder

DEFAULT_PRECISION = "int8"
TASKS = ("quality", "aesthetics")  # of what is exported or made here


class WrongOptionError(QAlignError):
    """An option's value that no bench can use. The command line answers it with exit code 2."""

    def __init__(self, option: str, problem: str) -> None:
        super().__init__(f"{option}: {problem}")
        self.option, self.problem = option, problem


def work_folder() -> Path:
    """The folder below the user's folder for caches that keeps what benches make and use again."""
    return cache_folder() / "bench"


@dataclass(frozen=True)
class Options:
    """What is measured. Where several of something are given, every combination is measured, interleaved."""

    scenario: str
    model: str | None = None  # None: the embedded one
    engines: tuple[str, ...] = ("auto",)
    device: str = "auto"
    precisions: tuple[str | None, ...] = (None,)  # None: the artifact's own, or int8 for what is exported first
    batches: tuple[int, ...] = ()  # empty: the scenario's own
    tasks: tuple[str, ...] = ("quality",)
    threads: int | None = None  # None: every engine's own choice, all cores
    repeat: int | None = None  # timed forwards of each batch and contestant; None: as many as some seconds allow
    peers: tuple[str, ...] = ()
    peer_python: str = sys.executable
    files: tuple[str, ...] = ()  # empty: generated ones
    exclusive: bool = False
    rates: tuple[float, ...] = ()  # requests a second; empty: shares of the server's peak
    seconds: float | None = None  # of each load on a server
    bound_ms: float | None = None  # of a server's p99; None: a second, or ten times the engine's own time
    server: str | None = None  # the URL of a server that runs; None: one is started
    naive: bool = True
    instruction_set: str | None = None  # None: the best that the CPU has
    work: Path = field(default_factory=work_folder)
