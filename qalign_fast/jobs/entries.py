"""A planned input, and later what became of it: the key by which a picture travels through the feed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from qalign_fast.feed.items import Medium
    from qalign_fast.jobs.decoding import Reading

Kind: TypeAlias = Literal["file", "slice", "row"]
Answers: TypeAlias = "dict[str, dict[str, Any]]"  # by task: what rows hold of a score


@dataclass(slots=True)
class Entry:
    """One input of a plan.

    source: what its rows call it.
    kind: "file": `place` is a file; "slice": `size` bytes of the file from `offset`, as in a tar; "row": the row number
        `offset` of the table `place`.
    place: a path, as bytes, or a URL.
    size: of the file when the plan was made; of a slice its own; -1 where it is not known.
    mtime_ns: of the file, tar or table when the plan was made; -1 where it is not known.
    key: of a WebDataset's sample.
    keep: the kept columns' values.
    problem: why it cannot be had, where that was found while planning.
    shard, number: where it stands in the plan. What follows is found when it is scored.
    """

    source: str
    place: bytes
    kind: Kind = "file"
    offset: int = 0
    size: int = -1
    mtime_ns: int = -1
    medium: Medium = "image"
    key: str | None = None
    keep: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None

    shard: int = -1
    number: int = -1  # in its shard
    reading: Reading | None = None
    answers: Answers | None = None
    same_as: Answers | Entry | None = None  # an equal picture's answers, or the picture, while it is not scored yet

    @property
    def is_url(self) -> bool:
        """Whether it is not a file of this machine."""
        return b"://" in self.place

    @property
    def changed(self) -> bool:
        """Whether its file, or the tar or table that it is in, was not as planned when it was read."""
        if self.reading is None or -1 in (self.mtime_ns, self.reading.mtime_ns):
            return False
        resized = self.kind == "file" and self.size != self.reading.size
        return resized or self.mtime_ns != self.reading.mtime_ns
