"""A JPEG XL file in, a Pillow picture out, whose size is known before a pixel is decoded.

pillow-jxl-plugin's own reader decodes a whole picture when it opens it, and reads a packed JPEG under Pillow's limit.
Here its decoder runs when the picture is loaded. The header is that of ISO/IEC 18181-1, the boxes are of 18181-2.
"""

from __future__ import annotations

import io
import struct
from typing import Any

from PIL import Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile

from qalign_fast.errors import one_line
from qalign_fast.pixels.damage import DamageError

_BARE = b"\xff\x0a"  # what a codestream begins with
_BOXED = b"\0\0\0\x0cJXL "  # and a file whose codestream lies in boxes
_MOST_BOXES = 1000  # before the size
_HEADER = 11  # bytes at the beginning of a codestream, in which its size lies
_BITS = (9, 13, 18, 30)  # that a side may have
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # width to height


class JxlFile(ImageFile.ImageFile):
    """Its mode is known once it is loaded. A packed JPEG becomes that JPEG; all others are decoded upright."""

    format = "JXL"
    format_description = "JPEG XL"
    _is_decoded = False

    def _open(self) -> None:
        assert self.fp is not None
        self._size = jxl_size(self.fp.read())
        self._mode = "RGB"

    def load(self) -> Any:
        """As Pillow's. Raises DamageError."""
        if not self._is_decoded:
            assert self.fp is not None
            self.fp.seek(0)
            whole = self._decode(self.fp.read())
            self._mode, self._size, self.info, self.im = whole.mode, whole.size, whole.info, whole.im
            self._is_decoded = True
        return super().load()

    def _decode(self, data: bytes) -> Image.Image:
        from pillow_jxl import Decoder

        try:
            is_jpeg, info, decoded, *_ = Decoder(num_threads=-1)(data)
        except RuntimeError as error:
            raise DamageError(one_line(error)) from error
        if not is_jpeg:
            mode = "F" if info.mode == "F;16" else info.mode  # its values come with 32 bits
            return Image.frombytes(mode, (info.width, info.height), decoded)
        jpeg = JpegImageFile(io.BytesIO(decoded))
        if jpeg.size != self.size:  # that one was held against the limits
            raise DamageError(f"it holds a JPEG of another size, {jpeg.width}x{jpeg.height}")
        jpeg.load()
        return jpeg


def jxl_size(data: bytes) -> tuple[int, int]:
    """Width and height as the header has them, not turned. Raises DamageError."""
    header = _codestream(data)
    if len(header) < _HEADER or not header.startswith(_BARE):
        raise DamageError("no size in its header")
    bits = int.from_bytes(header[2:], "little")  # the first field lies in the lowest bits

    def take(count: int) -> int:
        nonlocal bits
        value = bits & (1 << count) - 1
        bits >>= count
        return value

    def side() -> int:
        return 8 * (take(5) + 1) if is_small else take(_BITS[take(2)]) + 1

    is_small = take(1)
    height = side()
    ratio = take(3)
    width = height * _RATIOS[ratio - 1][0] // _RATIOS[ratio - 1][1] if ratio else side()
    return width, height


def _codestream(data: bytes) -> bytes:
    """Its first bytes, padded with zeros: out of their boxes where it lies in some."""
    if not data.startswith(_BOXED):
        return data[:_HEADER].ljust(_HEADER, b"\0")
    found, at = b"", 0
    for _ in range(_MOST_BOXES):
        if len(found) >= _HEADER or at + 8 > len(data):
            break
        size, kind = struct.unpack_from(">I4s", data, at)
        begin = at + 8
        if size == 1:  # a box of 4 GB or more
            size, begin = int.from_bytes(data[begin : begin + 8], "big"), begin + 8
        end = at + size if size else len(data)
        if kind in (b"jxlc", b"jxlp"):
            begin += 4 * (kind == b"jxlp")  # the number of a part
            found += data[begin : min(end, begin + _HEADER)]
        at = max(end, begin)
    return found[:_HEADER].ljust(_HEADER, b"\0") if found else b""
