"""Floats, and more or fewer bits than 8: what each becomes, to the bit, and what is said where it comes out dark."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from qalign_fast import ImageError
from support.odd_pictures import check, encode, read
from support.pictures import random_picture, wide_png

RNG = np.random.default_rng(0)
PICTURE = random_picture(RNG, 60, 40)
GREY = np.asarray(PICTURE.convert("L"))


# Floats


def test_floats_on_0_to_1_are_those_on_0_to_255() -> None:
    values = RNG.random((40, 60), np.float32)
    large = encode(Image.fromarray(values * 255), "TIFF")
    for small in (encode(Image.fromarray(values), "TIFF"), encode(Image.fromarray(values), "PPM")):  # the latter: PFM
        np.testing.assert_array_equal(read(small)[0], read(large)[0])
        assert read(small)[1] == []
    np.testing.assert_array_equal(read(Image.fromarray(values))[0], read(large)[0])


def test_floats_of_bytes_are_the_bytes() -> None:
    for values in (GREY.astype(np.float32), GREY.astype(np.float32) / 255):
        check(encode(Image.fromarray(values), "TIFF"), Image.fromarray(GREY))


def test_of_a_float_tiff_with_pages_the_first_counts() -> None:
    pages = [Image.fromarray(values.astype(np.float32) / 255) for values in (GREY, 255 - GREY)]
    data = encode(pages[0], "TIFF", *pages[1:])
    check(data, Image.fromarray(GREY), "the first of its 2 frames was scored")


@pytest.mark.parametrize(
    "values, why",
    [
        ([0.1, np.nan], "from nan to nan"),
        ([0.5, np.inf], "from 0.5 to inf"),
        ([-0.5, 0.5], "from -0.5 to 0.5"),
        ([0, 65535], "from 0 to 65535"),
        ([-200, 200], "from -200 to 200"),
        ([0, 256], "from 0 to 256"),
    ],
)
def test_floats_on_another_scale_are_refused_with_their_range(values: list[float], why: str) -> None:
    with pytest.raises(ImageError, match=f"its values go {why}; floats are read on 0..1 and on 0..255"):
        read(encode(Image.fromarray(np.array([values], np.float32)), "TIFF"))


@pytest.mark.parametrize("value, grey", [(0, 0), (-0.0, 0), (1, 255), (1.000001, 255), (100, 100)])
def test_floats_all_the_same(value: float, grey: int) -> None:
    check(Image.fromarray(np.full((30, 30), value, np.float32)), Image.new("L", (30, 30), grey))


def test_floats_a_little_beyond_1_come_out_dark_and_it_is_said() -> None:
    _, said = read(Image.fromarray(np.linspace(0, 1.25, 100, dtype=np.float32).reshape(10, 10)))
    assert said == [
        "its largest value is 1.25 of 255, so it comes out dark; floats that go beyond 1 count as 0..255",
    ]


# More than 8 bits


def wide_files(values: np.ndarray) -> dict[str, object]:
    """Grey values up to 65535 in every form that keeps them as they are."""
    words = values.astype(np.uint16)
    return {
        "TIFF": encode(Image.fromarray(words), "TIFF"),
        "PNG": encode(Image.fromarray(words), "PNG"),
        "PGM": b"P5\n60 40\n65535\n" + words.astype(">u2").tobytes(),
        "TIFF of 32 bits": encode(Image.fromarray(values.astype(np.int32)), "TIFF"),
        "I;16": Image.fromarray(words),
        "I;16B": Image.frombytes("I;16B", (60, 40), words.astype(">u2").tobytes()),
        "I": Image.fromarray(values.astype(np.int32)),
    }


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_grey_of_fewer_bits_in_16_is_said(bits: int) -> None:
    values = RNG.integers(0, 1 << bits, (40, 60))
    values[0, 0] = highest = (1 << bits) - 1
    said = f"its largest value is {highest} of 65535, so it comes out dark; does it hold {bits} bits in 16?"
    for picture in wide_files(values).values():
        check(picture, Image.fromarray((values >> 8).astype(np.uint8)), said)


def test_grey_of_16_bits_keeps_its_high_byte_and_nothing_is_said() -> None:
    values = RNG.integers(0, 1 << 16, (40, 60))
    for picture in (*wide_files(values).values(), *wide_files(np.zeros((40, 60), int)).values()):
        read_values = np.zeros_like(values) if read(picture)[0].max() < 200 else values
        check(picture, Image.fromarray((read_values >> 8).astype(np.uint8)))


def test_a_pgm_that_says_how_many_bits_it_has_is_scaled_by_pillow() -> None:
    values = RNG.integers(0, 4096, (40, 60))
    data = b"P5\n60 40\n4095\n" + values.astype(">u2").tobytes()
    check(data, Image.fromarray((np.rint(values / 4095 * 65535).astype(int) >> 8).astype(np.uint8)))


def test_values_beyond_16_bits_are_clipped_and_it_is_said() -> None:
    check(
        encode(Image.fromarray(np.full((4, 5), 70_000, np.int32)), "TIFF"),
        Image.new("L", (5, 4), 255),
        "its values go from 70000 to 70000; they were clipped to 0..65535",
    )
    check(
        Image.fromarray(np.full((4, 5), -7, np.int32)),
        Image.new("L", (5, 4), 0),
        "its values go from -7 to -7; they were clipped to 0..65535",
    )


@pytest.mark.parametrize("colour, channels", [(2, 3), (4, 2), (6, 4)])
@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_colours_of_fewer_bits_in_16_are_said(colour: int, channels: int, bits: int) -> None:
    values = RNG.integers(0, 1 << bits, (40, 60, channels))
    values[0, 0] = (1 << bits) - 1
    if channels != 3:
        values[..., -1] = 65_535
    high = (values >> 8).astype(np.uint8)
    expected = Image.fromarray(high[..., 0] if channels == 2 else high[..., :3])
    dark = f"its largest value is {(1 << bits) - 1} of 65535, so it comes out dark; does it hold {bits} bits in 16?"
    check(wide_png(values, colour), expected, *([dark] if bits < 16 else []))


def test_1_bit_is_black_and_white() -> None:
    picture = Image.fromarray(GREY > 128)
    for data in (encode(picture, "PNG"), encode(picture, "TIFF", compression="group4"), encode(picture, "PPM")):
        check(data, Image.fromarray(np.where(GREY > 128, 255, 0).astype(np.uint8)))
