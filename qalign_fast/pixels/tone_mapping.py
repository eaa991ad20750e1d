"""An HDR frame in, in PQ (SMPTE ST 2084) or HLG (ARIB STD-B67); SDR pixels uint8 [H, W, 3] out, in sRGB.

codes ─ matrix ─▶ R'G'B' ─ EOTF ─▶ cd/m2 ─ primaries ─▶ BT.709 ─ EETF ─▶ at most 203 cd/m2 ─ sRGB ─▶ uint8

203 cd/m2 is the reference white of ITU-R BT.2408, section 2.1. The EETF is the one of BT.2390-8, section 5.4.1 (since
2021 in BT.2408, annex 5). It takes the largest of a pixel's R, G and B and scales all three alike, which keeps the hue.
The last step is sRGB's curve, not BT.1886's gamma of 2.4: a model takes a clip's pixels as it takes a picture's, and
pictures are in sRGB.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from qalign_fast.errors import VideoError

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

    from qalign_fast.pixels.rule import Pixels

Hdr = Literal["PQ", "HLG"]
_Floats: TypeAlias = "npt.NDArray[np.floating]"

WHITE = 203.0  # cd/m2
_PEAK = 99.99  # the percentile of a frame's luminance that is its peak: a codec's overshoots shall not darken the rest
_BAND = 16  # rows converted at a time: what stands between two tables stays in a core's cache
_LAST = 65535  # the last index of a table

# By the frame's tags, where 2 is "not specified". Luma's shares of red and blue: BT.709, item 3.2; BT.2100, table 6.
_LUMA = {1: (0.2126, 0.0722), 2: (0.2627, 0.0593), 9: (0.2627, 0.0593)}
# Linear R, G, B to BT.709's primaries: the inverse of the matrix in BT.2087-0.
_BT2020 = np.linalg.inv([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
_PRIMARIES = {1: np.eye(3), 2: _BT2020, 9: _BT2020}


def hdr_of(frame: VideoFrame) -> Hdr | None:
    """The curve that the frame's tag names (ITU-T H.273, table 3); None for SDR."""
    curves: dict[int, Hdr] = {16: "PQ", 18: "HLG"}
    return curves.get(frame.color_trc)


def tone_mapped(frame: VideoFrame) -> Pixels:
    """uint8 [H, W, 3] of a frame that `hdr_of` calls PQ or HLG: BT.709's primaries, sRGB's curve, 255 for 203 cd/m2.

    A frame with no luminance over 203 cd/m2 keeps its light; a single channel over it is clipped. Raises VideoError for
    RGB, and for a matrix or primaries other than BT.709's and BT.2020's (the matrix for non-constant luminance).
    """
    if frame.format.is_rgb or frame.colorspace not in _LUMA or frame.color_primaries not in _PRIMARIES:
        found = f"{frame.format.name} with matrix {frame.colorspace}, primaries {frame.color_primaries} (ITU-T H.273)"
        raise VideoError(f"HDR in {found} cannot be tone-mapped; expected YCbCr with 1 (BT.709) or 9 (BT.2020)")
    light = _light(frame)  # [3, H, W]
    luminance = np.tensordot(np.array([0.2126, 0.7152, 0.0722], np.float32), light, 1)
    peak = max(WHITE, float(np.percentile(luminance, _PEAK, method="higher")))
    gain = _eetf_gain(peak)
    pixels = np.empty((*luminance.shape, 3), np.uint8)
    for rows in _bands(frame):
        shown = light[:, rows] * gain[_index(light[:, rows].max(axis=0), peak)]
        pixels[rows] = _srgb()[_index(shown, WHITE)].transpose(1, 2, 0)
    return pixels


def _light(frame: VideoFrame) -> _Floats:
    """A display's light in cd/m2, float32 [3, H, W], in BT.709's primaries. Colours outside of them are clipped."""
    planes, black, matrix = _planes(frame)
    primaries, pq = _PRIMARIES[frame.color_primaries].astype(np.float32), hdr_of(frame) == "PQ"
    light = np.empty((3, frame.height, frame.width), np.float32)
    for rows in _bands(frame):
        codes = np.stack([plane[rows] for plane in planes]).astype(np.float32)
        signal = np.tensordot(matrix, codes - black, 1)  # R'G'B'
        shown = _pq_table()[_index(signal, 1)] if pq else hlg_to_light(np.clip(signal, 0, 1))
        light[:, rows] = np.maximum(np.tensordot(primaries, shown, 1), 0)
    return light


def _bands(frame: VideoFrame) -> list[slice]:
    return [slice(top, top + _BAND) for top in range(0, frame.height, _BAND)]


def _index(values: _Floats, most: float) -> npt.NDArray[np.uint16]:
    """The nearest indices of a table for values on 0..most; values outside are clipped."""
    scaled: _Floats = np.clip(values * np.float32(_LAST / most), 0, _LAST)
    return (scaled + np.float32(0.5)).astype(np.uint16)


def _planes(frame: VideoFrame) -> tuple[list[npt.NDArray[np.uint16]], _Floats, _Floats]:
    """Y', Cb and Cr in 16-bit codes, each [H, W]; the codes of black, [3, 1, 1]; the matrix to R'G'B' on 0..1, [3, 3].

    BT.2100's table 9 and the inverse of its table 6. swscale is always told of the narrow range, with which it only
    shifts codes to the left. Those of the full range it would stretch, in some formats and planes and not in others. It
    has one thread, because in some widths a thread writes past the end of its rows, into the next thread's.
    """
    wide = frame.reformat(format="yuv444p16le", src_color_range="MPEG", dst_color_range="MPEG", threads=1)
    planes = [np.frombuffer(memoryview(plane), "<u2").reshape(frame.height, -1) for plane in wide.planes]
    full = frame.color_range == 2 and not frame.format.name.startswith("yuvj")  # swscale makes these narrow
    most = (1 << 16) - (1 << 16 - frame.format.components[0].bits)
    luma, chroma, black = (most, most, 0) if full else (219 << 8, 224 << 8, 16 << 8)
    red, blue = _LUMA[frame.colorspace]
    cr, cb, green = 2 * (1 - red), 2 * (1 - blue), 1 - red - blue
    matrix = np.array([[1, 0, cr], [1, -cb * blue / green, -cr * red / green], [1, cb, 0]]) / (luma, chroma, chroma)
    codes = np.array([black, 1 << 15, 1 << 15], np.float32)[:, None, None]
    return [plane[:, : frame.width] for plane in planes], codes, matrix.astype(np.float32)


def hlg_to_light(signal: _Floats) -> _Floats:
    """cd/m2 on a display of 1000 cd/m2 of R', G', B' on 0..1, [3, ...]: BT.2100, table 5, inverse OETF and OOTF."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    luminance = np.tensordot(np.array([0.2627, 0.6780, 0.0593], scene.dtype), scene, 1)
    return scene * (1000 * luminance ** (1.2 - 1))


_M1, _M2 = 2610 / 16384, 2523 / 4096 * 128  # these and the next: BT.2100, table 4
_C1, _C2, _C3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32


def pq_to_light(signal: _Floats) -> _Floats:
    """cd/m2 of PQ signals on 0..1: BT.2100, table 4, the EOTF."""
    power = signal ** (1 / _M2)
    return np.asarray(10000 * (np.maximum(power - _C1, 0) / (_C2 - _C3 * power)) ** (1 / _M1))


def light_to_pq(light: _Floats | float) -> _Floats:
    """PQ signals on 0..1 of cd/m2: BT.2100, table 4, the inverse EOTF."""
    power = (np.asarray(light) / 10000) ** _M1
    return np.asarray(((_C1 + _C2 * power) / (1 + _C3 * power)) ** _M2)


@cache
def _pq_table() -> _Floats:
    return pq_to_light(np.linspace(0, 1, _LAST + 1)).astype(np.float32)


def eetf(light: _Floats, peak: float) -> _Floats:
    """cd/m2 on 0..peak to 0..203: BT.2390-8, section 5.4.1, with a black of 0. The same light where peak is 203."""
    if peak <= WHITE:
        return light
    source = light_to_pq(peak)
    most, e1 = light_to_pq(WHITE) / source, light_to_pq(light) / source  # maxLum, E1
    knee = 1.5 * most - 0.5  # KS
    t = np.maximum(e1 - knee, 0) / (1 - knee)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * most
    return pq_to_light(np.where(e1 < knee, e1, spline) * source)


def _eetf_gain(peak: float) -> _Floats:
    """What light of 0..peak is multiplied by, in steps of a table."""
    light = np.linspace(0, peak, _LAST + 1)[1:]
    return np.append(1, eetf(light, peak) / light).astype(np.float32)


@cache
def _srgb() -> Pixels:
    """Linear light on 0..1 to levels: IEC 61966-2-1, section 5.2."""
    light = np.linspace(0, 1, _LAST + 1)
    signal = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.asarray(np.rint(255 * signal), np.uint8)
