"""What a picture or a clip may be: limits that are checked before its pixels are decoded.

A clip's frames are checked again when they are decoded.
"""

from __future__ import annotations

from dataclasses import dataclass

from qalign_fast.errors import ImageError, QAlignError

MAX_BYTES = 64 << 20
MAX_PIXELS = 100_000_000
MAX_SIDE = 65_535  # the resize needs buffers of this length


@dataclass(frozen=True)
class PictureLimits:
    """Limits of a picture and of a clip, and whether a picture's EXIF orientation is applied.

    max_bytes: of a file. None is MAX_BYTES for a picture, whose bytes are all held, and no limit for a clip, which is
    read as a stream.
    max_pixels: width times height of a picture, or of one frame.
    """

    max_bytes: int | None = None
    max_pixels: int = MAX_PIXELS
    exif_rotate: bool = False

    @property
    def picture_bytes(self) -> int:
        """How many bytes a picture's file may have."""
        return MAX_BYTES if self.max_bytes is None else self.max_bytes


LIMITS = PictureLimits()  # where a user gives none


def check_bytes(count: int, name: str, most: int, kind: type[QAlignError] = ImageError) -> None:
    """Raises `kind` for no bytes at all, and for more than `most`."""
    if count == 0:
        raise kind(f"{name}: empty, zero bytes")
    if count > most:
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
