"""An RGB picture in, a padded and resized square out, by Pillow: the bits that every other way must give."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from qalign_fast.pixels.rule import Pixels

_BAND = 256  # rows padded and resized at a time


def pad_and_resize(rgb: Image.Image | Pixels, side: int, pad: tuple[int, int, int]) -> Pixels:
    """Pillow's RGB or uint8 [H, W, 3 or 4], of which 3 count -> uint8 [side, side, 3].

    The picture is padded to a square around its middle and resized by antialiased bicubic.

    The result has the same bits as if the whole picture were padded first. Pillow resizes rows before columns, with 8
    bits between. So the rows above and below are added when rows are short, and the sides are padded band by band.
    """
    picture = Image.fromarray(rgb[..., :3]) if isinstance(rgb, np.ndarray) else rgb
    bicubic = Image.Resampling.BICUBIC
    width, height = picture.size
    square = max(width, height)
    left, top = (square - width) // 2, (square - height) // 2
    narrow = Image.new("RGB", (side, square), pad)  # rows resized, columns not yet
    if width == square:
        narrow.paste(picture.resize((side, height), bicubic), (0, top))
    else:
        for start in range(0, height, _BAND):
            rows = min(_BAND, height - start)
            band = Image.new("RGB", (square, rows), pad)
            band.paste(picture.crop((0, start, width, start + rows)), (left, 0))
            narrow.paste(band.resize((side, rows), bicubic), (0, start))
    return np.asarray(narrow.resize((side, side), bicubic))
