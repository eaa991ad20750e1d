"""An opened picture and its file's bytes in, how many frames or pages it has out.

Pillow counts those of GIF and TIFF by reading every one of them, which takes minutes where a file has millions. Only
what leads from one to the next is read here: https://www.w3.org/Graphics/GIF/spec-gif89a.txt, TIFF 6.0 section 2.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

_MOST_STEPS = 500_000  # blocks or pages that are walked through, in half a second at most
_FRAME, _EXTENSION = 0x2C, 0x21  # what a block of GIF begins with
_BIG_TIFF = 43  # its offsets have 8 bytes


def count_frames(data: bytes, opened: Image.Image) -> int:
    """At least 1. Those behind a place that cannot be read, or behind very many others, do not count."""
    if opened.format == "GIF":
        return max(1, _gif_frames(data))
    if opened.format == "TIFF":
        return max(1, _tiff_pages(data))
    return int(getattr(opened, "n_frames", 1))


def _gif_frames(data: bytes) -> int:
    frames, in_blocks = 0, False
    try:
        at = 13 + _palette_bytes(data[10])
        for _ in range(_MOST_STEPS):
            if in_blocks:  # each begins with its length, the last one's is 0
                in_blocks = data[at] > 0
                at += data[at] + 1
            elif data[at] == _FRAME:
                frames += 1
                at += 11 + _palette_bytes(data[at + 9])
                in_blocks = True
            elif data[at] == _EXTENSION:
                at += 2
                in_blocks = True
            else:
                break
    except IndexError:  # it is cut off
        pass
    return frames


def _palette_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _tiff_pages(data: bytes) -> int:
    order = "<" if data.startswith(b"II") else ">"
    pages: set[int] = set()  # where each begins: a file may lead in a circle
    try:
        big = struct.unpack_from(f"{order}H", data, 2)[0] == _BIG_TIFF
        count, offset = (f"{order}Q", f"{order}Q") if big else (f"{order}H", f"{order}I")
        (at,) = struct.unpack_from(offset, data, 8 if big else 4)
        while at and at not in pages and len(pages) < _MOST_STEPS:
            (entries,) = struct.unpack_from(count, data, at)
            pages.add(at)
            (at,) = struct.unpack_from(offset, data, at + (8 + 20 * entries if big else 2 + 12 * entries))
    except (struct.error, OverflowError):  # it is cut off
        pass
    return len(pages)
