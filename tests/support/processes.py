"""What a process of its own imports: a scorer that it gets once, and a data set that holds one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qalign_fast import Score, Scorer

_SCORERS: list[Scorer] = []


class Named(Scorer):
    """A scorer of a class of its own."""


class Pictures:
    """A data set: each item is a path and the logits of its picture."""

    def __init__(self, scorer: Scorer, paths: Sequence[Path]) -> None:
        self.scorer, self.paths = scorer, paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[Path, tuple[float, ...]]:
        return self.paths[i], self.scorer.score(self.paths[i]).logits


def take(scorer: Scorer) -> None:
    """Makes it this process's scorer: a worker's initializer."""
    _SCORERS.append(scorer)


def score(path: Path) -> Score:
    """With this process's scorer."""
    return _SCORERS[-1].score(path)
