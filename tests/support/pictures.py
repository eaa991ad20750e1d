"""Pictures, and upstream's pixels of them."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from PIL import Image

from qalign_fast.families.mplug_owl2.sizes import pixel_rule

RULE = pixel_rule(448)


EDGES = [(1, 1), (1, 5000), (5000, 1), (447, 448), (448, 448), (449, 448), (448, 447), (448, 449), (2, 3), (1000, 448)]


def pad_then_resize(picture: Image.Image, side: int = 448) -> np.ndarray:
    """Upstream's way: pads the picture to a square, then resizes it by Pillow's bicubic filter."""
    square = max(picture.size)
    padded = Image.new("RGB", (square, square), (122, 116, 104))
    padded.paste(picture, ((square - picture.width) // 2, (square - picture.height) // 2))
    return np.asarray(padded.resize((side, side), Image.Resampling.BICUBIC))


def random_picture(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


def sizes_300() -> list[tuple[int, int]]:
    rng = np.random.default_rng(0)
    drawn = [np.exp(rng.uniform(0, np.log(1500), 2)).astype(int) + 1 for _ in range(290)]
    return [*EDGES, *((int(w), int(h)) for w, h in drawn), (1700, 2100), (2600, 300)]  # the last: several bands


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def wide_png(values: np.ndarray, colour: int, *chunks: bytes) -> bytes:
    """A PNG of 16 bits. `colour`: 0 grey, 2 RGB, 4 grey and alpha, 6 RGBA."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))
    data = png_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + data + png_chunk(b"IEND", b"")
