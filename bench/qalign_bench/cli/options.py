"""What `qalign-fast bench` was asked: the command line's options, and those wrong in ways that it cannot know."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from qalign_fast.errors import QAlignError
from qalign_kernels.cache_folder import cache_folder


class WrongOptionError(QAlignError):
    """An option's value that no bench could make sense of; the command line answers it with exit code 2."""

    def __init__(self, option: str, problem: str) -> None:
        super().__init__(f"{option}: {problem}")
        self.option, self.problem = option, problem


def work_folder() -> Path:
    """Where what benches make, and use again, is kept: below the user's folder for caches."""
    return cache_folder() / "bench"


@dataclass(frozen=True)
class Options:
    """Where several are given, every combination is measured, interleaved."""

    scenario: str
    model: str | None = None  # None: the embedded one
    engines: tuple[str, ...] = ("auto",)
    device: str = "auto"
    precisions: tuple[str | None, ...] = (None,)  # None: the artifact's own, or int8 for what is exported first
    batches: tuple[int, ...] = ()  # none: the scenario's own
    tasks: tuple[str, ...] = ("quality",)
    threads: int | None = None  # None: every engine's own choice, all cores
    repeat: int | None = None  # timed forwards a batch and contestant; None: by how long one takes
    peers: tuple[str, ...] = ()
    peer_python: str = sys.executable
    files: tuple[str, ...] = ()  # none: generated ones
    exclusive: bool = False
    instruction_set: str | None = None  # None: the best that the CPU has
    work: Path = field(default_factory=work_folder)
