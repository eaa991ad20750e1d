"""A count and a size in, JPEG files out: what `pipeline` and `pixels` read where no files are given.

The pictures are dead leaves with a sensor's noise. At quality 90 they have about .26 bytes a pixel, and a decoder has
as much work with them as with photographs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from qalign_export.pictures import dead_leaves

_NOISE = 4  # of 255
_QUALITY = 90


def generated_pictures(folder: Path, count: int, width: int, height: int) -> list[str]:
    """The paths of `count` files below the folder. Missing ones are made, the same every time."""
    place = folder / f"pictures-{width}x{height}"
    place.mkdir(parents=True, exist_ok=True)
    paths = [place / f"{i:03}.jpg" for i in range(count)]
    for i, path in enumerate(paths):
        if not path.exists():
            partial = path.with_suffix(".partial")
            _picture(np.random.default_rng(i), width, height).save(partial, "jpeg", quality=_QUALITY)
            partial.replace(path)
    return [str(path) for path in paths]


def _picture(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    leaves = np.asarray(dead_leaves(rng, width, height))
    noisy = leaves + rng.normal(0, _NOISE, leaves.shape)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
