"""The C++ resize of pictures on every instruction set, to the bit against Pillow."""

from __future__ import annotations

import ctypes
import io
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qalign_fast import ImageError, PictureLimits
from qalign_fast.families.mplug_owl2.sizes import pixel_rule
from qalign_fast.pixels.paths import PLAIN, native_path
from qalign_fast.pixels.picture import load_pixels
from qalign_kernels.cpu import resize
from qalign_kernels.cpu.pillow_memory import decode_whole
from qalign_kernels.cpu.resize import isas, resize_native, windows
from qalign_kernels.cpu.sources import SOURCES
from support.goldens import ROOT
from support.pictures import RULE, pad_then_resize, random_picture, sizes_300


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """csrc/resize.cpp alone, compiled for this test."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    path = tmp_path_factory.mktemp("native") / "resize.so"
    source = SOURCES / "resize.cpp"
    subprocess.run([compiler, "-O3", "-std=c++17", "-fPIC", "-shared", "-o", path, source], check=True)
    return ctypes.CDLL(str(path))


NAMES = ("plain", "avx2", "avx512vnni", "dotprod")


@pytest.fixture(params=NAMES)
def isa(request: pytest.FixtureRequest, library: ctypes.CDLL) -> int:
    index = NAMES.index(request.param)
    if index not in isas(library):
        pytest.skip(f"this CPU has no {request.param}")
    return index


def check(library: ctypes.CDLL, isa: int, picture: Image.Image, side: int = 448) -> None:
    found = resize_native(library, picture, side, RULE.pad, isa)
    np.testing.assert_array_equal(found, pad_then_resize(picture, side), f"{picture.size} to {side}")


def test_300_sizes_are_bit_identical_to_pillow(library: ctypes.CDLL, isa: int) -> None:
    rng = np.random.default_rng(0)
    for width, height in sizes_300():
        check(library, isa, random_picture(rng, width, height))


@pytest.mark.parametrize("side", [1, 14, 30, 112, 225, 337, 1000])
def test_any_side(library: ctypes.CDLL, isa: int, side: int) -> None:
    rng = np.random.default_rng(1)
    for size in ((640, 427), (427, 640), (3, 500), (side, side), (1, 1), (1201, 1203), (3001, 5)):
        check(library, isa, random_picture(rng, *size), side)


def test_black_and_white_noise_is_cut_to_8_bits_as_pillow_does(library: ctypes.CDLL, isa: int) -> None:
    """These give the largest sums, above and below the range."""
    rng = np.random.default_rng(2)
    for width, height in ((100, 90), (448, 300), (900, 1200), (2000, 1999)):
        check(library, isa, Image.fromarray(rng.integers(0, 2, (height, width, 3), np.uint8) * 255))


def test_a_picture_that_pillow_keeps_in_pieces(library: ctypes.CDLL, isa: int) -> None:
    picture = random_picture(np.random.default_rng(3), 2301, 2203)
    assert 4 * picture.width * picture.height > Image.core.get_block_size()
    check(library, isa, picture)


def test_bands_of_any_height_give_the_same(library: ctypes.CDLL, isa: int, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = random_picture(np.random.default_rng(4), 1501, 1103)
    for rows in (16, 32, 112, 1104):
        monkeypatch.setattr(resize, "_BAND", rows * 4 * picture.width)
        check(library, isa, picture)


def test_arrays_of_3_and_4_bytes_a_pixel(library: ctypes.CDLL, isa: int) -> None:
    rng = np.random.default_rng(5)
    for width, height in ((1, 1), (5, 4), (6, 9), (7, 5), (640, 427), (301, 900)):
        array = rng.integers(0, 256, (height, width, 4), np.uint8)
        expected = pad_then_resize(Image.fromarray(array[..., :3]))
        for pixels in (array, np.ascontiguousarray(array[..., :3]), array[..., :3]):
            np.testing.assert_array_equal(resize_native(library, pixels, 448, RULE.pad, isa), expected)


LARGEST = 3 << 21  # 1.5: at a growing picture's edges the weights that are left are over 1


def test_limbs_are_the_weights() -> None:
    weights = np.random.default_rng(6).integers(-LARGEST, LARGEST, (448, 10, 4), np.int32)
    weights[0, 0] = [LARGEST, -LARGEST, 0, -1]
    high, low = np.moveaxis(resize._limbs(weights, resize.AVX2).astype(np.int64), 2, 0)
    np.testing.assert_array_equal(high * 256 + low, weights)
    for isa in (resize.VNNI, resize.DOTPROD):
        digits = resize._limbs(weights, isa).astype(np.int64)
        np.testing.assert_array_equal(digits[:, :, 0] + 256 * digits[:, :, 1] + 65536 * digits[:, :, 2], weights)


def test_weights_fit_their_limbs_and_add_up_to_one() -> None:
    """Weights of every ratio: growing, equal, shrinking, and the largest side that is accepted."""
    for length in (1, 2, 447, 448, 449, 1000, 4000, 65_535):
        _, weights = windows(length, 448)
        assert np.abs(weights).max() < LARGEST
        assert np.abs(weights.sum(1) - (1 << 22)).max() <= weights.shape[1]


@pytest.fixture(scope="module")
def arm_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tests/support/arm/resize_main.cpp, compiled for 64-bit ARM."""
    compiler = shutil.which("aarch64-linux-gnu-g++")
    if compiler is None or shutil.which("qemu-aarch64") is None:
        pytest.skip("aarch64-linux-gnu-g++ or qemu-aarch64 is not installed")
    path = tmp_path_factory.mktemp("arm") / "resize"
    source = ROOT / "tests/support/arm/resize_main.cpp"
    subprocess.run([compiler, "-O3", "-std=c++17", "-static", "-o", path, source], check=True)
    return path


def emulated(program: Path, cpu: str, isa: int, pixels: np.ndarray, side: int) -> tuple[int, np.ndarray]:
    """The best isa of an emulated CPU, and what `resize_native` would return there with `isa`."""
    height, width, channels = pixels.shape
    columns, rows = (resize._axis(length, max(width, height), side, isa) for length in (width, height))
    head = resize._Resize(columns.struct, rows.struct, width, height, side, channels, RULE.pad * 16)
    parts = [bytes([isa]), bytes(head), *(each.tobytes() for each in (pixels, *columns.arrays, *rows.arrays))]
    packed = b"".join(len(part).to_bytes(8, "little") + part for part in parts)
    run = subprocess.run(["qemu-aarch64", "-cpu", cpu, program], input=packed, capture_output=True, check=True)
    return run.stdout[0], np.frombuffer(run.stdout[1:], np.uint8).reshape(side, side, 3)


@pytest.mark.parametrize("cpu, isa", [("cortex-a72", resize.PLAIN), ("max", resize.DOTPROD)])
def test_arm_is_bit_identical_to_pillow(arm_program: Path, cpu: str, isa: int) -> None:
    rng = np.random.default_rng(13)
    for width, height, side in ((1, 1, 14), (7, 5, 30), (447, 300, 448), (33, 500, 112), (1201, 903, 337)):
        pixels = rng.integers(0, 2, (height, width, 4), np.uint8) * 255
        expected = pad_then_resize(Image.fromarray(pixels[..., :3]), side)
        for array in (pixels, np.ascontiguousarray(pixels[..., :3])):
            best, found = emulated(arm_program, cpu, isa, array, side)
            assert best == isa
            np.testing.assert_array_equal(found, expected)


SMALL = [(640, 427), (33, 500), (17, 16)]


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 20}], ids=str)
def test_a_jpeg_decodes_to_the_same_pixels(options: dict) -> None:
    for size in (*SMALL, (2500, 1800)):
        file = io.BytesIO()
        random_picture(np.random.default_rng(7), *size).save(file, "JPEG", **options)
        whole = decode_whole(Image.open(file))
        assert whole is not None
        np.testing.assert_array_equal(whole[..., :3], np.asarray(Image.open(file)))


@pytest.mark.parametrize("mode, kind", [("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "PNG"), ("RGB", "TIFF")])
def test_other_pictures_are_left_to_pillow(mode: str, kind: str) -> None:
    file = io.BytesIO()
    random_picture(np.random.default_rng(8), 60, 40).convert(mode).save(file, kind)
    assert decode_whole(Image.open(file)) is None


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM"])
def test_files_give_the_same_in_both_forms(library: ctypes.CDLL, kind: str, tmp_path: Path) -> None:
    for mode in ("RGB", "L"):
        for size in SMALL:
            path = tmp_path / "picture"
            random_picture(np.random.default_rng(9), *size).convert(mode).save(path, kind)
            for rotate in (False, True):
                plain, fast = (
                    load_pixels(path, RULE, path=f, limits=PictureLimits(exif_rotate=rotate))
                    for f in (PLAIN, native_path(library))
                )
                np.testing.assert_array_equal(fast, plain)


def test_pictures_and_arrays_give_the_same_in_both_forms(library: ctypes.CDLL) -> None:
    rgb = random_picture(np.random.default_rng(10), 301, 200)
    grey = np.asarray(rgb.convert("L"))
    arrays = (np.asarray(rgb), np.asarray(rgb)[:, ::-1], grey, grey[..., None], np.asarray(rgb.convert("RGBA")))
    tensor = torch.from_numpy(np.asarray(rgb) / 255).permute(2, 0, 1)
    for source in (rgb, rgb.convert("RGBA"), rgb.convert("P"), *arrays, tensor, tensor.half()):
        plain, fast = (load_pixels(source, pixel_rule(112), path=f) for f in (PLAIN, native_path(library)))
        np.testing.assert_array_equal(fast, plain)


def test_a_user_s_picture_is_not_changed(library: ctypes.CDLL, tmp_path: Path) -> None:
    path = tmp_path / "p.jpg"
    random_picture(np.random.default_rng(11), 64, 48).save(path)
    with Image.open(path) as picture:
        load_pixels(picture, RULE, path=native_path(library))
        assert not picture.readonly
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(Image.open(path)))


def test_a_damaged_jpeg_is_the_same_error(library: ctypes.CDLL) -> None:
    file = io.BytesIO()
    random_picture(np.random.default_rng(12), 200, 300).save(file, "JPEG")
    for data in (file.getvalue()[:5000], file.getvalue()[:700]):
        messages = []
        for each in (PLAIN, native_path(library)):
            with pytest.raises(ImageError, match="damaged or truncated JPEG") as caught:
                load_pixels(data, RULE, path=each)
            messages.append(str(caught.value))
        assert messages[0] == messages[1]


@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=str)
def test_a_jpeg_that_is_cut_off_gives_the_same_in_both_forms(library: ctypes.CDLL, options: dict) -> None:
    file = io.BytesIO()
    random_picture(np.random.default_rng(13), 200, 300).save(file, "JPEG", **options)
    limits = PictureLimits(allow_truncated=True)
    for share in (0.3, 0.7, 1):
        data = file.getvalue()[: int(len(file.getvalue()) * share) - 2]
        plain, fast = (load_pixels(data, RULE, path=f, limits=limits) for f in (PLAIN, native_path(library)))
        np.testing.assert_array_equal(fast, plain)
