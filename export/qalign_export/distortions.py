"""A picture and a severity in, the picture damaged that much out: what technical quality is trained and tested on.

A severity s runs from 0 (nothing to see) to 1 (ruined), on a scale that is even to the eye: parameters that act
multiplicatively (a blur's width, a noise's deviation) grow geometrically with s.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

Distortion = Callable[[Image.Image, float, np.random.Generator], Image.Image]

_SMOOTH = (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR, Image.Resampling.LANCZOS)


def geometric(low: float, high: float, s: float) -> float:
    """low at s = 0, high at s = 1, growing by a constant factor between."""
    return float(low * (high / low) ** s)


def blur(picture: Image.Image, s: float, rng: np.random.Generator) -> Image.Image:
    """Gaussian, sigma .4 to 6 pixels at 512 pixels a side."""
    sigma = geometric(0.4, 6, s) * max(picture.size) / 512
    return picture.filter(ImageFilter.GaussianBlur(sigma))


def noise(picture: Image.Image, s: float, rng: np.random.Generator) -> Image.Image:
    """White Gaussian, deviation 2 to 60 of 255."""
    grain = rng.standard_normal((picture.height, picture.width, 3), np.float32)
    return _clipped(np.asarray(picture, np.float32) + geometric(2, 60, s) * grain)


def jpeg(picture: Image.Image, s: float, rng: np.random.Generator) -> Image.Image:
    """Compressed at quality 90 to 5."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=round(geometric(90, 5, s)))
    return Image.open(buffer).convert("RGB")


def rescale(picture: Image.Image, s: float, rng: np.random.Generator) -> Image.Image:
    """Made 1.2 to 8 times smaller, and as large as before again."""
    factor = geometric(1.2, 8, s)
    small = (max(1, round(picture.width / factor)), max(1, round(picture.height / factor)))
    down, up = rng.choice(len(_SMOOTH), 2)
    return picture.resize(small, _SMOOTH[down]).resize(picture.size, _SMOOTH[up])


def exposure(picture: Image.Image, s: float, rng: np.random.Generator) -> Image.Image:
    """Up to three stops too bright or too dark."""
    stops = (0.3 + 2.7 * s) * rng.choice((-1, 1))
    return _clipped(np.asarray(picture, np.float32) * 2**stops)


def contrast(picture: Image.Image, s: float, rng: np.random.Generator) -> Image.Image:
    """Contrast around the mean lowered to .8 down to .08 of what it was."""
    x = np.asarray(picture, np.float32)
    mean = x.mean()
    return _clipped(mean + (x - mean) * geometric(0.8, 0.08, s))


DISTORTIONS: dict[str, Distortion] = {
    "blur": blur,
    "noise": noise,
    "jpeg": jpeg,
    "rescale": rescale,
    "exposure": exposure,
    "contrast": contrast,
}


def _clipped(x: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(x + 0.5, 0, 255).astype(np.uint8))
