"""The parsers that ever see a picture's file: Pillow has dozens more, one of which runs PostScript.

They are Pillow's own, without the limits and the warnings that Pillow adds there: our limits are the only ones.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, TypeAlias

from PIL import Image, ImageFile

from qalign_fast.errors import MissingExtraError
from qalign_fast.pixels.limits import PictureLimits

Opener: TypeAlias = Callable[[bytes, PictureLimits], ImageFile.ImageFile]

JPEG_BEGIN = b"\xff\xd8\xff"  # no other format begins as it does
_JXL_BEGIN = (b"\xff\x0a", b"\0\0\0\x0cJXL ")
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
_READ = (b"tRNS", b"acTL", b"fcTL", b"fdAT")  # of the chunks of PNG that are not critical
_EXIF_TEXTS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")
_LONGEST_TEXT = 1 << 20  # bytes, decompressed: Pillow refuses a PNG with a longer one


class Parser(NamedTuple):
    """A format's name, whether a file begins as it does, by its first 16 bytes, and what opens it.

    Where this Pillow was built without the format, `begins` returns a text that says so.
    """

    name: str
    begins: Callable[[bytes], Any]
    open: Opener


@cache
def jpeg() -> Parser:
    """Not Pillow's factory, which makes a file of several pictures an MPO: the first of them is the picture."""
    from PIL import JpegImagePlugin

    class Jpeg(JpegImagePlugin.JpegImageFile):
        def _read_dpi_from_exif(self) -> None:
            """Does nothing: no one asks for it, and Pillow warns of damaged EXIF here."""

    return Parser("JPEG", lambda begin: begin.startswith(JPEG_BEGIN), lambda data, _: Jpeg(io.BytesIO(data), ""))


@cache
def pillows() -> tuple[Parser, ...]:
    """Those that are always there."""
    from PIL import AvifImagePlugin, BmpImagePlugin, GifImagePlugin, PngImagePlugin, PpmImagePlugin, WebPImagePlugin

    openers: dict[str, Opener] = {
        "PNG": lambda data, limits: PngImagePlugin.PngImageFile(io.BytesIO(_without_metadata(data, limits)), ""),
        "WEBP": lambda data, _: WebPImagePlugin.WebPImageFile(_InSmallParts(data), ""),
        "GIF": lambda data, _: GifImagePlugin.GifImageFile(io.BytesIO(data), ""),
        "TIFF": _tiff(),
        "BMP": lambda data, _: BmpImagePlugin.BmpImageFile(io.BytesIO(data), ""),
        "DIB": lambda data, _: BmpImagePlugin.DibImageFile(io.BytesIO(data), ""),
        "PPM": lambda data, _: PpmImagePlugin.PpmImageFile(io.BytesIO(data), ""),
        "AVIF": lambda data, _: AvifImagePlugin.AvifImageFile(io.BytesIO(data), ""),
    }
    return jpeg(), *(Parser(name, Image.OPEN[name][1] or bool, opener) for name, opener in openers.items())


def added(format: str) -> Parser:
    """That of "heic" or of "jxl". Raises MissingExtraError.

    Importing pillow-jxl-plugin registers it with Pillow, for the whole process. Importing pillow-heif does not.
    """
    package, parser = ("pillow-jxl-plugin", _jxl) if format == "jxl" else ("pillow-heif", _heic)
    try:
        return parser()
    except ImportError as error:
        raise MissingExtraError(f"reading {format} needs {package}: pip install 'qalign-fast[formats]'") from error


def added_format(data: bytes) -> str | None:
    """Which of the formats that can be added a file is."""
    if data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS:
        compatible = data[16 : int.from_bytes(data[:4], "big")]
        return None if b"avif" in compatible or b"avis" in compatible else "heic"
    return "jxl" if data.startswith(_JXL_BEGIN) else None


def _heic() -> Parser:
    from pillow_heif.as_plugin import HeifImageFile

    return Parser("HEIC", bool, lambda data, _: HeifImageFile(io.BytesIO(data), ""))  # type: ignore[no-untyped-call]


def _jxl() -> Parser:
    import pillow_jxl  # noqa: F401

    from qalign_fast.pixels.jxl import JxlFile

    return Parser("JXL", bool, lambda data, _: JxlFile(io.BytesIO(data), ""))


def _tiff() -> Opener:
    from PIL import TiffImagePlugin

    class Tiff(TiffImagePlugin.TiffImageFile):
        def load_prepare(self) -> None:
            """Takes memory before Pillow does, which would hold the size against its own limit."""
            if self._im is None:
                size = self.tag_v2[TiffImagePlugin.IMAGEWIDTH], self.tag_v2[TiffImagePlugin.IMAGELENGTH]
                self.im = Image.new(self.mode, size, None).im
            super().load_prepare()

    return lambda data, _: Tiff(io.BytesIO(data), "")


class _InSmallParts(io.BytesIO):
    """Gives 16 bytes at most to who asks for a number of them, as a file may.

    So WebP's parser does not find the size in the first part, where it would hold it against Pillow's own limit.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(size if size is None or size < 0 else min(size, 16))


def _without_metadata(data: bytes, limits: PictureLimits) -> bytes:
    """A PNG without its texts, its colour profile and all else that nothing here reads and Pillow may refuse it for.

    Where EXIF orientation counts, the chunks stay that may hold it.
    """
    kept: list[bytes] = []
    start, at = 0, 8  # where what is kept begins, where a chunk begins
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        is_metadata = kind[0] & 0x20 and kind not in _READ  # a small letter: whoever does not know it may skip it
        if is_metadata and not (limits.exif_rotate and _is_exif(kind, data[at + 8 : end - 4])):
            kept.append(data[start:at])
            start = end
        at = end
    return b"".join((*kept, data[start:])) if kept else data


def _is_exif(kind: bytes, content: bytes) -> bool:
    """Whether a chunk may hold the orientation, and is not too long for Pillow."""
    if kind == b"eXIf" or not content.startswith(_EXIF_TEXTS):
        return kind == b"eXIf"
    packed = content.partition(b"\0")[2]
    if kind == b"iTXt":  # whether it is compressed, how, language, the keyword translated
        packed = packed[2:].split(b"\0", 2)[-1] if packed.startswith(b"\1") else b""
    elif kind == b"zTXt":
        packed = packed[1:]
    try:
        return kind == b"tEXt" or len(zlib.decompressobj().decompress(packed, _LONGEST_TEXT + 1)) <= _LONGEST_TEXT
    except zlib.error:
        return False
