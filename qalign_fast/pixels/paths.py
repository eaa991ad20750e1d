"""The paths from an opened file to pixels: Pillow alone, and a native resize where its library was built.

All paths give the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image

from qalign_fast.pixels.square import pad_and_resize

if TYPE_CHECKING:
    from ctypes import CDLL

    from qalign_fast.pixels.rule import Pixels


class PixelPath(Protocol):
    """One way from an opened file to pixels."""

    @property
    def name(self) -> str: ...

    def decode(self, picture: Image.Image) -> Image.Image | Pixels:
        """RGB of a picture that was just opened and that nobody else holds: Pillow's, or uint8 [H, W, 4]."""

    def square(self, rgb: Image.Image | Pixels, side: int, pad: tuple[int, int, int]) -> Pixels:
        """Pillow's RGB or uint8 [H, W, 3 or 4], of which 3 count -> uint8 [side, side, 3], as `pad_and_resize`."""


@cache
def pixel_path() -> PixelPath:
    """The fastest path that there is here, found once a process."""
    from qalign_kernels.cpu import native

    library = native.load()
    return PLAIN if library is None else NativePath(library)


def to_rgb(picture: Image.Image) -> Image.Image:
    """RGB as Pillow's convert: alpha is dropped, palettes looked up, CMYK inverted; 16-bit grey keeps its high byte."""
    if picture.mode.startswith("I"):  # Pillow would clip, not scale, these to 8 bits
        wide = np.asarray(picture).astype(np.int64)
        return Image.fromarray((np.clip(wide, 0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    return picture if picture.mode == "RGB" else picture.convert("RGB")


class _PlainPath:
    name = "pillow"

    def decode(self, picture: Image.Image) -> Image.Image:
        picture.load()
        return to_rgb(picture)

    def square(self, rgb: Image.Image | Pixels, side: int, pad: tuple[int, int, int]) -> Pixels:
        return pad_and_resize(Image.fromarray(rgb[..., :3]) if isinstance(rgb, np.ndarray) else rgb, side, pad)


PLAIN = _PlainPath()


@dataclass(frozen=True)
class NativePath:
    """qalign_kernels' library, which holds csrc/resize.cpp."""

    library: CDLL
    name: str = "native"

    def decode(self, picture: Image.Image) -> Image.Image | Pixels:
        from qalign_kernels.cpu.pillow_memory import decode_whole

        whole = decode_whole(picture)
        return PLAIN.decode(picture) if whole is None else whole

    def square(self, rgb: Image.Image | Pixels, side: int, pad: tuple[int, int, int]) -> Pixels:
        from qalign_kernels.cpu.resize import resize_native

        return resize_native(self.library, rgb, side, pad)
