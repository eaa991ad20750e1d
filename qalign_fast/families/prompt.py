"""A task and a medium as token ids around one slot for visual tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MEDIA = ("image", "video")
_USUAL = ("quality", "aesthetics")


@dataclass(frozen=True)
class Prompt:
    """A prompt as token ids: `prefix` stands before the visual tokens and `suffix` after them.

    `parts` are further prompts that answering this one needs, each with a name of its own in `part`. Who lists tasks
    sees only the prompt that has them.
    """

    task: str
    medium: str  # one of MEDIA
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    part: str | None = None
    parts: tuple[Prompt, ...] = ()

    @property
    def name(self) -> str:
        """TASK.MEDIUM, or TASK.MEDIUM.PART of a part, by which constants are kept."""
        return f"{self.task}.{self.medium}" + (f".{self.part}" if self.part else "")


def with_parts(prompts: Iterable[Prompt]) -> tuple[Prompt, ...]:
    """The prompts, each followed by its parts: all that a model keeps constants of."""
    return tuple(one for prompt in prompts for one in (prompt, *prompt.parts))


def usual_tasks(has: Sequence[str]) -> tuple[str, ...]:
    """What "all" stands for: quality and aesthetics, or every task of a model that has neither."""
    return tuple(task for task in _USUAL if task in has) or tuple(has)
