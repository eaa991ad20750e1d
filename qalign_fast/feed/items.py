"""What the feed takes and gives: an `Item` is a picture or a clip and its key, a `Scored` is what came of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Literal, TypeAlias, TypeVar

from qalign_fast.errors import OptionError, QAlignError

if TYPE_CHECKING:
    from qalign_fast.levels import Score
    from qalign_fast.pixels.clip import Sampling
    from qalign_fast.pixels.picture import Picture

Scores: TypeAlias = "dict[str, Score]"  # by task
Medium: TypeAlias = Literal["image", "video"]
Key = TypeVar("Key")


@dataclass(frozen=True, slots=True)
class ClipOptions:
    """Which frames of a clip are scored: `fps` a second of a file, all of a list; at most max_frames, spread evenly.

    By default max_frames is the family's number. `sampling` is "index", upstream's rule, or "time", by presentation
    time, for a varying frame rate. With `timeline`, each of the frames is also scored as a picture. Raises OptionError
    for another name.
    """

    fps: float = 1.0
    max_frames: int | None = None
    sampling: Sampling = "index"
    timeline: bool = False

    def __post_init__(self) -> None:
        if self.sampling not in ("index", "time"):
            raise OptionError(f"sampling is {self.sampling!r}; expected 'index' or 'time'")


@dataclass(frozen=True, slots=True)
class Item(Generic[Key]):
    """A picture, or a clip: a video file as `load_clip` takes it, or frames in a list, an array or an iterable.

    `key` is the caller's and comes back untouched. An error as `media` is the item's result: its source was not to be
    had.
    """

    key: Key
    media: Picture | Iterable[Picture] | QAlignError
    medium: Medium = "image"
    clip: ClipOptions = ClipOptions()


@dataclass(frozen=True, slots=True)
class Moment:
    """A frame of a clip, scored as a picture: its number in the clip, and the second where it is shown, of a file."""

    index: int
    time: float | None
    scores: Scores


@dataclass(frozen=True, slots=True)
class Scored(Generic[Key]):
    """An item's scores by task, or the error why it has none: one of the two is None.

    `timeline` has a clip's frames, where its options ask for them.
    """

    key: Key
    scores: Scores | None
    error: QAlignError | None = None
    timeline: tuple[Moment, ...] = ()

    def get(self) -> Scores:
        """The scores. Raises the error that stands in their place."""
        if self.error is not None:
            raise self.error
        assert self.scores is not None
        return self.scores
