"""Files in, the time from each file to its pixels out, by pixel path: reading and decoding apart from the rest.

`load_pixels` is timed, file by file on one thread, the paths in turn, after a pass that is not timed.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from qalign_fast.families.mplug_owl2.sizes import pixel_rule
from qalign_fast.pixels.paths import PLAIN, pixel_path
from qalign_fast.pixels.picture import load_pixels
from qalign_fast.pixels.rule import PixelPath, Pixels, SquareRule

_RULE = pixel_rule(448)


@dataclass
class PixelTimes:
    """One file by one pixel path. Lists have a time for each repeat."""

    file: str
    form: str  # "pillow" or "native"
    sha256: str = ""  # of the uint8 [S, S, 3]
    whole_ms: list[float] = field(default_factory=list)
    decode_ms: list[float] = field(default_factory=list)  # the part of it until all is RGB


def forms() -> tuple[PixelPath, ...]:
    """Pillow's, and the native one where its library was built."""
    best = pixel_path()
    return (PLAIN,) if best is PLAIN else (PLAIN, best)


def measure_pixels(
    files: Sequence[str | os.PathLike[str]],
    repeat: int = 5,
    rule: SquareRule = _RULE,
    chosen: Sequence[PixelPath] = (),
) -> list[PixelTimes]:
    """The times of the files in their order, each by every path in `chosen`; by default by all. Raises ImageError."""
    clocks = [_Clock(form) for form in chosen or forms()]
    results = {(file, clock.name): PixelTimes(os.fspath(file), clock.name) for file in files for clock in clocks}
    for timed in (False, *[True] * repeat):
        for file in files:
            for clock in clocks:
                _play(Path(file), rule, clock, results[file, clock.name], timed)
    return list(results.values())


def _play(file: Path, rule: SquareRule, clock: _Clock, result: PixelTimes, timed: bool) -> None:
    started = time.perf_counter()
    pixels = load_pixels(file, rule, path=clock.path)
    ended = time.perf_counter()
    result.sha256 = hashlib.sha256(pixels.tobytes()).hexdigest()
    if timed:
        result.whole_ms.append(1e3 * (ended - started))
        result.decode_ms.append(1e3 * (clock.decoded - started))


class _Clock:
    """A pixel path that notes when it has decoded."""

    def __init__(self, path: PixelPath) -> None:
        self.name, self._decode = path.name, path.decode
        self.path = PixelPath(path.name, self.decode, path.square)
        self.decoded = 0.0

    def decode(self, picture: Image.Image) -> Image.Image | Pixels:
        rgb = self._decode(picture)
        self.decoded = time.perf_counter()
        return rgb
