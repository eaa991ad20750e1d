"""What a parser raises in, an error that names the picture out; a fault of ours passes as it is."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from qalign_fast.errors import ImageError, one_line

if TYPE_CHECKING:
    from PIL import Image

_PACKAGES = ("PIL", "pillow_heif")


class DamageError(Exception):
    """What a parser of ours raises for a damaged file. It becomes an ImageError, which names the picture."""


@contextmanager
def decoding(picture: Image.Image, name: str) -> Iterator[None]:
    """Around Pillow's decoding: what Pillow or its plugin raises becomes an ImageError. A fault of ours passes."""
    try:
        yield
    except MemoryError as error:
        raise _short_memory(picture.size, name) from error
    except Exception as error:
        if not in_pillow(error):
            raise
        kind = picture.format or "picture"
        raise ImageError(f"{name}: damaged or truncated {kind} ({one_line(error)})") from error


@contextmanager
def enough_memory(size: Sequence[int], name: str) -> Iterator[None]:
    """A picture that there is no memory for becomes an ImageError. `size`: width and height."""
    try:
        yield
    except MemoryError as error:
        raise _short_memory(size, name) from error


def in_pillow(error: Exception) -> bool:
    """Whether a file is to blame: Pillow or a plugin raised it, and not a function of ours, be it one that it called.

    A RecursionError says how deep the caller stands.
    """
    if isinstance(error, DamageError | RecursionError):
        return isinstance(error, DamageError)
    modules = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__))
    packages = [module.partition(".")[0] for module in modules]
    known = [package for package in packages if package in _PACKAGES or package.startswith("qalign_")]
    return bool(known) and known[-1] in _PACKAGES


def _short_memory(size: Sequence[int], name: str) -> ImageError:
    width, height = size
    return ImageError(f"{name}: not enough memory for {width}x{height} pixels")
