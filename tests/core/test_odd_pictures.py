"""Pictures as people have them: what each becomes, to the bit, and what is said where that is surely not meant."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageFile, ImageSequence

from qalign_fast import ImageError
from qalign_fast.pixels import frame_counts
from qalign_fast.pixels.picture import load_pixels
from support.odd_pictures import RULE, check, encode, read
from support.pictures import png_chunk, random_picture, wide_png

RNG = np.random.default_rng(0)
PICTURE = random_picture(RNG, 60, 40)
OTHER = random_picture(RNG, 60, 40)
GREY = np.asarray(PICTURE.convert("L"))
TURNS = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
DAMAGED = "it is cut off or damaged, and was scored as far as it can be decoded"


# Limits


def large_files(picture: Image.Image) -> dict[str, bytes]:
    files = {kind: encode(picture, kind) for kind in ("JPEG", "PNG", "BMP", "DIB", "WEBP", "GIF", "PPM", "TIFF")}
    return files | {
        "WebP without loss": encode(picture, "WEBP", lossless=True),
        "TIFF in LZW": encode(picture, "TIFF", compression="tiff_lzw"),
        "TIFF of tiles": encode(picture, "TIFF", compression="packbits", tiffinfo={322: 32, 323: 32}),
        "MPO": encode(picture, "MPO", OTHER),
        "APNG": encode(picture, "PNG", OTHER),
        "animated GIF": encode(picture, "GIF", OTHER),
        "TIFF of pages": encode(picture, "TIFF", OTHER),
    }


@pytest.mark.parametrize("most", [100, 2000])  # of 2400: Pillow refuses what is over twice its limit, and else warns
def test_our_limit_is_the_only_one(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    files = large_files(PICTURE)
    expected = {kind: read(data)[0] for kind, data in files.items()}
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
    for kind, data in files.items():
        np.testing.assert_array_equal(read(data)[0], expected[kind], kind)
        with pytest.raises(ImageError, match=r"60x40 is over the limit of 2399 pixels \(max_pixels\)"):
            read(data, max_pixels=2399)
    assert most == Image.MAX_IMAGE_PIXELS


def test_a_picture_of_200_megapixels_is_scored_where_the_limit_allows_it() -> None:
    grey = encode(Image.new("L", (16_320, 12_240), 128), "PNG", compress_level=1)
    with pytest.raises(ImageError, match="16320x12240 is over the limit of 120000000 pixels"):
        read(grey)
    check(grey, Image.new("L", (1632, 1224), 128), max_pixels=250_000_000)


def test_108_megapixels_pass_by_default() -> None:
    check(encode(Image.new("L", (12_000, 9_000), 77), "PNG", compress_level=1), Image.new("L", (1200, 900), 77))


def test_a_limit_of_bytes_may_be_larger_than_memory() -> None:
    for form in (io.BytesIO(encode(PICTURE, "PNG")), encode(PICTURE, "PNG")):
        check(form, PICTURE, max_bytes=1 << 50)


# What a PNG holds beside the picture


def insert(data: bytes, chunk: bytes, before: bytes) -> bytes:
    at = data.index(before) - 4
    return data[:at] + chunk + data[at:]


LONG = zlib.compress(b"{'node': 1}, " * 170_000)  # 2 MB
METADATA = {
    "tEXt": png_chunk(b"tEXt", b"workflow\0" + b"x" * 2_000_000),
    "zTXt": png_chunk(b"zTXt", b"workflow\0\0" + LONG),
    "iTXt": png_chunk(b"iTXt", b"workflow\0\1\0\0\0" + LONG),
    "iCCP": png_chunk(b"iCCP", b"profile\0\0" + LONG),
    "EXIF in zTXt": png_chunk(b"zTXt", b"Raw profile type exif\0\0" + LONG),
    "IPTC in zTXt": png_chunk(b"zTXt", b"Raw profile type iptc\0\0" + LONG),
    "XMP": png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + LONG),
    "66 MB of texts": b"".join(png_chunk(b"tEXt", b"k%d\0" % i + b"x" * 1_000_000) for i in range(66)),
    "a damaged checksum": png_chunk(b"tEXt", b"a\0b")[:-1] + b"!",
    "an unknown compression": png_chunk(b"zTXt", b"a\0\7b"),
    "a profile of an unknown compression": png_chunk(b"iCCP", b"a\0\7b"),
    "gamma cut short": png_chunk(b"gAMA", b"a"),
    "a size in inches cut short": png_chunk(b"pHYs", b"a"),
    "damaged EXIF": png_chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 3\nzz"),
}


@pytest.mark.parametrize("kind", list(METADATA))
@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
def test_metadata_of_a_png_do_not_matter(kind: str, before: bytes) -> None:
    data = insert(encode(PICTURE, "PNG"), METADATA[kind], before)
    check(data, PICTURE, max_bytes=100 << 20)
    said = ["its EXIF data cannot be read; it was not turned"] if kind == "damaged EXIF" else []
    check(data, PICTURE, *said, exif_rotate=True, max_bytes=100 << 20)


EXIF = Image.Exif()
EXIF[ExifTags.Base.Orientation] = 6
HEX = EXIF.tobytes().hex()
PROFILE = f"\nexif\n{len(HEX) // 2:8}\n{HEX}\n".encode()
XMP = b'<rdf:Description tiff:Orientation="6"/>'
ORIENTED = {
    "eXIf": png_chunk(b"eXIf", EXIF.tobytes()[6:]),
    "tEXt": png_chunk(b"tEXt", b"Raw profile type exif\0" + PROFILE),
    "zTXt": png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(PROFILE)),
    "XMP": png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
    "compressed XMP": png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP)),
}


@pytest.mark.parametrize("kind", list(ORIENTED))
@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
def test_orientation_of_a_png_is_found_wherever_it_stands(kind: str, before: bytes) -> None:
    data = insert(encode(PICTURE, "PNG"), ORIENTED[kind], before)
    check(data, PICTURE)
    check(data, PICTURE.transpose(Image.Transpose.ROTATE_270), exif_rotate=True)


# Orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_all_orientations_are_applied_where_asked(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = encode(PICTURE, kind, exif=exif)
    stored = Image.open(io.BytesIO(data)).convert("RGB")
    turned = stored.transpose(TURNS[orientation]) if orientation > 1 else stored
    check(data, stored)
    check(data, turned, exif_rotate=True)
    check(Image.open(io.BytesIO(data)), turned, exif_rotate=True)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_pillow_turns_a_tiff_in_any_case_and_once(compression: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = encode(PICTURE, "TIFF", exif=exif, compression=compression)
    turned = PICTURE.transpose(TURNS[orientation]) if orientation > 1 else PICTURE
    for rotate in (False, True):
        check(data, turned, exif_rotate=rotate)
    if compression == "raw":
        assert read(data[:-300], allow_truncated=True)[1] == [DAMAGED]
        np.testing.assert_array_equal(read(data + b"more", allow_truncated=True)[0], read(data)[0])


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0junk and junk", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
def test_damaged_exif_does_not_matter_unless_it_is_asked_for(exif: bytes) -> None:
    data = encode(PICTURE, "JPEG").replace(b"JFIF\0\x01\x01\x01", b"JFIF\0\x01\x01\0")  # then Pillow looks into EXIF
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]
    stored = Image.open(io.BytesIO(encode(PICTURE, "JPEG")))
    check(data, stored)
    check(data, stored, "its EXIF data cannot be read; it was not turned", exif_rotate=True)


# Several frames


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_the_first_of_several_frames_is_scored_and_it_is_said(kind: str) -> None:
    rest = [random_picture(RNG, 60, 40) for _ in range(4)]
    lossless = {"lossless": True} if kind == "WEBP" else {}
    data = encode(PICTURE, kind, *rest, **lossless)
    first = Image.open(io.BytesIO(data)).convert("RGB")
    check(data, first, "the first of its 5 frames was scored")
    if kind != "WEBP":  # its decoder looks at the whole file first
        later = len(data) * 8 // 10
        damaged = data[:later] + b"\xff" * 30 + data[later + 30 :]
        np.testing.assert_array_equal(read(damaged)[0], read(data)[0])


def test_a_picture_with_a_preview_is_one_picture() -> None:
    data = encode(PICTURE, "MPO", OTHER)
    check(data, Image.open(io.BytesIO(encode(PICTURE, "JPEG"))))


def test_millions_of_frames_are_not_walked_through(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = b"\x2c" + struct.pack("<HHHH", 0, 0, 1, 1) + b"\0\x02\x02\x4c\x01\0"  # three steps
    data = encode(Image.new("L", (60, 40)), "GIF")[:-1] + tiny * 1000 + b";"
    assert read(data)[1] == ["the first of its 1001 frames was scored"]
    monkeypatch.setattr(frame_counts, "_MOST_STEPS", 300)
    (said,) = read(data)[1]
    assert 90 < int(said.split()[4]) <= 100


def test_pages_that_lead_in_a_circle_are_counted_once() -> None:
    data = encode(PICTURE, "TIFF")
    (first,) = struct.unpack("<I", data[4:8])
    (entries,) = struct.unpack_from("<H", data, first)
    after = first + 2 + 12 * entries
    check(data[:after] + struct.pack("<I", first) + data[after + 4 :], PICTURE)
    check(data[:after] + struct.pack("<I", 1 << 31) + data[after + 4 :], PICTURE)


# Alpha


def with_alpha(mode: str) -> tuple[Image.Image, Image.Image]:
    """A picture whose right two thirds are hidden, and it without alpha."""
    alpha = Image.fromarray(np.repeat(np.uint8([[255] * 20 + [0] * 40]), 40, 0))
    colours = PICTURE.convert("L") if mode == "LA" else PICTURE
    picture = colours.copy()
    picture.putalpha(alpha)
    return picture, colours


def transparent(mode: str) -> tuple[Image.Image, Image.Image]:
    """A picture of which one colour is transparent, and what that makes of it as RGBA."""
    grey = np.asarray(PICTURE.convert("L")) // 64
    hidden = Image.fromarray(np.where(grey == 1, 0, 255).astype(np.uint8))
    colours = Image.fromarray(grey * 80)
    if mode == "I;16":
        picture = Image.fromarray(grey.astype(np.uint16) * 80 * 257)
        picture.info["transparency"] = 80 * 257
    elif mode.startswith("P"):
        picture = Image.frombytes("P", (60, 40), grey.tobytes())
        picture.putpalette(bytes(value for i in range(4) for value in (80 * i,) * 3))
        picture.info["transparency"] = 1 if mode == "P, one" else bytes([255, 0, 255, 255])
    else:
        picture = colours.convert(mode)
        picture.info["transparency"] = 80 if mode == "L" else (80, 80, 80)
    seen = colours.convert("RGBA")
    seen.putalpha(hidden)
    return picture, seen


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", None])
def test_alpha_is_dropped_and_it_is_said_where_it_hides_half(mode: str, kind: str | None) -> None:
    picture, colours = with_alpha(mode)
    form = (
        picture
        if kind is None
        else encode(picture, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    )
    check(form, colours, "alpha hides 67% of it, and its hidden colours were scored; a background covers them")
    picture.putalpha(255)
    check(picture, colours)


@pytest.mark.parametrize("mode", ["L", "RGB", "I;16", "P, one", "P, some"])
def test_a_background_covers_what_is_transparent(mode: str) -> None:
    picture, seen = transparent(mode)
    colour = (200, 30, 7)
    ground = Image.new("RGBA", seen.size, (*colour, 255))
    expected = Image.alpha_composite(ground, seen)
    forms = (
        [picture] if mode == "I;16" else [picture, encode(picture, "PNG", transparency=picture.info["transparency"])]
    )
    for form in forms:
        check(form, expected, background=colour)
        check(form, seen.convert("RGB"))
    assert "transparency" in picture.info  # the caller's own


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_a_background_is_laid_as_pillow_composes(mode: str) -> None:
    picture = PICTURE.convert("L" if mode == "LA" else "RGB")
    picture.putalpha(OTHER.convert("L"))
    ground = Image.new("RGBA", picture.size, (9, 99, 199, 255))
    check(picture, Image.alpha_composite(ground, picture.convert("RGBA")), background=(9, 99, 199))


def test_more_transparency_than_colours_is_no_error() -> None:
    picture, seen = transparent("P, some")
    picture.info["transparency"] = bytes(300)
    check(picture, seen.convert("RGB"))


def test_16_bit_png_whose_one_value_is_transparent() -> None:
    values = np.where(GREY > 128, 40_000, 20_000)[..., None]
    data = wide_png(values, 0, png_chunk(b"tRNS", struct.pack(">H", 20_000)))
    expected = Image.fromarray(np.where(GREY > 128, 40_000 >> 8, 77).astype(np.uint8))
    check(data, expected, background=(77, 77, 77))


# Cut off


SMOOTH = random_picture(RNG, 30, 20).resize((400, 300), Image.Resampling.BICUBIC)
CUT = {
    "JPEG": encode(SMOOTH, "JPEG"),
    "progressive JPEG": encode(SMOOTH, "JPEG", progressive=True),
    "grey JPEG": encode(SMOOTH.convert("L"), "JPEG"),
    "PNG": encode(SMOOTH, "PNG"),
    "GIF": encode(SMOOTH, "GIF"),
    "BMP": encode(SMOOTH, "BMP"),
    "TIFF": encode(SMOOTH, "TIFF"),
    "PPM": encode(SMOOTH, "PPM"),
}


@pytest.mark.parametrize("kind", list(CUT))
@pytest.mark.parametrize("flag", [False, True])  # of a process that has Pillow take them
def test_a_picture_cut_off_is_refused_or_scored_as_far_as_it_goes(
    kind: str, flag: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", flag)
    whole, _ = read(CUT[kind])
    pixels, said = read(CUT[kind], allow_truncated=True)
    np.testing.assert_array_equal(pixels, whole)
    assert said == []
    wrong = []
    for share in (0.3, 0.6, 0.9):
        data = CUT[kind][: int(len(CUT[kind]) * share)]
        (tmp_path / "cut").write_bytes(data)
        for form in (data, io.BytesIO(data), tmp_path / "cut"):
            again = io.BytesIO(data) if isinstance(form, io.BytesIO) else form
            with pytest.raises(ImageError, match=f"damaged or truncated {kind.rsplit(maxsplit=1)[-1]}"):
                read(form)
            pixels, said = read(again, allow_truncated=True)
            assert said == [DAMAGED]
        wrong.append((pixels != whole).mean())
    assert 0.8 > wrong[0] > wrong[1] > wrong[2] > 0
    assert flag == ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize("kind", ["JPEG", "progressive JPEG"])
def test_a_jpeg_without_its_end_marker_has_all_its_pixels(kind: str) -> None:
    whole, _ = read(CUT[kind])
    pixels, said = read(CUT[kind][:-2], allow_truncated=True)
    np.testing.assert_array_equal(pixels, whole)
    assert said == [DAMAGED]
    for limits in ({}, {"allow_truncated": True}):
        pixels, said = read(CUT[kind] + b"garbage" * 100, **limits)
        np.testing.assert_array_equal(pixels, whole)
        assert said == []


def test_a_picture_of_which_nothing_can_be_decoded_is_refused_in_any_case() -> None:
    for kind in ("WEBP", "AVIF", "PNG", "JPEG"):
        with pytest.raises(ImageError, match="damaged"):
            read(encode(PICTURE, kind)[:40], allow_truncated=True)


def test_short_memory_is_no_truncation(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: Image.Image) -> None:
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(ImageError, match="not enough memory for 60x40 pixels"):
        read(encode(PICTURE, "PNG"), allow_truncated=True)


# Lists of pictures that are opened lazily


def test_a_picture_may_be_loaded_from_16_threads_at_once() -> None:
    from concurrent.futures import ThreadPoolExecutor

    for kind in ("JPEG", "PNG", "GIF", "TIFF", "WEBP"):
        data = encode(SMOOTH, kind)
        expected, _ = read(data)
        with ThreadPoolExecutor(16) as pool:
            for _ in range(5):
                lazy = Image.open(io.BytesIO(data))
                for found in pool.map(lambda _, lazy=lazy: load_pixels(lazy, RULE), range(16)):
                    np.testing.assert_array_equal(found, expected)


def test_frames_of_an_iterator_are_each_their_own() -> None:
    frames = [random_picture(RNG, 30, 20).quantize(32) for _ in range(6)]
    data = encode(frames[0], "GIF", *frames[1:])
    for frame, shown in zip(frames, ImageSequence.Iterator(Image.open(io.BytesIO(data))), strict=True):
        check(shown, frame)
