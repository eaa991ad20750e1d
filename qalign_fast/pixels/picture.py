"""A picture of any kind in, uint8 pixels [S, S, 3] out: padded to a square and resized, to the bit as upstream does it.

Upstream pads with the mean colour and resizes with Pillow's antialiased bicubic on uint8. Every mode becomes RGB by one
rule (`to_rgb`). Limits are checked on the header, before a pixel is decoded. Two paths give the same bits: Pillow alone
and, where its library was built, a native resize.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from qalign_fast.errors import ImageError, VideoError, one_line
from qalign_fast.pixels.limits import LIMITS, PictureLimits, check_bytes, check_size
from qalign_fast.pixels.paths import PLAIN, pixel_path
from qalign_fast.pixels.rule import PixelPath

if TYPE_CHECKING:
    from qalign_fast.pixels.rule import PixelRule, Pixels

Picture: TypeAlias = "str | os.PathLike[str] | bytes | IO[bytes] | Image.Image | npt.NDArray[np.uint8]"

# What Pillow's parsers are known to raise on damaged files, beside OSError.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def load_pixels(
    picture: Picture,
    rule: PixelRule,
    *,
    limits: PictureLimits = LIMITS,
    path: PixelPath | None = None,
    name: str | None = None,
) -> Pixels:
    """uint8 [S, S, 3] of a file's path, encoded bytes, an open binary file, a PIL image or an array.

    Arrays are uint8, [H, W, 3] RGB or [H, W] grey. Of a file with several frames the first counts. EXIF orientation is
    ignored, as upstream does, unless the limits say otherwise. `path` is by default `pixel_path()`. `name` is what
    errors call the picture, by default `picture_name(picture)`. Raises ImageError with the name and the cause.
    """
    name, path = name or picture_name(picture), path or pixel_path()
    if isinstance(picture, np.ndarray):
        check_array(picture, name, limits)
        with enough_memory(picture.shape[1::-1], name):
            return rule.apply(_rgb_array(picture), path)
    own = not isinstance(picture, Image.Image)
    opened = picture if isinstance(picture, Image.Image) else _open(read_bytes(picture, name, limits), name)
    check_size(opened.size, name, limits.max_pixels)
    with decoding(opened, name):
        rgb = path.decode(opened) if own and not limits.exif_rotate else PLAIN.decode(upright(opened, limits))
    with enough_memory(opened.size, name):
        return rule.apply(rgb, path)


def stack_frames(frames: Sequence[Pixels], name: str) -> Pixels:
    """Each [H, W, 3] -> [F, H, W, 3]. Raises VideoError for frames of several sizes, where a rule leaves them so."""
    if len({frame.shape for frame in frames}) > 1:
        raise VideoError(f"{name}: its frames have several sizes; this model takes clips of one size")
    return frames[0][None] if len(frames) == 1 else np.stack(frames)


def upright(picture: Image.Image, limits: PictureLimits) -> Image.Image:
    """The picture, turned as its EXIF orientation says where the limits ask for it."""
    if not limits.exif_rotate:
        return picture
    from PIL import ImageOps

    return ImageOps.exif_transpose(picture)


@contextmanager
def decoding(picture: Image.Image, name: str) -> Iterator[None]:
    """Around Pillow's decoding, and nothing else: what it raises on damaged files becomes an ImageError."""
    try:
        with enough_memory(picture.size, name):
            yield
    except _DAMAGED as error:
        raise ImageError(f"{name}: damaged or truncated {picture.format or 'picture'} ({one_line(error)})") from error


@contextmanager
def enough_memory(size: tuple[int, ...], name: str) -> Iterator[None]:
    """A picture that there is no memory for becomes an ImageError. `size`: width and height."""
    try:
        yield
    except MemoryError as error:
        width, height = size
        raise ImageError(f"{name}: not enough memory for {width}x{height} pixels") from error


def picture_name(picture: object) -> str:
    """What errors call a picture: its path, or what kind of thing it is."""
    if isinstance(picture, str | os.PathLike):
        return os.fspath(picture)
    if isinstance(picture, bytes | bytearray | memoryview):
        return f"<{len(picture)} bytes>"
    if isinstance(picture, np.ndarray):
        return f"<array {list(picture.shape)}>"
    return str(getattr(picture, "filename", "") or getattr(picture, "name", "") or f"<{type(picture).__name__}>")


@cache
def formats() -> tuple[str, ...]:
    """The formats read, as Pillow names them; WebP and AVIF where this Pillow was built with them.

    Only these parsers ever see a file: Pillow has dozens more, one of which runs PostScript.
    """
    from PIL import (
        AvifImagePlugin,
        BmpImagePlugin,
        GifImagePlugin,
        JpegImagePlugin,
        PngImagePlugin,
        PpmImagePlugin,
        TiffImagePlugin,
        WebPImagePlugin,
    )

    plugins = (
        JpegImagePlugin.JpegImageFile,
        PngImagePlugin.PngImageFile,
        WebPImagePlugin.WebPImageFile,
        GifImagePlugin.GifImageFile,
        TiffImagePlugin.TiffImageFile,
        BmpImagePlugin.BmpImageFile,
        PpmImagePlugin.PpmImageFile,
        AvifImagePlugin.AvifImageFile,
    )
    return tuple(plugin.format for plugin in plugins if plugin.format in Image.OPEN)


def read_bytes(picture: object, name: str, limits: PictureLimits) -> bytes:
    """The bytes of a path's or an open file's picture, not over the limit. Raises ImageError."""
    if isinstance(picture, str | os.PathLike):
        return _read_path(Path(picture), name, limits.picture_bytes)
    if isinstance(picture, bytes | bytearray | memoryview):
        data = bytes(picture)
    elif hasattr(picture, "read"):
        try:
            data = picture.read(limits.picture_bytes + 1)
        except (OSError, ValueError) as error:
            raise ImageError(f"{name}: cannot be read ({one_line(error)})") from error
        if not isinstance(data, bytes):
            raise ImageError(f"{name}: the file is open as text; open it in binary mode ('rb')")
    else:
        raise ImageError(f"{name}: not a picture; expected a path, bytes, a binary file, a PIL image or a uint8 array")
    check_bytes(len(data), name, limits.picture_bytes)
    return data


def _read_path(path: Path, name: str, most: int) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{name}: not a file" if not path.is_dir() else f"{name}: a folder, not a picture")
        check_bytes(status.st_size, name, most)
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise ImageError(f"{name}: {getattr(error, 'strerror', None) or one_line(error)}") from error


def _open(data: bytes, name: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=_formats_of(data))
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: not an image of a supported format ({', '.join(formats())})") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: over Pillow's own pixel limit ({one_line(error)})") from error
    except (*_DAMAGED, MemoryError) as error:  # a header holds no pixels: what it asks memory for is not there
        raise ImageError(f"{name}: damaged image header ({one_line(error)})") from error


def _formats_of(data: bytes) -> tuple[str, ...]:
    """As `formats`, but for a JPEG its own alone: no other format begins as it does.

    Importing the other plugins would delay a first score.
    """
    return ("JPEG",) if data.startswith(b"\xff\xd8\xff") else formats()


def check_array(array: npt.NDArray[np.uint8], name: str, limits: PictureLimits) -> None:
    """Raises ImageError for an array that is no grey or RGB picture, and for one over the limits."""
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise ImageError(f"{name}: {array.dtype} array; expected uint8 of shape [H, W, 3] (RGB) or [H, W] (grey)")
    check_size((array.shape[1], array.shape[0]), name, limits.max_pixels)


def _rgb_array(array: npt.NDArray[np.uint8]) -> Pixels:
    """uint8 [H, W, 3] of a grey or RGB array."""
    return np.ascontiguousarray(np.broadcast_to(array[..., None], (*array.shape, 3)) if array.ndim == 2 else array)
