"""A decoded picture of any mode in, Pillow's RGB out, by one rule a mode; with warnings where that surely misleads."""

from __future__ import annotations

import numpy as np
from PIL import Image

from qalign_fast.errors import ImageError
from qalign_fast.pixels.limits import LIMITS, PictureLimits, Warn, unheard

_HIGHEST = 65_535  # of 16 bits
_DARK = 1 << 14  # values that all lie below it have at most 14 of the 16 bits
_DARK_BYTE = 64  # the same of 8 bits


def to_rgb(
    picture: Image.Image, limits: PictureLimits = LIMITS, *, name: str = "a picture", warn: Warn = unheard
) -> Image.Image:
    """RGB as Pillow's convert: palettes looked up, CMYK inverted; of 16 bits the high byte counts.

    Floats on 0..1 count as 0..255. Alpha is dropped, or laid over the limits' background. Raises ImageError for floats
    on another scale.
    """
    if picture.mode.startswith("I"):
        picture = _narrow(picture, warn)
    elif picture.mode == "F":
        picture = _on_255(picture, name, warn)
    if picture.has_transparency_data:
        if limits.background is not None:
            return _over(picture, limits.background)
        _warn_of_hidden(picture, warn)
    if isinstance(picture.info.get("transparency"), bytes):  # one alpha for each colour of a palette
        picture = picture.copy()
        del picture.info["transparency"]  # Pillow would warn that it drops it
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def warn_of_dark(picture: Image.Image, warn: Warn) -> None:
    """For colours of 16 bits, of which the high bytes are there: warns where these say that fewer bits were meant."""
    colours = (band for band in picture.getbands() if band != "A")
    highest = max(int(picture.getchannel(band).getextrema()[1]) for band in colours)  # type: ignore[arg-type]
    if highest < _DARK_BYTE:
        _warn_of_bits(256 * highest + 255, warn)


def _warn_of_bits(highest: int, warn: Warn) -> None:
    bits = max(8, highest.bit_length())
    warn(f"its largest value is {highest} of {_HIGHEST}, so it comes out dark; does it hold {bits} bits in 16?")


def _narrow(picture: Image.Image, warn: Warn) -> Image.Image:
    """L, or LA where one value stands for what is transparent. Pillow would clip, not scale, 16 and 32 bits to 8."""
    wide = np.asarray(picture)
    low, high = int(wide.min()), int(wide.max())
    if 0 < high < _DARK:
        _warn_of_bits(high, warn)
    if low < 0 or high > _HIGHEST:
        warn(f"its values go from {low} to {high}; they were clipped to 0..{_HIGHEST}")
        wide = np.clip(wide, 0, _HIGHEST)
    grey = Image.fromarray((wide >> 8).astype(np.uint8))
    if "transparency" in picture.info:
        grey.putalpha(Image.fromarray(wide != picture.info["transparency"]).convert("L"))
    return grey


def _on_255(picture: Image.Image, name: str, warn: Warn) -> Image.Image:
    """F with values on 0..255, by the range of those that are there."""
    values = np.asarray(picture)
    low, high = float(values.min()), float(values.max())
    scale = 255 if high < 255.5 / 255 else 1
    if not (low * scale > -0.5 and high * scale < 255.5):  # also where one is not a number
        raise ImageError(f"{name}: its values go from {low:g} to {high:g}; floats are read on 0..1 and on 0..255")
    if scale == 1 and high < _DARK_BYTE:
        warn(f"its largest value is {high:g} of 255, so it comes out dark; floats that go beyond 1 count as 0..255")
    return picture if scale == 1 else Image.fromarray(values * np.float32(scale))


def _over(picture: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    ground = Image.new("RGBA", picture.size, (*colour, 255))
    ground.alpha_composite(picture.convert("RGBA"))
    return ground.convert("RGB")


def _warn_of_hidden(picture: Image.Image, warn: Warn) -> None:
    if warn is unheard:
        return
    try:
        alpha = picture.getchannel("A") if "A" in picture.getbands() else picture.convert("RGBA").getchannel("A")
    except (TypeError, ValueError):  # more of it than the palette has colours
        return
    hidden = sum(alpha.histogram()[:128]) / (picture.width * picture.height)
    if hidden >= 0.5:
        warn(f"alpha hides {hidden:.0%} of it, and its hidden colours were scored; a background covers them")
