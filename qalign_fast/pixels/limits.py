"""What a picture or a clip may be, and by which rule it is read where that is not upstream's.

Limits are checked before pixels are decoded. A clip's frames are checked again when they are decoded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from qalign_fast.errors import ImageError, OptionError, QAlignError, VideoError

MAX_BYTES = 64 << 20
MAX_STREAM_BYTES = 1 << 30  # of a clip that can only be held in memory: it comes through a pipe
MAX_PIXELS = 120_000_000  # phones take pictures of 108 million
MAX_SIDE = 65_535  # the resize needs buffers of this length
MAX_FPS = 1000.0  # of a clip, to score
MORE_FORMATS = ("heic", "jxl")

Warn: TypeAlias = Callable[[str], None]  # hears what the reader of a score should know


def unheard(_: str) -> None:
    """For callers that want no warnings."""


@dataclass(frozen=True)
class PictureLimits:
    """The limits of a picture and of a clip, and how they are read.

    max_bytes: of a file. None is MAX_BYTES for a picture, whose bytes are all held, and no limit for a clip, which is
        read as a stream (MAX_STREAM_BYTES where it comes through a pipe).
    max_pixels: width times height of a picture, or of one frame.
    max_frames, max_seconds: of a whole clip, not of what is scored of it. None: no limit.
    exif_rotate: whether a picture is turned as its EXIF orientation says.
    allow_truncated: whether a picture that is cut off is scored as far as it goes, with a warning.
    background: red, green, blue, 0..255, behind a picture's transparent parts. None: alpha is dropped, as upstream.
    tone_map: whether HDR clips (PQ, HLG) become SDR; otherwise their values are taken as they are, as upstream does.
    formats: "heic" and "jxl" are read too; the extra `formats` has their parsers.

    Raises OptionError for a background that is no colour, and for a format that is not one of the two.
    """

    max_bytes: int | None = None
    max_pixels: int = MAX_PIXELS
    max_frames: int | None = None
    max_seconds: float | None = None
    exif_rotate: bool = False
    allow_truncated: bool = False
    background: tuple[int, int, int] | None = None
    tone_map: bool = False
    formats: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        colour = self.background
        if colour is not None and not (
            isinstance(colour, tuple) and len(colour) == 3 and all(isinstance(c, int) and 0 <= c <= 255 for c in colour)
        ):
            raise OptionError(f"background is {colour!r}; expected three whole numbers, 0 to 255: (255, 255, 255)")
        for name in self.formats:
            if name not in MORE_FORMATS:
                raise OptionError(f"format {name!r} is not one that can be added; there are: {', '.join(MORE_FORMATS)}")

    @property
    def picture_bytes(self) -> int:
        """How many bytes a picture's file may have."""
        return MAX_BYTES if self.max_bytes is None else self.max_bytes

    @property
    def stream_bytes(self) -> int:
        """How many bytes a clip may have that comes through a pipe."""
        return MAX_STREAM_BYTES if self.max_bytes is None else self.max_bytes


LIMITS = PictureLimits()  # where a user gives none


def check_bytes(count: int, name: str, most: int | None, kind: type[QAlignError] = ImageError) -> None:
    """Raises `kind` for no bytes at all, and for more than `most`. None: no limit."""
    if count == 0:
        raise kind(f"{name}: empty, zero bytes")
    if most is not None and count > most:
        raise kind(f"{name}: over the limit of {most} bytes (max_bytes)")


def check_size(size: tuple[int, int], name: str, max_pixels: int, kind: type[QAlignError] = ImageError) -> None:
    """Raises `kind` for a width and height without pixels, with more than max_pixels, or with a side over MAX_SIDE."""
    width, height = size
    if width < 1 or height < 1:
        raise kind(f"{name}: {width}x{height} has no pixels")
    if width * height > max_pixels:
        raise kind(f"{name}: {width}x{height} is over the limit of {max_pixels} pixels (max_pixels)")
    if max(size) > MAX_SIDE:
        raise kind(f"{name}: {width}x{height} is over the limit of {MAX_SIDE} pixels a side")


def check_fps(fps: float) -> None:
    """Raises VideoError for what is no number of frames a second."""
    if not 0 < fps <= MAX_FPS:
        raise VideoError(f"fps is {fps}; expected a positive number of frames a second, at most {MAX_FPS:g}")
