"""A task and a medium as token ids around one slot for visual tokens."""

from __future__ import annotations

from dataclasses import dataclass

MEDIA = ("image", "video")


@dataclass(frozen=True)
class Prompt:
    """Token ids around one image slot: `prefix` before the visual tokens, `suffix` after them."""

    task: str
    medium: str
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.task}.{self.medium}"
