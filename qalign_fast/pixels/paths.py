"""The paths from an opened file to pixels: Pillow alone, and a native one where its library was built.

Both paths give the same bits.
"""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING

from qalign_fast.pixels.rule import PixelPath
from qalign_fast.pixels.square import pad_and_resize

if TYPE_CHECKING:
    from ctypes import CDLL

    from PIL import Image

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


def _decode(picture: Image.Image) -> Image.Image:
    picture.load()
    return picture


def _decode_whole(picture: Image.Image) -> Image.Image | Pixels:
    """Into memory that is one piece, where the picture is a JPEG."""
    from qalign_kernels.cpu.pillow_memory import decode_whole

    whole = decode_whole(picture)
    return _decode(picture) if whole is None else whole


PLAIN = PixelPath("pillow", _decode, pad_and_resize)
