"""Copies a caller's picture, so that the caller may change it while it waits to be read."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
from PIL import Image

from qalign_fast.pixels.limits import PictureLimits, check_size
from qalign_fast.pixels.picture import Picture, check_array, decoding, enough_memory, picture_name, read_bytes, upright


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A picture that waits, what errors call it (None: what it is called itself), and the bytes that it holds."""

    picture: Picture
    name: str | None = None
    bytes: int = 0


def as_it_is(picture: Picture, _: PictureLimits) -> Snapshot:
    """For a picture that is read at once."""
    return Snapshot(picture)


def snapshot(picture: Picture, limits: PictureLimits) -> Snapshot:
    """Copies an array's and a PIL picture's pixels, and reads an open file. A path stays a path.

    Raises ImageError for what is no picture, for one over the limits, and for a PIL picture that cannot be decoded.
    """
    if isinstance(picture, str | os.PathLike):
        return Snapshot(picture)
    name = picture_name(picture)
    if isinstance(picture, np.ndarray):
        check_array(picture, name, limits)
        with enough_memory(picture.shape[1::-1], name):
            copy = np.array(picture)
        return Snapshot(copy, name, copy.nbytes)
    if isinstance(picture, Image.Image):
        check_size(picture.size, name, limits.max_pixels)
        with decoding(picture, name):
            turned = upright(picture, limits)  # now, because a copy has not all formats' EXIF
            copied = turned.copy() if turned is picture else turned
        return Snapshot(copied, name, 4 * copied.width * copied.height)  # as Pillow holds most modes
    data = read_bytes(picture, name, limits)
    return Snapshot(data, name, len(data))
