"""A picture in any form in, uint8 pixels [S, S, 3] out: padded to a square and resized, to the bit as upstream does it.

Upstream pads with the mean colour and resizes with Pillow's antialiased bicubic on uint8. Everything becomes RGB by one
rule a mode (`to_rgb`). Limits are checked on the header, before a pixel is decoded. Two forms give the same bits:
Pillow alone, always there, and a native resize, taken where its library was built.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import zlib
from ctypes import CDLL
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from qalign_fast.errors import ImageError, one_line

if TYPE_CHECKING:
    from qalign_fast.families.mplug_owl2.sizes import PixelRule

Pixels: TypeAlias = npt.NDArray[np.uint8]
Picture: TypeAlias = "str | os.PathLike[str] | bytes | IO[bytes] | Image.Image | npt.NDArray[np.uint8]"

MAX_BYTES = 64 << 20
MAX_PIXELS = 100_000_000
MAX_SIDE = 65_535  # a resize's working rows are side long
_BAND = 256  # rows padded and resized at a time
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
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def load_pixels(
    source: Picture,
    rule: PixelRule,
    *,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
    exif_rotate: bool = False,
    form: PixelForm | None = None,
) -> Pixels:
    """uint8 [S, S, 3] of a path, encoded bytes, an open binary file, a PIL image or an array.

    Arrays are uint8, [H, W, 3] RGB or [H, W] grey. Of a file with several frames the first counts. EXIF orientation is
    ignored, as upstream does, unless `exif_rotate`. `form` is by default `pixel_form()`. Raises ImageError naming the
    source and the cause.
    """
    name, form = source_name(source), form or pixel_form()
    if isinstance(source, np.ndarray):
        return form.resize(_check_array(source, name, max_pixels), rule)
    own = not isinstance(source, Image.Image)
    picture = source if isinstance(source, Image.Image) else _open(_read(source, name, max_bytes), name)
    _check_size(picture.size, name, max_pixels)
    try:
        if exif_rotate:
            return form.resize(to_rgb(ImageOps.exif_transpose(picture)), rule)
        return form.resize(form.decode(picture) if own else to_rgb(picture), rule)
    except _DAMAGED as error:
        raise ImageError(f"{name}: damaged or truncated {picture.format or 'picture'} ({one_line(error)})") from error


class PixelForm(Protocol):
    """One of the ways from a file's bytes to pixels; all of them give the same bits."""

    @property
    def name(self) -> str: ...

    def decode(self, picture: Image.Image) -> Image.Image | Pixels:
        """RGB of a picture that was just opened and that nobody else holds: Pillow's, or uint8 [H, W, 4]."""

    def resize(self, rgb: Image.Image | Pixels, rule: PixelRule) -> Pixels:
        """Pillow's RGB or uint8 [H, W, 3 or 4], of which 3 count -> uint8 [S, S, 3]."""


@cache
def pixel_form() -> PixelForm:
    """The faster form that there is here, found once a process."""
    from qalign_kernels.cpu import native

    library = native.load()
    return PLAIN if library is None else NativeForm(library)


def source_name(source: object) -> str:
    """What errors and rows call a picture: its path, or what kind of thing it is."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return f"<{len(source)} bytes>"
    if isinstance(source, np.ndarray):
        return f"<array {list(source.shape)}>"
    return str(getattr(source, "filename", "") or getattr(source, "name", "") or f"<{type(source).__name__}>")


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


def to_rgb(picture: Image.Image) -> Image.Image:
    """RGB as Pillow's convert: alpha is dropped, palettes looked up, CMYK inverted; 16-bit grey keeps its high byte."""
    if picture.mode.startswith("I"):  # Pillow would clip, not scale, these to 8 bits
        wide = np.asarray(picture).astype(np.int64)
        return Image.fromarray((np.clip(wide, 0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def to_pixels(picture: Image.Image, rule: PixelRule) -> Pixels:
    """An RGB picture, padded to a square around its middle and resized: uint8 [S, S, 3].

    The same bits as padding the whole picture first: Pillow resizes rows before columns with 8 bits between, so
    padding rows above and below can wait until the rows are short, and padding beside is done a band of rows at a time.
    """
    side, bicubic = rule.side, Image.Resampling.BICUBIC
    width, height = picture.size
    square = max(width, height)
    left, top = (square - width) // 2, (square - height) // 2
    narrow = Image.new("RGB", (side, square), rule.pad)  # rows resized, columns not yet
    if width == square:
        narrow.paste(picture.resize((side, height), bicubic), (0, top))
    else:
        for start in range(0, height, _BAND):
            rows = min(_BAND, height - start)
            band = Image.new("RGB", (square, rows), rule.pad)
            band.paste(picture.crop((0, start, width, start + rows)), (left, 0))
            narrow.paste(band.resize((side, rows), bicubic), (0, start))
    return np.asarray(narrow.resize((side, side), bicubic))


class _PlainForm:
    name = "pillow"

    def decode(self, picture: Image.Image) -> Image.Image:
        picture.load()
        return to_rgb(picture)

    def resize(self, rgb: Image.Image | Pixels, rule: PixelRule) -> Pixels:
        return to_pixels(Image.fromarray(rgb[..., :3]) if isinstance(rgb, np.ndarray) else rgb, rule)


PLAIN = _PlainForm()


@dataclass(frozen=True)
class NativeForm:
    """qalign_kernels' library, which holds csrc/resize.cpp."""

    library: CDLL
    name: str = "native"

    def decode(self, picture: Image.Image) -> Image.Image | Pixels:
        from qalign_kernels.cpu.pillow_memory import decode_whole

        whole = decode_whole(picture)
        return PLAIN.decode(picture) if whole is None else whole

    def resize(self, rgb: Image.Image | Pixels, rule: PixelRule) -> Pixels:
        from qalign_kernels.cpu.resize import resize_native

        return resize_native(self.library, rgb, rule.side, rule.pad)


def _read(source: object, name: str, max_bytes: int) -> bytes:
    """The file's bytes, at most max_bytes."""
    if isinstance(source, str | os.PathLike):
        return _read_path(Path(source), name, max_bytes)
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
    elif hasattr(source, "read"):
        try:
            data = source.read(max_bytes + 1)
        except (OSError, ValueError) as error:
            raise ImageError(f"{name}: cannot be read ({one_line(error)})") from error
        if not isinstance(data, bytes):
            raise ImageError(f"{name}: the file is open as text; open it in binary mode ('rb')")
    else:
        raise ImageError(f"{name}: not a picture; expected a path, bytes, a binary file, a PIL image or a uint8 array")
    _check_bytes(len(data), name, max_bytes)
    return data


def _read_path(path: Path, name: str, max_bytes: int) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{name}: not a file" if not path.is_dir() else f"{name}: a folder, not a picture")
        _check_bytes(status.st_size, name, max_bytes)
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise ImageError(f"{name}: {getattr(error, 'strerror', None) or one_line(error)}") from error


def _check_bytes(count: int, name: str, max_bytes: int) -> None:
    if count == 0:
        raise ImageError(f"{name}: empty, zero bytes")
    if count > max_bytes:
        raise ImageError(f"{name}: over the limit of {max_bytes} bytes (max_bytes)")


def _open(data: bytes, name: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=_formats_of(data))
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: not an image of a supported format ({', '.join(formats())})") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: over Pillow's own pixel limit ({one_line(error)})") from error
    except _DAMAGED as error:
        raise ImageError(f"{name}: damaged image header ({one_line(error)})") from error


def _formats_of(data: bytes) -> tuple[str, ...]:
    """As `formats`, but a JPEG's own alone, which no other begins as: importing the others delays a first score."""
    return ("JPEG",) if data.startswith(b"\xff\xd8\xff") else formats()


def _check_array(array: npt.NDArray[np.uint8], name: str, max_pixels: int) -> Pixels:
    """uint8 [H, W, 3]."""
    grey = array.ndim == 2
    if array.dtype != np.uint8 or not (grey or (array.ndim == 3 and array.shape[2] == 3)):
        raise ImageError(f"{name}: {array.dtype} array; expected uint8 of shape [H, W, 3] (RGB) or [H, W] (grey)")
    _check_size((array.shape[1], array.shape[0]), name, max_pixels)
    return np.ascontiguousarray(np.broadcast_to(array[..., None], (*array.shape, 3)) if grey else array)


def _check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"{name}: {width}x{height} has no pixels")
    if width * height > max_pixels:
        raise ImageError(f"{name}: {width}x{height} is over the limit of {max_pixels} pixels (max_pixels)")
    if max(size) > MAX_SIDE:
        raise ImageError(f"{name}: {width}x{height} is over the limit of {MAX_SIDE} pixels a side")
