"""Copies a caller's picture, so that the caller may change it while it waits to be read."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from qalign_fast.pixels.arrays import check_array, is_array, is_tensor
from qalign_fast.pixels.damage import enough_memory
from qalign_fast.pixels.device_square import for_another_thread
from qalign_fast.pixels.encoded import is_encoded, plain, read_bytes
from qalign_fast.pixels.limits import PictureLimits, unheard
from qalign_fast.pixels.picture import Picture, decode_callers


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A picture that waits, what errors call it (None: what it is called itself), and the bytes that it holds."""

    picture: Picture
    name: str | None = None
    bytes: int = 0
    ready: Callable[[], object] = bool  # called before it is read: waits until a copy on a device is made


def as_it_is(picture: Picture, _: PictureLimits) -> Snapshot:
    """For a picture that is read at once."""
    return Snapshot(picture)


def snapshot(picture: Picture, limits: PictureLimits) -> Snapshot:
    """Copies an array's, a tensor's and a PIL picture's pixels, and reads an open file. A path stays a path.

    Raises ImageError for what is no picture, for one over the limits, and for a PIL picture that cannot be decoded.
    """
    if isinstance(picture, os.PathLike):
        return Snapshot(picture)
    media, name = plain(picture)
    if isinstance(media, str | os.PathLike):
        return Snapshot(media, None if media is picture else name)
    if isinstance(media, Image.Image):
        turned = decode_callers(media, limits, name, unheard)  # turned now, because a copy has not all formats' EXIF
        copied = turned.copy() if turned is media else turned
        return Snapshot(copied, name, 4 * copied.width * copied.height)  # as Pillow holds most modes
    if is_array(media):
        return _copied(media, name, limits)
    if not is_encoded(media):
        return Snapshot(media, name)  # its error comes when it is read
    data = read_bytes(media, name, limits.picture_bytes)
    return Snapshot(data, name, len(data))


def _copied(media: Any, name: str, limits: PictureLimits) -> Snapshot:
    media = media if is_tensor(media) else np.asarray(media)
    check_array(media, name, limits.max_pixels)
    with enough_memory(media.shape[-2:], name):
        copy = media.detach().clone() if is_tensor(media) else np.array(media)
    return Snapshot(copy, name, copy.nbytes, for_another_thread(copy) if is_tensor(copy) else bool)
