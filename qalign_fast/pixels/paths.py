"""The paths from an opened file to pixels: Pillow alone, and a native one where its library was built.

Both paths give the same bits.
"""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from qalign_fast.pixels.rule import PixelPath
from qalign_fast.pixels.square import pad_and_resize

if TYPE_CHECKING:
    from ctypes import CDLL

    from qalign_fast.pixels.rule import Pixels


@cache
def pixel_path() -> PixelPath:
    """The fastest path that there is here, found once a process."""
    from qalign_kernels.cpu import native

    library = native.load()
    return PLAIN if library is None else native_path(library)


def native_path(library: CDLL) -> PixelPath:
    """By qalign_kernels' library, which holds csrc/resize.cpp."""
    from qalign_kernels.cpu.resize import resize_native

    return PixelPath("native", _decode_whole, partial(resize_native, library))


def to_rgb(picture: Image.Image) -> Image.Image:
    """RGB as Pillow's convert: alpha is dropped, palettes looked up, CMYK inverted; 16-bit grey keeps its high byte."""
    if picture.mode.startswith("I"):  # Pillow would clip, not scale, these to 8 bits
        wide = np.asarray(picture).astype(np.int64)
        return Image.fromarray((np.clip(wide, 0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _decode(picture: Image.Image) -> Image.Image:
    picture.load()
    return to_rgb(picture)


def _decode_whole(picture: Image.Image) -> Image.Image | Pixels:
    """Into memory that is one piece, where the picture is a JPEG."""
    from qalign_kernels.cpu.pillow_memory import decode_whole

    whole = decode_whole(picture)
    return _decode(picture) if whole is None else whole


PLAIN = PixelPath("pillow", _decode, pad_and_resize)
