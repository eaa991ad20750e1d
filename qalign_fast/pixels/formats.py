"""A picture file's bytes in, Pillow's opened picture out, with our limits alone."""

from __future__ import annotations

import os
import struct
from contextlib import suppress
from functools import cache
from threading import Lock

from PIL import Image, ImageFile

from qalign_fast.errors import ImageError, one_line
from qalign_fast.pixels.damage import DamageError, in_pillow
from qalign_fast.pixels.limits import PictureLimits, check_size
from qalign_fast.pixels.parsers import JPEG_BEGIN, Parser, added, added_format, jpeg, pillows

_OTHER_FORMAT = (SyntaxError, IndexError, TypeError, struct.error)  # by these a parser of Pillow says so


def open_picture(data: bytes, name: str, limits: PictureLimits) -> ImageFile.ImageFile:
    """Opens a file's bytes; no pixel is decoded. Raises ImageError, and MissingExtraError for a format's parser.

    Pillow's own limit of pixels does not apply, nor does its warning: `Image.open`, which has them, is not called.
    """
    reason: Exception | None = None
    try:
        for parser in _parsers_of(data, limits):
            found = parser.begins(data[:16].ljust(16, b"\0"))
            if isinstance(found, str):  # why this Pillow cannot read it
                raise ImageError(f"{name}: {found}{_hint(data)}")
            if not found:
                continue
            try:
                opened = _opened(parser, data, name, limits)
            except _OTHER_FORMAT as error:
                if not in_pillow(error):
                    raise
                reason = error
                continue
            check_size(opened.size, name, limits.max_pixels)
            if ImageFile.LOAD_TRUNCATED_IMAGES:
                _refuse_truncated(opened)
            return opened
        if reason:
            raise ImageError(f"{name}: damaged image header ({one_line(reason)}){_hint(data)}") from reason
        raise ImageError(f"{name}: not an image of a supported format ({', '.join(formats())}){_hint(data)}")
    finally:
        reason = None  # its frames lead to this one: they would hold each other, and the file's bytes


@cache
def formats() -> tuple[str, ...]:
    """The formats that are always read, as Pillow names them; WebP and AVIF where this Pillow was built with them."""
    from PIL import features

    return tuple(p.name for p in pillows() if p.name not in ("WEBP", "AVIF") or features.check(p.name.lower()))


_LOADING = [Lock() for _ in range(64)]


def loading(picture: Image.Image) -> Lock:
    """The lock under which a caller's picture is loaded: Pillow opens lazily, and two threads must not load one."""
    return _LOADING[id(picture) // 64 % len(_LOADING)]


def _new_locks() -> None:
    """In a process that was just forked: another thread's locks stay held for ever."""
    _LOADING[:] = [Lock() for _ in _LOADING]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_locks)


def _opened(parser: Parser, data: bytes, name: str, limits: PictureLimits) -> ImageFile.ImageFile:
    """Raises ImageError, or what says that a file is of another format."""
    try:
        return parser.open(data, limits)
    except _OTHER_FORMAT:
        raise
    except Image.DecompressionBombError as error:  # GIF's parser checks it itself, for a frame that is cleared
        hint = "PIL.Image.MAX_IMAGE_PIXELS moves it"
        raise ImageError(f"{name}: over Pillow's own pixel limit ({one_line(error)}); {hint}") from error
    except Exception as error:  # a MemoryError too: a header holds no pixels, what it asks memory for is not there
        if not in_pillow(error):
            raise
        raise ImageError(f"{name}: damaged image header ({one_line(error)})") from error


def _refuse_truncated(opened: ImageFile.ImageFile) -> None:
    """For a process that has Pillow take truncated files: one is refused here all the same."""
    own = None if opened.format == "JPEG" else getattr(opened, "load_read", None)  # JPEG's adds the end that is missing

    def read(size: int) -> bytes:
        assert opened.fp is not None
        with suppress(IndexError, struct.error):  # of PNG's, where the next chunk should begin
            data: bytes = own(size) if own else opened.fp.read(size)
            if data:
                return data
        raise DamageError("image file is truncated")

    opened.load_read = read  # type: ignore[attr-defined]


def _parsers_of(data: bytes, limits: PictureLimits) -> tuple[Parser, ...]:
    """For a JPEG its own alone: importing the others would delay a first score.

    Those that were asked for come first: AVIF's parser takes some HEIC files for its own.
    """
    if data.startswith(JPEG_BEGIN):
        return (jpeg(),)
    wanted = added_format(data) if limits.formats else None
    return (added(wanted),) if wanted and wanted in limits.formats else pillows()


def _hint(data: bytes) -> str:
    found = added_format(data)
    return f"; {found} is read where it is asked for: formats=({found!r},), --formats {found}" if found else ""
