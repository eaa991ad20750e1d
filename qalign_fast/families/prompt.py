"""A task and a medium as token ids around one slot for visual tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MEDIA = ("image", "video")
_USUAL = ("quality", "aesthetics")


@dataclass(frozen=True)
class Prompt:
    """A prompt as token ids: `prefix` stands before the visual tokens and `suffix` after them."""

    task: str
    medium: str  # one of MEDIA
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]

    @property
    def name(self) -> str:
        """TASK.MEDIUM, by which constants are kept."""
        return f"{self.task}.{self.medium}"


def usual_tasks(has: Sequence[str]) -> tuple[str, ...]:
    """What "all" stands for: quality and aesthetics, or every task of a model that has neither."""
    return tuple(task for task in _USUAL if task in has) or tuple(has)
