"""Pictures that cannot be scored: each kind raises an ImageError of one line that names the file."""

from __future__ import annotations

import base64
import gzip
import io
import os
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from qalign_fast import ImageError, PictureLimits
from qalign_fast.families.mplug_owl2.sizes import pixel_rule
from qalign_fast.pixels import formats, parsers, picture, rgb
from qalign_fast.pixels.paths import PLAIN
from qalign_fast.pixels.picture import load_pixels
from support.pictures import png_chunk

RULE = pixel_rule(112)
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM")
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8))


def encoded(kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    PICTURE.save(file, kind, **options)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size, with almost no data."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(bytes(100))) + png_chunk(b"IEND", b"")


def bmp_header(width: int, height: int) -> bytes:
    return struct.pack(
        "<2sIHHIIiiHHIIiiII", b"BM", 154, 0, 0, 54, 40, width, height, 1, 24, 0, 100, 0, 0, 0, 0
    ) + bytes(100)


def gif_header(width: int, height: int) -> bytes:
    frame = b"," + struct.pack("<HHHH", 0, 0, width, height) + b"\0\x02\x02\x4c\x01\0;"
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\0\0" + bytes(6) + frame


def jpeg_header(width: int, height: int) -> bytes:
    data = bytearray(encoded("JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


BYTES: dict[str, bytes] = {
    "nothing": b"",
    "one byte": b"\xff",
    "text": b"this is no picture\n" * 50,
    "html": b"<html><body>404</body></html>",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "pdf": b"%PDF-1.4\n" + bytes(500),
    "postscript, which Pillow would hand to an interpreter": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    "zip": b"PK\x03\x04" + bytes(100),
    "mp4": b"\0\0\0\x18ftypmp42" + bytes(200),
    "zeros": bytes(10_000),
    "noise": np.random.default_rng(1).bytes(10_000),
    "psd": b"8BPS\0\x01" + bytes(100),
    "ico": b"\0\0\x01\0\x01\0" + bytes(100),
    "png signature alone": b"\x89PNG\r\n\x1a\n",
    "jpeg markers alone": b"\xff\xd8\xff\xd9",
    "gif signature alone": b"GIF89a",
    "tiff signature alone": b"II*\0",
    "tiff whose directory is nowhere": b"II*\0\xff\xff\xff\x7f",
    "webp signature alone": b"RIFF\x10\0\0\0WEBPVP8 ",
    "bmp signature alone": b"BM",
    "ppm without a size": b"P6\n",
    "ppm with a negative size": b"P6\n-5 5\n255\n" + bytes(75),
    "ppm with letters for a size": b"P6\nab cd\n255\n",
    "png of no width": png_header(0, 10),
    "png with a wrong checksum": encoded("PNG").replace(b"IHDR", b"IHDS"),
    "png bomb": png_header(50_000, 50_000),
    "png bomb beyond 32 bits": png_header(2**31 - 1, 2**31 - 1),
    "png of one endless row": png_header(90_000_000, 1),
    "png whose pixels are missing": png_header(3000, 3000),
    "bmp bomb": bmp_header(60_000, 60_000),
    "bmp of negative width": bmp_header(-60, 60),
    "gif bomb": gif_header(65_000, 65_000),
    "jpeg bomb": jpeg_header(65_500, 65_500),
    "jpeg of no height": jpeg_header(80, 0),
    "a file over the byte limit": encoded("PNG") + bytes(70 << 20),
}
for _kind in FORMATS:
    _whole = encoded(_kind)
    for _share in (0.02, 0.3, 0.6):
        BYTES[f"{_kind} cut at {_share:.0%}"] = _whole[: int(len(_whole) * _share)]


def assert_one_line(error: ImageError, name: str) -> None:
    message = str(error)
    assert name in message
    assert "\n" not in message
    assert len(message) > len(name) + 5


@pytest.mark.parametrize("kind", list(BYTES))
def test_bytes_that_are_no_picture(kind: str, tmp_path: Path) -> None:
    data = BYTES[kind]
    with pytest.raises(ImageError) as caught:
        load_pixels(data, RULE)
    assert_one_line(caught.value, f"<{len(data)} bytes>")
    path = tmp_path / "bad.bin"
    path.write_bytes(data)
    with pytest.raises(ImageError) as caught:
        load_pixels(path, RULE)
    assert_one_line(caught.value, str(path))


def make_fifo(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def make_loop(folder: Path) -> Path:
    (folder / "loop").symlink_to(folder / "loop")
    return folder / "loop"


PATHS: dict[str, Callable[[Path], object]] = {
    "a missing file": lambda folder: folder / "missing.jpg",
    "a folder": lambda folder: folder,
    "a pipe nobody writes to": make_fifo,
    "an endless device": lambda folder: "/dev/zero",
    "a link to itself": make_loop,
    "a name with a null byte": lambda folder: "a\0b.jpg",
    "a name too long": lambda folder: "x" * 5000 + ".jpg",
    "an address": lambda folder: "https://example.com/photo.jpg",
    "an empty name": lambda folder: "",
    "a device": lambda folder: "/dev/null",
    "a name of two lines": lambda folder: "no\nsuch.jpg",
    "a name that no system has": lambda folder: "a\ud800.jpg",
    "a file of the system, of no size": lambda folder: "/proc/self/status",
}


@pytest.mark.parametrize("kind", list(PATHS))
def test_paths_that_are_no_file(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ImageError) as caught:
        load_pixels(PATHS[kind](tmp_path), RULE)
    assert "\n" not in str(caught.value)


class Reading:
    """A file whose read gives this, or raises it."""

    def __init__(self, given: object) -> None:
        self._given = given

    def read(self, _: int) -> object:
        if isinstance(self._given, Exception):
            raise self._given
        return self._given


def released() -> memoryview:
    view = memoryview(bytearray(5))
    view.release()
    return view


OBJECTS: dict[str, object] = {
    "nothing": None,
    "a number": 5,
    "a list": [1, 2],
    "floats beyond 1": np.full((5, 5, 3), 1.5, np.float32),
    "floats below 0": np.full((5, 5, 3), -0.5, np.float16),
    "not a number": np.full((5, 5, 3), np.nan, np.float64),
    "16-bit array": np.zeros((5, 5, 3), np.uint16),
    "true and false": np.zeros((5, 5, 3), bool),
    "two channels": np.zeros((5, 5, 2), np.uint8),
    "channels first or last": np.zeros((3, 50, 3), np.uint8),
    "channels first": np.zeros((3, 50, 50), np.uint8),
    "one dimension": np.zeros(5, np.uint8),
    "a batch": np.zeros((2, 5, 5, 3), np.uint8),
    "no rows": np.zeros((0, 5, 3), np.uint8),
    "no columns": np.zeros((5, 0), np.uint8),
    "an array over the limit": np.broadcast_to(np.uint8(0), (20_000, 20_000)),
    "an empty PIL image": Image.new("RGB", (0, 0)),
    "a text file": io.StringIO("text"),
    "an empty file": io.BytesIO(),
    "a file that cannot be read": Reading(KeyError("lost")),
    "a file that has nothing yet": Reading(None),
    "a file that gives numbers": Reading(5),
    "a damaged archive": gzip.GzipFile(fileobj=io.BytesIO(gzip.compress(encoded("PNG"))[:100])),
    "a released memoryview": released(),
    "a dict without a picture": {"image": {"bytes": encoded("PNG"), "path": None}, "label": 3},
    "a dict of nothing": {},
    "a dict of None": {"bytes": None, "path": None},
    "a dict of no bytes": {"bytes": b"", "path": None},
    "a dict of text": {"bytes": base64.b64encode(encoded("PNG")).decode()},
    "a dict in a dict": {"bytes": {"bytes": encoded("PNG")}},
    "a dict of a number": {"path": 5},
}


@pytest.mark.parametrize("kind", list(OBJECTS))
def test_objects_that_are_no_picture(kind: str) -> None:
    with pytest.raises(ImageError) as caught:
        load_pixels(OBJECTS[kind], RULE)
    assert_one_line(caught.value, "<" if kind != "an endless device" else "")


URIS = {
    "damaged": "data:image/png;base64,iVBOR!!0KGgo",
    "cut off": "data:image/png;base64,iVBOR",
    "not ASCII": "data:image/png;base64,é",
    "of no system": "data:image/png,\udcff",
    "empty": "data:,",
    "a text": "data:,this%20is%20no%20picture",
    "5 MB of noise": "data:image/png;base64," + base64.b64encode(np.random.default_rng(2).bytes(5 << 20)).decode(),
    "5 MB without a comma": "data:image/png;base64" + "iVBO" * (5 << 18),
    "5 MB of base64 alone": "iVBO" * (5 << 18),
    "over the limit": "data:image/png;base64," + "iVBO" * (23 << 20),
}


@pytest.mark.parametrize("kind", list(URIS))
def test_an_error_does_not_repeat_a_data_uri(kind: str) -> None:
    with pytest.raises(ImageError) as caught:
        load_pixels(URIS[kind], RULE)
    name = str(caught.value).partition(":")[0]
    assert name in (f"<data URI of {len(URIS[kind])} characters>", f"<a name of {len(URIS[kind])} characters>")
    assert_one_line(caught.value, name)
    assert len(str(caught.value)) < 300


def test_a_pipe_that_nobody_writes_to_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="pipe: not a regular file"):
        load_pixels(make_fifo(tmp_path), RULE)


def test_a_closed_file_is_an_image_error() -> None:
    file = io.BytesIO(encoded("PNG"))
    file.close()
    with pytest.raises(ImageError):
        load_pixels(file, RULE)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    kind=st.sampled_from(FORMATS),
    cut=st.floats(0, 1),
    flips=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8),
)
def test_damaged_files_score_or_give_an_image_error(kind: str, cut: float, flips: list[tuple[float, int]]) -> None:
    data = bytearray(encoded(kind))
    for place, value in flips:
        data[int(place * (len(data) - 1))] = value
    try:
        pixels = load_pixels(bytes(data[: int(len(data) * cut) + 1]), RULE, limits=PictureLimits(max_pixels=1_000_000))
        assert pixels.shape == (112, 112, 3)
    except ImageError as error:
        assert "\n" not in str(error)


FAULTS = (TypeError, KeyError, OSError, SyntaxError, ValueError, struct.error, RecursionError, AttributeError, EOFError)
OURS = (
    (picture, "to_rgb"),
    (picture, "_upright"),
    (picture, "array_bytes"),
    (picture, "rgb_bytes"),
    (picture, "check_size"),
    (picture, "open_picture"),
    (picture, "count_frames"),
    (picture, "read_bytes"),
    (formats, "_parsers_of"),
    (formats, "check_size"),
    (parsers, "_without_metadata"),
    (rgb, "_warn_of_hidden"),
)


def pictures() -> dict[str, object]:
    clear = PICTURE.copy()
    clear.putalpha(128)
    files = {kind: encoded(kind) for kind in FORMATS}
    return {
        **files,
        "PIL": clear,
        "lazy": Image.open(io.BytesIO(files["PNG"])),
        "RGBA": np.asarray(clear),
        "RGB": np.asarray(PICTURE),
    }


@pytest.mark.parametrize("place", OURS, ids=lambda place: str(place[1]))
def test_a_fault_of_ours_is_no_damaged_picture(place: tuple[object, str], monkeypatch: pytest.MonkeyPatch) -> None:
    reached = 0
    for fault in FAULTS:

        def fail(*_: object, fault: type[Exception] = fault, **__: object) -> None:
            raise fault("a fault of ours")

        monkeypatch.setattr(*place, fail)
        for each in pictures().values():
            try:
                load_pixels(each, RULE, path=PLAIN, warn=lambda _: None)
            except fault as error:
                assert str(error).strip("'") == "a fault of ours"
                reached += 1
    assert reached >= len(FAULTS)


def test_a_caller_who_stands_deep_is_not_told_of_damage() -> None:
    data = encoded("PNG")

    def deep(calls: int) -> object:
        return deep(calls - 1) if calls else load_pixels(data, RULE)

    outcomes = set()
    for calls in range(0, sys.getrecursionlimit(), 10):
        try:
            deep(calls)
            outcomes.add("scored")
        except RecursionError:
            outcomes.add("too deep")
    assert outcomes == {"scored", "too deep"}
