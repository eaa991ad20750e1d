"""An RGB picture in, uint8 pixels [S, S, 3] out: padded to a square and resized by csrc/resize.cpp, to Pillow's bits.

The square's side is n = max(width, height), with the picture in its middle. Output x of S reads inputs i as follows:

    scale = n / S;   f = max(scale, 1);   c = (x + 0.5) scale;   i from trunc(c - 2f + 0.5) up to trunc(c + 2f + 0.5)
    w_i = b((i - c + 0.5) / f) over their sum, in float64;   W_i = round(2^22 w_i), halves away from zero
    y = clip((2^21 + sum of W_i p_i) >> 22, 0, 255)

with b(t) = 1.5|t|^3 - 2.5 t^2 + 1 for |t| below 1, -0.5 (|t|^3 - 5 t^2 + 8|t| - 4) below 2, else 0: the cubic with
a = -0.5. Columns are resized first, then rows, with 8 bits between. The sums are of whole numbers, so that their order
is free. Only the weights are rounded, and they agree with Pillow's where it was compiled without fused multiply-adds,
as it is for x86-64.

An isa is an instruction set that the resize has code for, by its index in csrc/resize.cpp.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from qalign_kernels.cpu.pillow_memory import address

Bytes: TypeAlias = npt.NDArray[np.uint8]

PLAIN, AVX2, VNNI, DOTPROD = range(4)
_TAPS = {PLAIN: 1, AVX2: 2, VNNI: 4, DOTPROD: 4}  # inputs that one instruction multiplies and adds
_BITS = 22
_BAND = 512 << 10  # bytes of a picture that are copied at a time, so that they stay in the cache


def best_isa(library: ctypes.CDLL) -> int:
    """The fastest isa that this CPU has."""
    return isas(library)[-1]


def isas(library: ctypes.CDLL) -> tuple[int, ...]:
    """The isas that this CPU has, the fastest last."""
    best: int = library.qk_resize_isa()
    return (PLAIN, DOTPROD) if best == DOTPROD else tuple(range(best + 1))


def resize_native(
    library: ctypes.CDLL, picture: Image.Image | Bytes, side: int, pad: tuple[int, int, int], isa: int | None = None
) -> Bytes:
    """A Pillow picture of mode RGB, or uint8 [H, W, 3 or 4] of which a fourth byte is ignored -> uint8 [side, side, 3].

    `pad` is the colour around the picture. `isa` is by default the best that this CPU has.
    """
    isa = best_isa(library) if isa is None else isa
    if isinstance(picture, np.ndarray):
        picture = np.ascontiguousarray(picture)
        height, width, channels = picture.shape
    else:
        assert picture.mode == "RGB"
        (width, height), channels = picture.size, 4
    square = max(width, height)
    columns, rows = (_axis(length, square, side, isa) for length in (width, height))
    resize = _Resize(columns.struct, rows.struct, width, height, side, channels, pad * 16)
    library.qk_resize_work.restype = ctypes.c_int64
    work = np.empty(library.qk_resize_work(ctypes.byref(resize), isa) + 63, np.uint8)
    out = np.empty(3 * side * side + 64, np.uint8)  # rows are written some bytes beyond their end
    for pixels, begin, count in _bands(picture):
        library.qk_resize_rows(
            ctypes.byref(resize),
            isa,
            ctypes.c_void_p(pixels),
            ctypes.c_int64(width * channels),
            begin,
            count,
            ctypes.c_void_p(-(-work.ctypes.data // 64) * 64),
            ctypes.c_void_p(out.ctypes.data),
        )
    return out[: 3 * side * side].reshape(side, side, 3)


def _bands(picture: Image.Image | Bytes) -> Iterator[tuple[int, int, int]]:
    """Addresses of pixels, each with the first row and the number of rows that lie there.

    A Pillow picture is copied band by band, because Pillow keeps large pictures in pieces, and before 13.0 crashes when
    it is asked for memory that was lent to it.
    """
    if isinstance(picture, np.ndarray):
        yield picture.ctypes.data, 0, len(picture)
        return
    rows = max(_BAND // (64 * picture.width), 1) * 16
    for begin in range(0, picture.height, rows):
        band = picture.crop((0, begin, picture.width, min(begin + rows, picture.height)))
        yield address(band), begin, band.height


class _Axis(ctypes.Structure):
    _fields_ = [
        ("first", ctypes.c_void_p),
        ("limbs", ctypes.c_void_p),
        ("base", ctypes.c_void_p),
        ("groups", ctypes.c_int32),
        ("start", ctypes.c_int32),
        ("count", ctypes.c_int32),
    ]


class _Resize(ctypes.Structure):
    _fields_ = [
        ("columns", _Axis),
        ("rows", _Axis),
        ("width", ctypes.c_int32),
        ("height", ctypes.c_int32),
        ("side", ctypes.c_int32),
        ("channels", ctypes.c_int32),
        ("pad", ctypes.c_uint8 * 48),
    ]


@dataclass(frozen=True)
class _Tables:
    """The tables of one direction. The struct points into the arrays."""

    struct: _Axis
    arrays: tuple[npt.NDArray[np.int32], npt.NDArray, npt.NDArray[np.int32]]


@lru_cache(maxsize=32)
def _axis(length: int, square: int, side: int, isa: int) -> _Tables:
    """The tables of one direction: a picture `length` long in the middle of the square."""
    begin = (square - length) // 2
    shift = -begin % 16  # with it the picture begins at the beginning of a group, and of a strip
    taps = _TAPS[isa]
    inputs, weights = windows(square, side)
    first, offset = np.divmod(inputs + shift, taps)
    groups = -(-int((offset + weights.shape[1]).max()) // taps)
    grouped = np.zeros((side, taps * groups), np.int32)
    np.put_along_axis(grouped, offset[:, None] + np.arange(weights.shape[1]), weights, 1)
    base = np.full(side, 1 << (_BITS - 1), np.int32)
    if isa == DOTPROD:  # it reads each pixel minus 128
        base += 128 * grouped.sum(1, dtype=np.int32)
    arrays = first.astype(np.int32), _limbs(grouped.reshape(side, groups, taps), isa), base
    pointers = (array.ctypes.data for array in arrays)
    struct = _Axis(*pointers, groups, (begin + shift) // taps, -(-length // taps))
    return _Tables(struct, arrays)


def windows(length: int, side: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """The first input of each output [side], and the weights W of the inputs from there on [side, taps]."""
    scale = length / side
    stretch = max(scale, 1.0)
    centre = (np.arange(side) + 0.5) * scale
    first = np.maximum(np.trunc(centre - 2 * stretch + 0.5), 0).astype(np.int64)
    end = np.minimum(np.trunc(centre + 2 * stretch + 0.5), length).astype(np.int64)
    taps = np.arange((end - first).max())
    at = ((taps + first[:, None]) - centre[:, None] + 0.5) * (1 / stretch)
    weights = np.where(taps < (end - first)[:, None], _cubic(np.abs(at)), 0)
    weights /= np.cumsum(weights, 1)[:, -1:]  # cumsum adds in order, as Pillow does; np.sum adds in pairs
    return first, np.trunc(weights * (1 << _BITS) + np.copysign(0.5, weights)).astype(np.int32)


def _cubic(t: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    near, far = (1.5 * t - 2.5) * t * t + 1, (((t - 5) * t + 8) * t - 4) * -0.5
    return np.where(t < 1, near, np.where(t < 2, far, 0))


def _limbs(weights: npt.NDArray[np.int32], isa: int) -> npt.NDArray:
    """Weights [side, groups, taps] as an isa reads them: whole; as two of 16 bits; or as signed digits of 8 bits."""
    if isa == PLAIN:
        return weights
    if isa == AVX2:
        return np.stack([weights >> 8, weights & 255], 2).astype(np.int16)
    low = (weights + 128 & 255) - 128
    rest = weights - low >> 8
    middle = (rest + 128 & 255) - 128
    fill = [np.zeros_like(low)] if isa == DOTPROD else []  # its vectors have 16 bytes
    return np.stack([low, middle, rest - middle >> 8, *fill], 2).astype(np.int8)
