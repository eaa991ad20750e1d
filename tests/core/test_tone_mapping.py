"""HDR frames made here by the standards' formulas in float64 come back as the SDR picture that they were made from."""

from __future__ import annotations

import io
from collections.abc import Callable

import av
import numpy as np
import pytest

from qalign_fast import VideoError
from qalign_fast.pixels.tone_mapping import eetf, hdr_of, hlg_to_light, light_to_pq, pq_to_light, tone_mapped

TAGS = {"PQ": 16, "HLG": 18}  # ITU-T H.273, table 3
# BT.709's R, G, B in those of BT.2020, from both standards' chromaticities
TO_2020 = np.array(
    [
        [0.627403895934699, 0.329283038377884, 0.043313065687417],
        [0.069097289358232, 0.919540395075459, 0.011362315566309],
        [0.016391438875150, 0.088013307877226, 0.895595253247624],
    ]
)
BITS = {"yuv420p": 8, "yuvj420p": 8, "yuv444p12le": 12, "yuv420p12le": 12}


def picture(height: int = 37, width: int = 41) -> np.ndarray:
    """Muted colours from black to white, uint8 [H, W, 3]; in saturated ones, one code of 10 bits is several levels."""
    random = np.random.default_rng(3)
    grey = random.integers(0, 256, (height, width, 1))
    return np.clip(grey + random.integers(-32, 33, (height, width, 3)), 0, 255).astype(np.uint8)


def light_of(pixels: np.ndarray) -> np.ndarray:
    """cd/m2 of sRGB's levels, white at 203."""
    signal = pixels / 255
    return 203 * np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)


def pq(light: np.ndarray) -> np.ndarray:
    power = (light / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def hlg(light: np.ndarray) -> np.ndarray:
    """The inverse OOTF of a display of 1000 cd/m2, then the OETF."""
    luminance = np.maximum(light @ [0.2627, 0.6780, 0.0593], 1e-9)[..., None] / 1000
    scene = light / 1000 * luminance ** (-0.2 / 1.2)
    return np.where(
        scene <= 1 / 12,
        np.sqrt(3 * scene),
        0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073,
    )


def codes_of(signal: np.ndarray, bits: int, full: bool, red: float, blue: float) -> np.ndarray:
    """Y', Cb, Cr [H, W, 3] of R'G'B' on 0..1, in whole numbers."""
    luma = signal @ [red, 1 - red - blue, blue]
    cb, cr = (signal[..., 2] - luma) / (2 - 2 * blue), (signal[..., 0] - luma) / (2 - 2 * red)
    step, most = 2 ** (bits - 8), 2**bits - 1
    if full:
        values = (luma * most, cb * most + 128 * step, cr * most + 128 * step)
    else:
        values = ((219 * luma + 16) * step, (224 * cb + 128) * step, (224 * cr + 128) * step)
    return np.clip(np.rint(np.stack(values, -1)), 0, most).astype(np.uint16)


def frame_of(codes: np.ndarray, format: str, transfer: int, full: bool = False, matrix: int = 9) -> av.VideoFrame:
    """Codes [H, W, 3] in the planes of a format; chroma is sampled, so that it should be flat where it has fewer."""
    frame = av.VideoFrame(codes.shape[1], codes.shape[0], format)
    for i, plane in enumerate(frame.planes):
        kind = np.uint8 if BITS.get(format) == 8 else np.uint16
        rows, columns = -(-codes.shape[0] // plane.height), -(-codes.shape[1] // plane.width)
        padded = np.zeros((plane.height, plane.line_size // np.dtype(kind).itemsize), kind)
        padded[:, : plane.width] = codes[::rows, ::columns, i]
        plane.update(padded.tobytes())
    frame.colorspace = frame.color_primaries = matrix
    frame.color_range, frame.color_trc = 2 if full else 1, transfer
    return frame


def hdr_frame(light: np.ndarray, hdr: str, format: str = "yuv444p10le", full: bool = False) -> av.VideoFrame:
    """A frame of light in cd/m2 [H, W, 3] in BT.709's primaries."""
    curve: Callable[[np.ndarray], np.ndarray] = {"PQ": pq, "HLG": hlg}[hdr]
    codes = codes_of(curve(light @ TO_2020.T), BITS.get(format, 10), full, 0.2627, 0.0593)
    return frame_of(codes, format, TAGS[hdr], full)


def largest_difference(got: np.ndarray, wanted: np.ndarray) -> int:
    assert got.shape == wanted.shape
    assert got.dtype == np.uint8
    return int(np.abs(got.astype(int) - wanted).max())


# BT.2408, table 1: percent of the signal for cd/m2 on a display of 1000 cd/m2
@pytest.mark.parametrize(("light", "in_pq", "in_hlg"), [(26, 38, 38), (162, 56, 71), (179, 57, 73), (203, 58, 75)])
def test_the_curves_have_the_levels_of_bt_2408(light: float, in_pq: float, in_hlg: float) -> None:
    signals = (np.arange(20001) / 20000)[None].repeat(3, 0)
    for curve, percent in ((pq_to_light, in_pq), (hlg_to_light, in_hlg)):
        nearest = signals[0, np.abs(curve(signals)[0] - light).argmin()]
        assert round(100 * nearest) == percent


def test_the_curves_have_the_points_of_their_standards() -> None:
    np.testing.assert_allclose(
        pq_to_light(np.array([0, 0.508078, 0.580689, 0.751827, 1])), [0, 100, 203, 1000, 10000], 1e-4
    )
    np.testing.assert_allclose(light_to_pq(np.array([100, 203, 1000, 10000])), [0.508078, 0.580689, 0.751827, 1], 1e-5)
    # OETF(1/12) = 1/2, where its two halves meet, and the OOTF of greys is 1000 E ** 1.2
    grey = np.array([[0, 0.5, 0.75, 1]]).repeat(3, 0)
    np.testing.assert_allclose(hlg_to_light(grey)[1], [0, 1000 / 12**1.2, 203.15, 1000], 1e-4)


def test_the_tag_of_the_transfer_tells_the_curve() -> None:
    frame = av.VideoFrame(2, 2, "yuv420p10le")
    found = []
    for frame.color_trc in (16, 18, 1, 2, 14, 13):
        found.append(hdr_of(frame))
    assert found == ["PQ", "HLG", None, None, None, None]


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("hdr", ["PQ", "HLG"])
def test_an_sdr_picture_in_hdr_comes_back(hdr: str, full: bool) -> None:
    wanted = picture()
    assert largest_difference(tone_mapped(hdr_frame(light_of(wanted), hdr, full=full)), wanted) <= 2


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("hdr", ["PQ", "HLG"])
def test_saturated_colours_come_back_from_12_bits(hdr: str, full: bool) -> None:
    wanted = np.random.default_rng(4).integers(32, 256, (40, 50, 3)).astype(np.uint8)
    assert largest_difference(tone_mapped(hdr_frame(light_of(wanted), hdr, "yuv444p12le", full)), wanted) <= 2


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("format", ["yuv420p10le", "yuv422p10le", "yuv420p12le"])
@pytest.mark.parametrize("hdr", ["PQ", "HLG"])
def test_a_flat_picture_comes_back_whatever_the_sampling_of_chroma(hdr: str, format: str, full: bool) -> None:
    for colour in ((255, 255, 255), (0, 0, 0), (200, 120, 90), (60, 70, 120)):
        wanted = np.full((18, 22, 3), colour, np.uint8)
        assert largest_difference(tone_mapped(hdr_frame(light_of(wanted), hdr, format, full)), wanted) <= 2


def test_the_full_range_is_read_alike_in_every_format() -> None:
    """swscale stretches full codes to 16 bits in 4:4:4 only, if it is told of them."""
    codes = np.full((8, 1024, 3), 512, np.uint16)
    codes[..., 0] = np.arange(1024)
    formats = ("yuv444p10le", "yuv422p10le", "yuv420p10le")
    one, *others = (tone_mapped(frame_of(codes, format, TAGS["HLG"], full=True)) for format in formats)
    for other in others:
        assert largest_difference(other, one) == 0


def test_8_bits_of_the_full_range_are_read_as_such_in_formats_that_swscale_makes_narrow() -> None:
    frame = frame_of(np.full((8, 8, 3), [140, 128, 128], np.uint16), "yuvj420p", TAGS["PQ"], full=True)
    np.testing.assert_allclose(pq(light_of(tone_mapped(frame))), 140 / 255, atol=0.003)


def test_no_thread_of_swscale_spoils_a_row() -> None:
    """Of this size, swscale with two threads spoiled the first eight pixels of a row in half of the frames."""
    frame = frame_of(np.full((360, 1080, 3), [314, 598, 500], np.uint16), "yuv422p10le", TAGS["PQ"])
    for _ in range(8):
        assert np.ptp(tone_mapped(frame), axis=(0, 1)).max() == 0


def test_bt_709_is_read_where_the_tags_say_so() -> None:
    wanted = picture()
    codes = codes_of(pq(light_of(wanted)), 10, False, 0.2126, 0.0722)
    assert largest_difference(tone_mapped(frame_of(codes, "yuv444p10le", 16, matrix=1)), wanted) <= 2


def test_a_frame_without_other_tags_is_bt_2020_in_the_narrow_range() -> None:
    frame = hdr_frame(light_of(picture()), "PQ")
    tagged = tone_mapped(frame)
    frame.colorspace = frame.color_primaries = 2
    frame.color_range = 0
    assert largest_difference(tone_mapped(frame), tagged) == 0


@pytest.mark.parametrize(
    ("format", "matrix", "primaries"), [("yuv444p10le", 14, 9), ("yuv444p10le", 9, 5), ("gbrp10le", 2, 9)]
)
def test_other_matrices_primaries_and_rgb_are_refused(format: str, matrix: int, primaries: int) -> None:
    frame = av.VideoFrame(8, 8, format)
    frame.color_trc, frame.colorspace, frame.color_primaries = TAGS["PQ"], matrix, primaries
    with pytest.raises(VideoError) as caught:
        tone_mapped(frame)
    found = f"{format} with matrix {matrix}, primaries {primaries} (ITU-T H.273)"
    assert str(caught.value) == f"HDR in {found} cannot be tone-mapped; expected YCbCr with 1 (BT.709) or 9 (BT.2020)"


@pytest.mark.parametrize("hdr", ["PQ", "HLG"])
def test_greys_up_to_1000_stay_grey_and_in_order(hdr: str) -> None:
    light = np.linspace(0, 1000, 512)[None, :, None].repeat(20, 0).repeat(3, 2)
    pixels = tone_mapped(hdr_frame(light, hdr)).astype(int)
    assert np.ptp(pixels, axis=-1).max() == 0
    assert np.diff(pixels[0, :, 0]).min() >= 0
    assert pixels[0, [0, -1], 0].tolist() == [0, 255]
    assert 220 < pixels[0, 104, 0] < 235  # 203 cd/m2 make room for what is brighter
    dark = light[..., 0] < 89  # the knee is at 89.9
    assert np.abs(light_of(pixels)[dark] - light[dark]).max() < 1


def test_bright_colours_keep_their_hue() -> None:
    orange = np.linspace(0, 1000, 256)[None, :, None] * np.array([1, 0.5, 0.25])
    light = np.concatenate([orange, np.full((1, 256, 3), 1000.0)])
    shown = light_of(tone_mapped(hdr_frame(light, "PQ", "yuv444p12le")))[0, 64:]
    np.testing.assert_allclose(shown[:, 1] / shown[:, 0], 0.5, rtol=0.03)
    np.testing.assert_allclose(shown[:, 2] / shown[:, 0], 0.25, rtol=0.03)


def test_a_few_pixels_do_not_darken_the_rest() -> None:
    light = light_of(picture(150, 150))
    plain = tone_mapped(hdr_frame(light, "PQ"))
    light[75, 75] = 4000
    bright = tone_mapped(hdr_frame(light, "PQ"))
    assert bright[75, 75].tolist() == [255, 255, 255]
    bright[75, 75] = plain[75, 75]
    assert largest_difference(bright, plain) == 0


def test_the_eetf_is_bt_2390s() -> None:
    """With a black of 0 its spline is knee + (1 - knee) (t - t**2 + t**3 / 3)."""
    light = np.linspace(0, 1000, 101)
    signal, most = pq(light) / pq(np.float64(1000)), pq(np.float64(203)) / pq(np.float64(1000))
    knee = 1.5 * most - 0.5
    t = np.clip((signal - knee) / (1 - knee), 0, 1)
    wanted = np.where(signal < knee, signal, knee + (1 - knee) * (t - t**2 + t**3 / 3)) * pq(np.float64(1000))
    np.testing.assert_allclose(pq(eetf(light, 1000)), wanted, atol=1e-6)
    np.testing.assert_allclose(eetf(light, 1000)[-1], 203)
    assert (eetf(light, 203) == light).all()


def test_a_decoded_frame_has_its_tags_and_keeps_them() -> None:
    written = hdr_frame(light_of(picture(32, 48)), "HLG", "yuv420p10le")
    clip = io.BytesIO()
    with av.open(clip, "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p10le"
        stream.codec_context.color_trc, stream.codec_context.color_primaries = 18, 9
        stream.codec_context.colorspace, stream.codec_context.color_range = 9, 1
        written.pts = 0
        container.mux([*stream.encode(written), *stream.encode()])
    with av.open(io.BytesIO(clip.getvalue())) as container:
        decoded = next(container.decode(video=0))
    assert hdr_of(decoded) == "HLG"
    assert largest_difference(tone_mapped(decoded), tone_mapped(written)) == 0
    assert (hdr_of(decoded), decoded.color_range, decoded.color_primaries, decoded.colorspace) == ("HLG", 1, 9, 9)
