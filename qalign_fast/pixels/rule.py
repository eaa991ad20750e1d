"""How a picture becomes a model's input: each family's sizes hold one such rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt
    from PIL import Image


Pixels: TypeAlias = "npt.NDArray[np.uint8]"


@dataclass(frozen=True)
class PixelPath:
    """One way from an opened file to pixels.

    decode: takes a picture that was just opened and that nobody else uses. Returns it, decoded, or uint8 [H, W, 4],
        RGB and a byte without meaning.
    square: Pillow's RGB or uint8 [H, W, 3 or 4], of which 3 count, a side and the padding's colour
        -> uint8 [side, side, 3], as `pad_and_resize`.
    """

    name: str
    decode: Callable[[Image.Image], Image.Image | Pixels]
    square: Callable[[Image.Image | Pixels, int, tuple[int, int, int]], Pixels]


class PixelRule(Protocol):
    """A family's rule with its numbers; frozen."""

    @property
    def most_bytes(self) -> int:
        """How many bytes a picture's pixels take at most."""
        ...

    def apply(self, rgb: Image.Image | Pixels, path: PixelPath) -> Pixels:
        """Pillow's RGB, or uint8 [H, W, 3 or 4] of which 3 count -> uint8 [H', W', 3]."""
        ...


@dataclass(frozen=True)
class SquareRule:
    """A picture is padded to a square with the mean colour, resized to `side` and normalized with mean and std.

    Mean and standard deviation are of pixels on 0..1, in the order red, green, blue.
    """

    side: int  # pixels
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def pad(self) -> tuple[int, int, int]:
        """The colour of the padding, 0..255. As upstream computes it, it is the mean, rounded down."""
        r, g, b = (int(255 * m) for m in self.mean)
        return r, g, b

    @property
    def most_bytes(self) -> int:
        return 3 * self.side**2

    def apply(self, rgb: Image.Image | Pixels, path: PixelPath) -> Pixels:
        """uint8 [S, S, 3]. Normalization is left to the model, whose first layer has it folded in."""
        return path.square(rgb, self.side, self.pad)
