"""A picture's file in, a small JPEG as a data: URI out; nothing for what is no picture here."""

from __future__ import annotations

from base64 import b64encode
from io import BytesIO
from pathlib import Path

from qalign_fast.errors import QAlignError
from qalign_fast.pixels.limits import LIMITS

SIDE = 192  # pixels: twice of what the page shows, for sharp screens
QUALITY = 72


def make_thumbnail(source: str, folder: str | None = None) -> str | None:
    """At most SIDE pixels wide and high. None where the file is not there, is no picture, or is over a limit.

    A relative source is looked for in `folder`, then in the working directory.
    """
    for path in dict.fromkeys([Path(folder or "", source), Path(source)]):
        try:
            return f"data:image/jpeg;base64,{b64encode(_small(path)).decode('ascii')}"
        except QAlignError:
            pass
    return None


def _small(path: Path) -> bytes:
    from qalign_fast.pixels.damage import decoding
    from qalign_fast.pixels.encoded import read_bytes
    from qalign_fast.pixels.formats import open_picture
    from qalign_fast.pixels.rgb import to_rgb

    data = read_bytes(path, str(path), LIMITS.picture_bytes)
    picture = open_picture(data, str(path), LIMITS)
    with decoding(picture, str(path)):
        picture.draft("RGB", (SIDE, SIDE))
        picture.load()
    small = to_rgb(picture, name=str(path))
    small.thumbnail((SIDE, SIDE))
    small.save(out := BytesIO(), "JPEG", quality=QUALITY, optimize=True)
    return out.getvalue()
