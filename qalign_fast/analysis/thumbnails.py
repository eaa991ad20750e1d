"""A picture's file in, a small JPEG as a data: URI out; nothing for what is no picture here."""

from __future__ import annotations

from base64 import b64encode
from io import BytesIO
from pathlib import Path

from qalign_fast.errors import QAlignError
from qalign_fast.pixels.limits import LIMITS

SIDE = 192  # pixels: twice of what the page shows, for sharp screens
QUALITY = 72


def make_thumbnail(source: str) -> str | None:
    """At most SIDE pixels wide and high. None where the file is not there, is no picture, or is over a limit."""
    try:
        return f"data:image/jpeg;base64,{b64encode(_small(source)).decode('ascii')}"
    except QAlignError:
        return None


def _small(source: str) -> bytes:
    from qalign_fast.pixels.damage import decoding
    from qalign_fast.pixels.encoded import read_bytes
    from qalign_fast.pixels.formats import open_picture
    from qalign_fast.pixels.rgb import to_rgb

    data = read_bytes(Path(source), source, LIMITS.picture_bytes)
    picture = open_picture(data, source, LIMITS)
    with decoding(picture, source):
        picture.draft("RGB", (SIDE, SIDE))
        picture.load()
    small = to_rgb(picture, name=source)
    small.thumbnail((SIDE, SIDE))
    small.save(out := BytesIO(), "JPEG", quality=QUALITY, optimize=True)
    return out.getvalue()
