"""Pixels equal those of Pillow, to the bit, when Pillow pads the whole picture and resizes it."""

from __future__ import annotations

import base64
import gzip
import io
import os
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image, ImageFile

from qalign_fast import ImageError, PictureLimits
from qalign_fast.families.mplug_owl2.sizes import pixel_rule
from qalign_fast.pixels.paths import PLAIN
from qalign_fast.pixels.picture import load_pixels
from qalign_fast.pixels.rule import PixelPath, Pixels
from support.pictures import RULE, pad_then_resize, random_picture, sizes_300


def test_300_sizes_are_bit_identical_to_padding_first() -> None:
    rng = np.random.default_rng(0)
    for width, height in sizes_300():
        picture = random_picture(rng, width, height)
        expected = pad_then_resize(picture)
        np.testing.assert_array_equal(load_pixels(picture, RULE, path=PLAIN), expected, f"{width}x{height}")


def test_another_side_than_448() -> None:
    rng = np.random.default_rng(1)
    for side in (112, 224, 336):
        picture = random_picture(rng, 300, 200)
        np.testing.assert_array_equal(load_pixels(picture, pixel_rule(side)), pad_then_resize(picture, side))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM"])
def test_formats_give_what_pillow_decodes(kind: str) -> None:
    rng = np.random.default_rng(2)
    for size in ((640, 427), (427, 640), (33, 500)):
        file = io.BytesIO()
        random_picture(rng, *size).save(file, kind)
        expected = pad_then_resize(Image.open(file).convert("RGB"))
        np.testing.assert_array_equal(load_pixels(file.getvalue(), RULE), expected)


class BytesPath:
    """A path of a caller's own kind, which is bytes."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __fspath__(self) -> bytes:
        return os.fsencode(self._path)


class Trickle:
    """A file that gives a few bytes at a time, as a socket does, as `kind`."""

    def __init__(self, data: bytes, kind: type = bytes) -> None:
        self._file, self._kind = io.BytesIO(data), kind

    def read(self, size: int = -1) -> object:
        return self._kind(self._file.read(min(size, 7)))


def encoded_forms(data: bytes, folder: Path) -> Iterator[object]:
    """A file in every form in which it may be given."""
    path = folder / "p.png"
    path.write_bytes(data)
    odd = folder / os.fsdecode(b"latin\xe9 data:image,.png")
    odd.write_bytes(data)
    yield from (path, str(path), np.str_(path), BytesPath(path), odd, os.fspath(odd), BytesPath(odd))
    yield from os.scandir(folder)
    yield from os.scandir(os.fsencode(folder))
    yield from (data, np.bytes_(data), bytearray(data), memoryview(data), memoryview(data.ljust(9996, b"\0")).cast("I"))
    yield memoryview(bytes(byte for pair in zip(data, bytes(len(data)), strict=True) for byte in pair))[::2]
    yield io.BytesIO(data)
    behind = io.BytesIO(b"before" + data)
    behind.seek(6)
    yield behind
    yield from (Trickle(data, kind) for kind in (bytes, bytearray, memoryview))
    yield gzip.GzipFile(fileobj=io.BytesIO(gzip.compress(data)))
    with zipfile.ZipFile(io.BytesIO(), "w") as archive:
        archive.writestr("p.png", data)
        yield archive.open("p.png")
    for buffering in (0, -1):
        with path.open("rb", buffering) as file:
            yield file
    yield from ({"bytes": data, "path": None}, {"bytes": data, "path": "gone.png"}, {"bytes": None, "path": str(path)})
    yield from ({"path": path}, {"bytes": bytearray(data)}, MappingProxyType({"bytes": data, "path": ""}))


def uris(data: bytes) -> Iterator[str]:
    text = base64.b64encode(data).decode()
    yield f"data:image/png;base64,{text}"
    yield f"data:image/png;base64,{text.rstrip('=')}"
    yield "data:image/png;base64," + "\r\n".join(text[i : i + 76] for i in range(0, len(text), 76))
    yield f"data:image/png;base64,{quote(text, safe='')}"
    yield f"data:;base64,{text}"
    yield f"data:image/svg+xml;charset=utf-8;base64,{text}"
    yield f"DATA:IMAGE/PNG;BASE64,{text}"
    yield np.str_(f"data:application/octet-stream;base64,{text}")
    yield f"data:image/png,{quote(data, safe='')}"
    yield f"data:,{quote(data, safe='')}"


def test_all_forms_of_a_picture_are_one(tmp_path: Path) -> None:
    file = io.BytesIO()
    picture = random_picture(np.random.default_rng(3), 60, 40)
    picture.save(file, "PNG")
    data = file.getvalue()
    expected = load_pixels(picture, RULE)
    forms = (np.asarray(picture), Image.open(io.BytesIO(data)), *uris(data))
    for form in chain(encoded_forms(data, tmp_path), forms):
        np.testing.assert_array_equal(load_pixels(form, RULE), expected, str(type(form)))


def test_a_name_with_a_colon_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("data:1.png", "data:1,2.png", "data:"):
        random_picture(np.random.default_rng(3), 30, 20).save(tmp_path / name, "PNG")
        assert load_pixels(name, RULE).shape == (448, 448, 3)


READ_STDIN = """
import sys
from qalign_fast.families.mplug_owl2.sizes import pixel_rule
from qalign_fast.pixels.picture import load_pixels
sys.stdout.buffer.write(load_pixels(sys.argv[1], pixel_rule(30)).tobytes())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux names what a process has open")
@pytest.mark.parametrize("kind", ["pipe", "file", "named pipe", "socket"])
def test_stdin_is_read_whatever_it_is(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "p.png"
    picture = random_picture(np.random.default_rng(3), 30, 20)
    picture.save(path)
    for name in ("/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"):
        command = [sys.executable, "-c", READ_STDIN, name]
        if kind == "pipe":
            run = subprocess.run(command, input=path.read_bytes(), capture_output=True, timeout=60, check=True)
        else:
            with opened_as(kind, path) as file:
                run = subprocess.run(command, stdin=file, capture_output=True, timeout=60, check=True)
        assert run.stdout == load_pixels(picture, pixel_rule(30)).tobytes()


@contextmanager
def opened_as(kind: str, path: Path) -> Iterator[object]:
    """A file's content, to be read from a file, from a pipe that has a name, or from a socket."""
    if kind == "file":
        with path.open("rb") as file:
            yield file
    elif kind == "socket":
        mine, theirs = socket.socketpair()
        with mine, theirs:
            mine.sendall(path.read_bytes())
            mine.shutdown(socket.SHUT_WR)
            yield theirs
    else:
        pipe = path.with_suffix(".pipe")
        pipe.unlink(missing_ok=True)
        os.mkfifo(pipe)
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        os.set_blocking(reader, True)
        pipe.write_bytes(path.read_bytes())  # the writer is gone when it is read
        yield reader
        os.close(reader)


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P", "PA", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"])
def test_every_8_bit_mode_is_pillows_rgb(mode: str) -> None:
    rng = np.random.default_rng(4)
    rgb = random_picture(rng, 70, 40)
    picture = rgb.convert("LA").convert("PA") if mode == "PA" else rgb.convert(mode) if mode not in ("LAB",) else None
    picture = picture or Image.frombytes("LAB", (70, 40), rng.integers(0, 256, 70 * 40 * 3, np.uint8).tobytes())
    np.testing.assert_array_equal(load_pixels(picture, RULE), pad_then_resize(picture.convert("RGB")))


def test_16_bit_grey_keeps_its_high_byte(tmp_path) -> None:
    grey = np.random.default_rng(5).integers(0, 65536, (40, 70), np.uint16)
    expected = load_pixels((grey >> 8).astype(np.uint8), RULE)
    for suffix in ("png", "tiff"):
        path = tmp_path / f"grey.{suffix}"
        Image.fromarray(grey).save(path)
        np.testing.assert_array_equal(load_pixels(path, RULE), expected)
    wide = Image.fromarray(grey.astype(np.int32))
    assert wide.mode == "I"
    np.testing.assert_array_equal(load_pixels(wide, RULE), expected)


def test_grey_scores_as_its_three_equal_channels() -> None:
    grey = np.random.default_rng(6).integers(0, 256, (50, 80), np.uint8)
    np.testing.assert_array_equal(load_pixels(grey, RULE), load_pixels(np.stack([grey] * 3, -1), RULE))


def test_alpha_is_dropped_not_blended() -> None:
    rgb = random_picture(np.random.default_rng(7), 64, 64)
    clear = rgb.copy()
    clear.putalpha(0)
    np.testing.assert_array_equal(load_pixels(clear, RULE), load_pixels(rgb, RULE))


def test_exif_orientation_is_ignored_unless_asked() -> None:
    rgb = random_picture(np.random.default_rng(8), 80, 50)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees
    file = io.BytesIO()
    rgb.save(file, "PNG", exif=exif)
    np.testing.assert_array_equal(load_pixels(file.getvalue(), RULE), load_pixels(rgb, RULE))
    turned = rgb.transpose(Image.Transpose.ROTATE_270)
    np.testing.assert_array_equal(
        load_pixels(file.getvalue(), RULE, limits=PictureLimits(exif_rotate=True)), load_pixels(turned, RULE)
    )


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_of_several_frames_the_first_counts(kind: str) -> None:
    frames = [Image.new("RGB", (40, 30), colour) for colour in ((200, 10, 10), (10, 200, 10))]
    file = io.BytesIO()
    frames[0].save(
        file, kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
    )
    assert Image.open(file).n_frames == 2
    np.testing.assert_array_equal(load_pixels(file.getvalue(), RULE), pad_then_resize(Image.open(file).convert("RGB")))
    assert load_pixels(file.getvalue(), RULE)[224, 224, 0] > 150


def test_limits_can_be_moved() -> None:
    file = io.BytesIO()
    random_picture(np.random.default_rng(9), 100, 100).save(file, "PNG")
    data = file.getvalue()
    for limits in ({"max_pixels": 9_999}, {"max_bytes": len(data) - 1}):
        with pytest.raises(ImageError, match="over the limit"):
            load_pixels(data, RULE, limits=PictureLimits(**limits))
    load_pixels(data, RULE, limits=PictureLimits(max_pixels=10_000, max_bytes=len(data)))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_bug_of_ours_is_no_damaged_picture(kind: str) -> None:
    def square(rgb: object, side: int, pad: tuple[int, int, int]) -> Pixels:
        raise TypeError("a mistake in the resize")

    broken = PixelPath("broken", PLAIN.decode, square)
    file = io.BytesIO()
    picture = random_picture(np.random.default_rng(10), 40, 30)
    picture.save(file, kind)
    for each in (file.getvalue(), Image.open(file), picture, np.asarray(picture)):
        with pytest.raises(TypeError, match="a mistake in the resize"):
            load_pixels(each, RULE, path=broken)


def test_a_lazily_opened_picture_that_is_damaged_is_an_image_error() -> None:
    file = io.BytesIO()
    random_picture(np.random.default_rng(11), 90, 90).save(file, "PNG")
    with pytest.raises(ImageError, match="damaged or truncated PNG"):
        load_pixels(Image.open(io.BytesIO(file.getvalue()[:9000])), RULE)


def test_memory_that_is_short_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: Image.Image) -> None:
        raise MemoryError

    file = io.BytesIO()
    random_picture(np.random.default_rng(12), 40, 30).save(file, "PNG")
    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(ImageError, match=r"bytes>: not enough memory for 40x30 pixels"):
        load_pixels(file.getvalue(), RULE, path=PLAIN)
