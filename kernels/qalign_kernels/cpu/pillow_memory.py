"""A Pillow picture in, the memory of its pixels out, 4 bytes a pixel as Pillow keeps them.

Pillow lends and borrows memory by Arrow's C data interface: https://arrow.apache.org/docs/format/CDataInterface.html
has the structs.
"""

from __future__ import annotations

import ctypes

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile


def decode_whole(picture: Image.Image) -> npt.NDArray[np.uint8] | None:
    """Decodes an RGB JPEG that was just opened -> uint8 [H, W, 4], RGB and a byte without meaning.

    None for pictures of another kind. By itself Pillow decodes into pieces of 16 MiB that lie in small pages. Here it
    borrows numpy's memory, which asks the system for huge pages: that saves a quarter of the time at 12 megapixels. The
    picture must not outlive the array.
    """
    if not isinstance(picture, JpegImageFile) or picture.mode != "RGB":
        return None
    memory = np.zeros((picture.height, picture.width, 4), np.uint8)
    lent = Image.fromarrow(_Lent(memory), "RGB", picture.size).im
    picture.im = lent
    picture.load()
    return memory if picture.im is lent else None


def address(picture: Image.Image) -> int:
    """The address of a picture's pixels, which Pillow must have allocated in one piece. They live as long as it."""
    capsule = picture.__arrow_c_array__()[1]
    array = ctypes.cast(_pointer(capsule, b"arrow_array"), ctypes.POINTER(_Array)).contents
    pixels = ctypes.cast(array.children[0], ctypes.POINTER(_Array)).contents.buffers[1]
    assert pixels is not None
    return int(pixels)


class _Lent:
    """Memory [H, W, 4] as `Image.fromarrow` takes it. That reads the structs at once and keeps none of them."""

    def __init__(self, memory: npt.NDArray[np.uint8]) -> None:
        self._buffers = (ctypes.c_void_p * 2)(None, memory.ctypes.data)  # no nulls
        self._array = _Array(length=memory.size, n_buffers=2, buffers=self._buffers)
        self._schema = _Schema(format=b"C")  # uint8

    def __arrow_c_array__(self, requested_schema: object = None) -> tuple[object, object]:
        schema, array = ctypes.addressof(self._schema), ctypes.addressof(self._array)
        return _capsule(schema, b"arrow_schema", None), _capsule(array, b"arrow_array", None)


class _Schema(ctypes.Structure):
    _fields_ = [
        ("format", ctypes.c_char_p),
        ("name", ctypes.c_char_p),
        ("metadata", ctypes.c_char_p),
        ("flags", ctypes.c_int64),
        ("n_children", ctypes.c_int64),
        ("children", ctypes.c_void_p),
        ("dictionary", ctypes.c_void_p),
        ("release", ctypes.c_void_p),
        ("private_data", ctypes.c_void_p),
    ]


class _Array(ctypes.Structure):
    _fields_ = [
        ("length", ctypes.c_int64),
        ("null_count", ctypes.c_int64),
        ("offset", ctypes.c_int64),
        ("n_buffers", ctypes.c_int64),
        ("n_children", ctypes.c_int64),
        ("buffers", ctypes.POINTER(ctypes.c_void_p)),
        ("children", ctypes.POINTER(ctypes.c_void_p)),
        ("dictionary", ctypes.c_void_p),
        ("release", ctypes.c_void_p),
        ("private_data", ctypes.c_void_p),
    ]


_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)
