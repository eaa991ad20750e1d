"""How a picture becomes a model's input: what every family says of its pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from PIL import Image

    from qalign_fast.pixels.picture import Pixels


class PixelRule(Protocol):
    """One family's rule, with its numbers; frozen."""

    def apply(self, rgb: Image.Image | Pixels, path: Any) -> Pixels:
        """Pillow's RGB, or uint8 [H, W, 3 or 4] of which 3 count -> uint8 [H', W', 3], along a `PixelPath`."""
        ...
