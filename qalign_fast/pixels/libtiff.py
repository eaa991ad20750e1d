"""Keeps libtiff quiet: it writes what is wrong with a file to stderr, on its own."""

from __future__ import annotations

import ctypes
from contextlib import suppress


def silence_libtiff() -> None:
    """Keeps libtiff's errors off stderr. Pillow raises them as well, so that they reach a row."""
    from PIL import _imaging

    with suppress(AttributeError, OSError):  # a Pillow without libtiff, or with one that is hidden in it
        ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)  # of the libtiff that Pillow was linked with
