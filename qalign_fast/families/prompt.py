"""A task and a medium as token ids around one slot for visual tokens."""

from __future__ import annotations

from dataclasses import dataclass

MEDIA = ("image", "video")


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
