"""An animated picture (GIF, WebP, APNG) in, its frames as a clip's out, by Pillow."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from fractions import Fraction
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

from qalign_fast.errors import ImageError, VideoError
from qalign_fast.pixels.damage import decoding
from qalign_fast.pixels.footage import Extent, Shown, check_extent, extent_of
from qalign_fast.pixels.limits import PictureLimits, check_size
from qalign_fast.pixels.rgb import to_rgb

if TYPE_CHECKING:
    from PIL import Image

_LEAST, _USUAL = 10, 100  # ms; browsers show a frame of the one, or of less, for the other
_TICK = Fraction(1, 1_000_000)  # s


class Animation:
    """A PIL picture whose frames are a clip's. It is moved while it is read, and put back at the end of `with`."""

    def __init__(self, opened: Callable[[], Image.Image], name: str, limits: PictureLimits) -> None:
        """Decodes all frames once, because some formats tell a duration no earlier. Raises ImageError, VideoError.

        `opened` gives the picture, if it can anew: behind damage, Pillow may not find back.
        """
        self._opened, self._picture, self._name, self._limits = opened, opened(), name, limits
        check_size(self._picture.size, name, limits.max_pixels, VideoError)
        self._stood = self._picture.tell()
        # of an APNG: a picture before the first, for readers that know no animation
        self._first = int(self._picture.info.get("default_image", False))
        self._said: dict[str, str] = {}  # in order, each once, whatever its numbers
        self._times: list[int] = []  # ticks, when each frame begins to be shown
        try:
            self.extent = self._measure()
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Animation:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ImageError), decoding(self._picture, self._name):
            self._picture.seek(self._stood)

    def rate(self) -> Fraction:
        return self.extent.frames / self.extent.duration

    def frames(self) -> Iterator[Shown]:
        """As `Footage.frames`."""
        for index, time in enumerate(self._times):
            yield Shown(index, time * _TICK, partial(self._rgb, index))

    def learn(self, short: bool) -> bool:
        """As `Footage.learn`. All frames were decoded when they were counted."""
        return False

    def remarks(self) -> Iterator[str]:
        yield from self._said.values()

    def _say(self, text: str) -> None:
        self._said.setdefault(re.sub(r"\d+", "", text), text)

    def _measure(self) -> Extent:
        time = duration = 0
        for index in count():
            if not self._load(index):
                break
            shown = self._picture.info.get("duration") or 0
            duration = round(1000 * (shown if shown > _LEAST else _USUAL))
            self._times.append(time)
            time += duration
            check_extent(index + 1, time * _TICK, self._name, self._limits)
        return extent_of(len(self._times), self._times, duration, _TICK)

    def _load(self, index: int) -> bool:
        """Whether there is such a frame. A later one that is damaged ends the clip. Raises ImageError for the first."""
        try:
            with decoding(self._picture, self._name):
                try:
                    self._picture.seek(self._first + index)
                except EOFError:
                    return False
                self._picture.load()
        except ImageError:
            if index == 0:
                raise
            self._say(f"frame {index} and those after it are damaged")
            self._picture = self._opened()
            return False
        return True

    def _rgb(self, index: int) -> Image.Image:
        with decoding(self._picture, self._name):
            self._picture.seek(self._first + index)
            self._picture.load()
            return to_rgb(self._picture, self._limits, name=self._name, warn=self._say)
