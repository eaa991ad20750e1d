"""A count in, that many pictures out, the same every time, to calibrate precisions on and to judge them by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from qalign_export.distortions import DISTORTIONS

BUNDLED = "photographs and dead leaves, pristine and distorted"  # `bundled_pictures`, as a report names them
_PHOTOGRAPHS = Path(__file__).parent / "photographs"  # coffee by Rachel Michetti (CC0), rocket by NASA (public domain)
_SEVERITIES = (0.3, 0.7)
VERSIONS = 1 + len(DISTORTIONS) * len(_SEVERITIES)  # of each scene, one after another


def bundled_pictures(count: int) -> list[Image.Image]:
    """The pictures that precisions are judged by: two photographs and generated scenes, none of them calibration's."""
    photographs = [Image.open(path).convert("RGB") for path in sorted(_PHOTOGRAPHS.iterdir())]
    return _versions(photographs, count, np.random.default_rng(1))


def generate_pictures(count: int) -> list[Image.Image]:
    """The pictures that precisions are calibrated on. They have the statistics of natural scenes."""
    return _versions([], count, np.random.default_rng(0))


def _versions(scenes: list[Image.Image], count: int, rng: np.random.Generator) -> list[Image.Image]:
    """The scenes, then generated ones, each of them pristine and with every distortion at every severity."""
    kinds = [None, *((name, s) for name in DISTORTIONS for s in _SEVERITIES)]
    pictures: list[Image.Image] = []
    while len(pictures) < count:
        scene = scenes.pop(0) if scenes else dead_leaves(rng)
        pictures += [scene if kind is None else DISTORTIONS[kind[0]](scene, kind[1], rng) for kind in kinds]
    return pictures[:count]


def dead_leaves(rng: np.random.Generator, width: int = 560, height: int = 420) -> Image.Image:
    """Discs that cover each other, their radii r distributed as r^-3: edges and spectrum are like a photograph's.

    Source: Lee, Mumford and Huang, "Occlusion models for natural images", IJCV 2001.
    """
    picture = Image.new("RGB", (width, height), _colour(rng))
    draw = ImageDraw.Draw(picture)
    smallest, largest = 3.0, 160.0
    for u in rng.random(2500):
        radius = (smallest**-2 - u * (smallest**-2 - largest**-2)) ** -0.5
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_colour(rng))
    return picture


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    grey, tint = rng.normal(118, 55), rng.normal(0, 22, 3)
    r, g, b = np.clip(grey + tint, 0, 255).astype(int).tolist()
    return r, g, b
