"""A picture and a severity in, the damaged picture out: technical quality is trained and tested on these.

A severity s runs from 0 (nothing to see) to 1 (ruined). Equal steps look equal: parameters that act multiplicatively (a
blur's width, a noise's deviation) grow geometrically with s. All take and return RGB pictures, of the same size.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

Distortion = Callable[[Image.Image, float, np.random.Generator], Image.Image]

_SMOOTH = (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR, Image.Resampling.LANCZOS)


def geometric(low: float, high: float, s: float) -> float:
    """low at s = 0 and high at s = 1; equal steps of s multiply by equal factors."""
    return float(low * (high / low) ** s)


def blur(picture: Image.Image, s: float, rng: np.random.Generator) -> Image.Image:
    """Gaussian blur, its sigma .4 to 6 pixels if the long side has 512."""
    sigma = geometric(0.4, 6, s) * max(picture.size) / 512
    return picture.filter(ImageFilter.GaussianBlur(sigma))


def noise(picture: Image.Image, s: float, rng: np.random.Generator) -> Image.Image:
    """White Gaussian noise, its deviation 2 to 60 of 255."""
    grain = rng.standard_normal((picture.height, picture.width, 3), np.float32)
    return _clipped(np.asarray(picture, np.float32) + geometric(2, 60, s) * grain)


def jpeg(picture: Image.Image, s: float, rng: np.random.Generator) -> Image.Image:
    """JPEG compression at quality 90 to 5."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=round(geometric(90, 5, s)))
    return Image.open(buffer).convert("RGB")


def rescale(picture: Image.Image, s: float, rng: np.random.Generator) -> Image.Image:
    """The picture is made 1.2 to 8 times smaller and enlarged again, each by a random filter."""
    factor = geometric(1.2, 8, s)
    small = (max(1, round(picture.width / factor)), max(1, round(picture.height / factor)))
    down, up = rng.choice(len(_SMOOTH), 2)
    return picture.resize(small, _SMOOTH[down]).resize(picture.size, _SMOOTH[up])


def exposure(picture: Image.Image, s: float, rng: np.random.Generator) -> Image.Image:
    """Exposure of .3 to 3 stops too much or too little."""
    stops = (0.3 + 2.7 * s) * rng.choice((-1, 1))
    return _clipped(np.asarray(picture, np.float32) * 2**stops)


def contrast(picture: Image.Image, s: float, rng: np.random.Generator) -> Image.Image:
    """Contrast around the mean is reduced to .8 to .08 of what it was."""
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
