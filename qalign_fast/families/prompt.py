"""A task and a medium as token ids around one slot for visual tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

MEDIA = ("image", "video")
_USUAL = ("quality", "aesthetics")


@dataclass(frozen=True)
class Anchor:
    """A picture of the model's own that a prompt shows before the one that is asked about."""

    number: int  # which of the model's anchors
    after: tuple[int, ...]  # the token ids between it and the picture that is asked about


Before: TypeAlias = "tuple[int, ...] | tuple[tuple[int, ...], Anchor]"


@dataclass(frozen=True)
class Prompt:
    """A prompt as token ids: `prefix` stands before the visual tokens and `suffix` after them.

    With an `anchor`, its visual tokens and its own ids stand between `prefix` and the picture. They are as constant as
    `prefix` is, so that all of it is keys and values computed once.

    `parts` are further prompts that answering this one needs, each with a name of its own in `part`. Who lists tasks
    sees only the prompt that has them.
    """

    task: str
    medium: str  # one of MEDIA
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    part: str | None = None
    parts: tuple[Prompt, ...] = ()
    anchor: Anchor | None = None

    @property
    def before(self) -> Before:
        """All that stands before the picture; prompts that have it in common share its keys and values."""
        return (self.prefix, self.anchor) if self.anchor else self.prefix

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
