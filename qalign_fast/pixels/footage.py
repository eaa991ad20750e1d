"""What a clip is, be it a video file or an animated picture: how many frames, when each is shown, which are scored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Protocol

import numpy as np

from qalign_fast.errors import VideoError
from qalign_fast.pixels.limits import PictureLimits

if TYPE_CHECKING:
    import numpy.typing as npt
    from PIL import Image

    from qalign_fast.pixels.rule import Pixels

_OFF = Fraction(3, 2)  # a header's rate is believed as long as it is less than this times another one


@dataclass(frozen=True)
class Shown:
    """A frame, its number, when it begins to be shown, and its pixels: Pillow's RGB or uint8 [H, W, 3]."""

    index: int  # among all frames, those that cannot be decoded included
    time: Fraction  # seconds
    rgb: Callable[[], Image.Image | Pixels]


@dataclass(frozen=True)
class Extent:
    """What is known of a clip before a frame is decoded."""

    frames: int
    start: Fraction = Fraction(0)  # seconds
    duration: Fraction = Fraction(0)
    rate: Fraction = Fraction(0)  # frames a second on average; 0 where times are missing
    usual: Fraction = Fraction(0)  # frames a second by the median of the times between two

    def denies(self, header: Fraction) -> bool:
        """Whether a header's rate cannot be true: neither the average nor the usual rate is near it.

        A jump in the times moves the average, a varying rate moves both, but not far apart from each other.
        """
        return self.rate > 0 and all(not rate / _OFF < header < rate * _OFF for rate in (self.rate, self.usual))


class Footage(Protocol):
    """A clip that is open."""

    extent: Extent

    def rate(self) -> Fraction:
        """Frames a second, by which an index is found."""
        ...

    def frames(self) -> Iterator[Shown]:
        """All frames that can be decoded, in the order in which they are shown; from the first again at each call."""
        ...

    def learn(self, short: bool) -> bool:
        """Whether the frames must be taken once more, because of what taking them has shown.

        `short`: they came to an end before all that were wanted had been found.
        """
        ...

    def remarks(self) -> Iterator[str]:
        """What the reader of the score should know of the frames that were taken."""
        ...


def extent_of(frames: int, times: Sequence[int] | npt.NDArray[np.int64], last: int, base: Fraction) -> Extent:
    """Of `frames` frames, their ascending times, as far as known, and how long the last is shown, in units of `base` s.

    The last frame's own duration is believed unless it is less than half of the usual one.
    """
    if len(times) == 0:
        return Extent(frames)
    start, span = int(times[0]), int(times[-1]) - int(times[0])
    if span == 0:
        return Extent(frames, start * base, last * base)
    gaps = np.diff(times)
    usual = Fraction(float(np.median(gaps[gaps > 0])))
    last_shown = Fraction(last) if last * 2 >= usual else usual
    rate = Fraction(len(times) - 1) / (span * base)
    return Extent(frames, start * base, (span + last_shown) * base, rate, 1 / (usual * base))


def check_extent(frames: int, seconds: Fraction | int, name: str, limits: PictureLimits) -> None:
    """Raises VideoError for a clip with more frames, or more seconds, than the limits allow."""
    if limits.max_frames is not None and frames > limits.max_frames:
        raise VideoError(f"{name}: over the limit of {limits.max_frames} frames (max_frames)")
    if limits.max_seconds is not None and float(seconds) > limits.max_seconds:
        raise VideoError(f"{name}: {float(seconds):.1f} s is over the limit of {limits.max_seconds:g} s (max_seconds)")


def spread(total: int, most: int) -> list[int]:
    """At most `most` of the indices 0..total-1, evenly, the first and last among them."""
    if total <= most:
        return list(range(total))
    return [int(i) for i in np.linspace(0, total - 1, most).round()]


def by_index(frames: Iterable[Shown], wanted: Sequence[int]) -> Iterator[Shown]:
    """The frames with these ascending indices, or the next ones that there are; an index may come twice."""
    remaining = list(reversed(wanted))
    for frame in frames:
        while remaining and remaining[-1] <= frame.index:
            remaining.pop()
            yield frame
        if not remaining:
            return


def by_time(frames: Iterable[Shown], wanted: Sequence[Fraction]) -> Iterator[Shown]:
    """For each ascending time in seconds, the last frame shown by then; before the first frame, the first."""
    remaining = list(reversed(wanted))
    shown = None
    for frame in frames:
        while remaining and shown is not None and frame.time > remaining[-1]:
            remaining.pop()
            yield shown
        if not remaining:
            return
        shown = frame
    if shown is not None:
        for _ in remaining:
            yield shown
