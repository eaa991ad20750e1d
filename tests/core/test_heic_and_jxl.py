"""HEIC and JPEG XL: read where they are asked for, as their decoders give them, within our limits."""

from __future__ import annotations

import io
import struct
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from qalign_fast import ImageError, MissingExtraError
from support.odd_pictures import check, encode, read
from support.pictures import random_picture

RNG = np.random.default_rng(0)
PICTURE, OTHER = (random_picture(RNG, 60, 40) for _ in range(2))


def heic(picture: Image.Image, *more: Image.Image) -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif")
    file, heif = io.BytesIO(), pillow_heif.from_pillow(picture)
    for each in more:
        heif.add_from_pillow(each)
    heif.save(file)
    return file.getvalue()


def test_heic_is_what_its_decoder_gives_where_it_is_asked_for(tmp_path: Path) -> None:
    data = heic(PICTURE)
    decoded = sys.modules["pillow_heif"].open_heif(io.BytesIO(data)).to_pillow()
    (tmp_path / "photo.jpg").write_bytes(data)
    known = dict(Image.OPEN)
    for form in (data, tmp_path / "photo.jpg"):
        check(form, decoded, formats=("heic",))
        check(form, decoded, formats=("heic", "jxl"), exif_rotate=True)
        for formats in ((), ("jxl",)):
            with pytest.raises(ImageError, match=r"heic is read where it is asked for: formats=.*, --formats heic"):
                read(form, formats=formats)
    assert known == Image.OPEN
    check(heic(PICTURE, OTHER), decoded, "the first of its 2 frames was scored", formats=("heic",))
    with pytest.raises(ImageError, match="60x40 is over the limit"):
        read(data, formats=("heic",), max_pixels=2399)
    with pytest.raises(ImageError, match="damaged or truncated"):
        read(data[: len(data) // 2], formats=("heic",))


def jxl(picture: Image.Image, **options: object) -> bytes:
    pytest.importorskip("pillow_jxl")
    return encode(picture, "JXL", lossless=True, **options)


@pytest.mark.parametrize("container", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA"])
def test_jxl_is_read_where_it_is_asked_for(mode: str, container: bool) -> None:
    picture = PICTURE.convert(mode.rstrip("A") if mode == "LA" else "L" if mode == "L" else "RGB")
    if "A" in mode:
        picture.putalpha(OTHER.convert("L"))
    data = jxl(picture, use_container=container)
    np.testing.assert_array_equal(read(data, formats=("jxl",))[0], read(picture)[0])
    with pytest.raises(ImageError, match=r"jxl is read where it is asked for: formats=.*, --formats jxl"):
        read(data)
    with pytest.raises(ImageError, match="60x40 is over the limit of 2399 pixels"):
        read(data, formats=("jxl",), max_pixels=2399)
    with pytest.raises(ImageError, match="damaged or truncated JXL"):
        read(data[: len(data) // 2], formats=("jxl",))


def test_jxl_of_16_bits_and_of_floats() -> None:
    words = RNG.integers(0, 1 << 16, (40, 60), np.uint16)
    check(jxl(Image.fromarray(words)), Image.fromarray((words >> 8).astype(np.uint8)), formats=("jxl",))
    floats = Image.fromarray(np.asarray(PICTURE.convert("L")).astype(np.float32) / 255)
    np.testing.assert_array_equal(read(jxl(floats), formats=("jxl",))[0], read(floats)[0])


def test_a_jpeg_packed_as_jxl_is_that_jpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pillow_jxl")
    path = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    PICTURE.save(path, exif=exif)
    with Image.open(path) as jpeg, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        jpeg.save(tmp_path / "packed.jxl", lossless_jpeg=True)
    data = (tmp_path / "packed.jxl").read_bytes()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for rotate in (False, True):
        expected, _ = read(path, exif_rotate=rotate)
        np.testing.assert_array_equal(read(data, formats=("jxl",), exif_rotate=rotate)[0], expected)


@pytest.mark.parametrize("size", [(1, 1), (256, 256), (512, 513), (640, 480), (1920, 1080), (8, 9000), (2000, 1000)])
def test_the_size_of_a_jxl_is_known_from_its_header(size: tuple[int, int]) -> None:
    pytest.importorskip("pillow_jxl")
    from qalign_fast.pixels.jxl import jxl_size

    for container in (False, True):
        assert jxl_size(jxl(Image.new("L", size), use_container=container)) == size


def test_a_giant_jxl_is_refused_before_it_is_decoded() -> None:
    pytest.importorskip("pillow_jxl")
    bits = 0b11 << 1 | ((1 << 30) - 1) << 3 | 1 << 33  # a height of 30 bits, and as wide
    header = b"\xff\x0a" + bits.to_bytes(9, "little")
    boxed = b"\0\0\0\x0cJXL \r\n\x87\n" + struct.pack(">I4s", 0, b"jxlc") + header
    for data in (header + bytes(50), boxed + bytes(50)):
        with pytest.raises(ImageError, match="1073741824x1073741824 is over the limit"):
            read(data, formats=("jxl",))


@pytest.mark.parametrize("kind, package", [("heic", "pillow_heif"), ("jxl", "pillow_jxl")])
def test_a_parser_that_is_not_installed_is_said_to_be(kind: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = heic(PICTURE) if kind == "heic" else jxl(PICTURE)
    for module in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"reading {kind} needs .*: pip install 'qalign-fast\[formats\]'"):
        read(data, formats=(kind,))
    check(encode(PICTURE, "PNG"), PICTURE, formats=(kind,))


def test_avif_is_read_beside_heic() -> None:
    heic(PICTURE)
    data = encode(PICTURE, "AVIF")
    decoded = Image.open(io.BytesIO(data)).convert("RGB")
    for brand in (b"avif", b"mif1"):
        for formats in ((), ("heic",)):
            check(data[:8] + brand + data[12:], decoded, formats=formats)
