"""A small valid file and a number in, a damaged file out; and the valid files, of many formats.

What is done to a file depends on the number and the seed alone, so that each damaged file can be made again.
"""

from __future__ import annotations

import io
import os
import zlib
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import numpy.typing as npt
from numpy.random import Generator, default_rng
from PIL import Image, PngImagePlugin


def seed_name(seeds: dict[str, bytes], number: int) -> str:
    """Which seed an item is made from."""
    return sorted(seeds)[number % len(seeds)]


def damaged(seeds: dict[str, bytes], name: str, number: int, seed: int = 0) -> bytes:
    """A seed after one to three kinds of damage. The first items are the seeds as they are."""
    data, random = seeds[name], default_rng([seed, number])
    if number < len(seeds):
        return data
    other = seeds[sorted(seeds)[random.integers(len(seeds))]]
    for _ in range(1 + random.binomial(2, 0.3)):
        if data:
            data = DAMAGES[random.integers(len(DAMAGES))](data, other, random)
    return with_checksums(data) if random.random() < 0.5 else data


def flip(data: bytes, _: bytes, random: Generator) -> bytes:
    """Other values in 1 to 16 bytes."""
    array = np.frombuffer(data, np.uint8).copy()
    for _i in range(1 << random.integers(5)):
        array[_place(data, random)] ^= random.integers(1, 256, dtype=np.uint8)
    return array.tobytes()


def cut(data: bytes, _: bytes, random: Generator) -> bytes:
    """The beginning alone."""
    return data[: random.integers(len(data) + 1)]


def splice(data: bytes, other: bytes, random: Generator) -> bytes:
    """The beginning of one file and the end of another."""
    return data[: random.integers(len(data) + 1)] + other[random.integers(len(other) + 1) :]


def repeat(data: bytes, _: bytes, random: Generator) -> bytes:
    """A piece comes again somewhere else."""
    start, end = _piece(data, random)
    place = random.integers(len(data) + 1)
    return data[:place] + data[start:end] + data[place:]


def delete(data: bytes, _: bytes, random: Generator) -> bytes:
    """A piece is left out."""
    start, end = _piece(data, random)
    return data[:start] + data[end:]


def extreme(data: bytes, _: bytes, random: Generator) -> bytes:
    """A field of 1 to 8 bytes becomes a power of two, or one less or more; 0 and the largest number are among them."""
    width, place = 1 << int(random.integers(4)), _place(data, random)
    value = (1 << int(random.integers(8 * width + 1))) + int(random.integers(-1, 2))
    in_order = (value % (1 << 8 * width)).to_bytes(width, "big")
    return data[:place] + in_order[:: random.choice([1, -1])] + data[place + width :]


DAMAGES = (flip, cut, splice, repeat, delete, extreme)


def _place(data: bytes, random: Generator) -> int:
    """Half of the time among the first or the last 256 bytes, where headers and indexes are."""
    near = int(random.integers(min(256, len(data))))
    return int(random.choice([near, len(data) - 1 - near, *random.integers(len(data), size=2)]))


def _piece(data: bytes, random: Generator) -> tuple[int, int]:
    start = int(random.integers(len(data)))
    return start, start + int(random.integers(1, 2 + len(data) // 4))


def with_checksums(data: bytes) -> bytes:
    """A PNG with right checksums, for a chunk with a wrong one is not looked at; other files as they are."""
    mended, place = bytearray(data), 8
    while data.startswith(b"\x89PNG") and place + 12 <= len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4], "big")
        if end + 4 <= len(data):
            mended[end : end + 4] = zlib.crc32(data[place + 4 : end]).to_bytes(4, "big")
        place = end + 4
    return bytes(mended)


def make_seeds(folder: Path) -> None:
    """Writes small pictures into folder/image and small clips into folder/video, as many kinds as can be made here."""
    os.environ.setdefault("SVT_LOG", "0")  # else the encoder of AV1 prints its settings
    for medium in ("image", "video"):
        (folder / medium).mkdir(parents=True, exist_ok=True)
    for name, mode, options in PICTURES:
        with suppress(OSError, KeyError):  # a codec that this Pillow lacks
            (folder / "image" / name).write_bytes(_encode(name, mode, options))
    for name, pixels, flags in MORE_PNGS:
        (folder / "image" / name).write_bytes(_encode_png(pixels, flags))
    for name, codecs, pixels, options in CLIPS:
        with suppress(av.FFmpegError, ValueError):
            _write_clip(folder / "video" / name, codecs, pixels, options)
    for name in ANIMATED:
        with suppress(FileNotFoundError):
            (folder / "video" / name).write_bytes((folder / "image" / name).read_bytes())


def read_seeds(folder: Path, medium: str) -> dict[str, bytes]:
    """What `make_seeds` wrote, by name."""
    return {path.name: path.read_bytes() for path in sorted((folder / medium).iterdir())}


def _picture(mode: str) -> Image.Image:
    """64x48 in a mode of Pillow: a ramp with noise in it."""
    rgb = Image.fromarray(_ramp(64, 48, 0))
    grey = np.asarray(rgb.convert("L"))
    wide: dict[str, npt.NDArray[Any]] = {
        "I;16": 257 * grey.astype(np.uint16),
        "I": 257 * grey.astype(np.int32),
        "F": grey.astype(np.float32),
    }
    return Image.fromarray(wide[mode]) if mode in wide else rgb.convert(mode)


def _ramp(width: int, height: int, step: int) -> npt.NDArray[np.uint8]:
    """[height, width, 3]; the noise moves with `step`."""
    y, x = np.mgrid[:height, :width]
    picture = np.stack([2 * x + 3 * step, 4 * y, x + y], axis=2).astype(np.uint8)
    picture[8 + step // 2 : 24 + step // 2, 16:36] = default_rng(0).integers(0, 256, (16, 20, 3))
    return picture


def _encode(name: str, mode: str, options: dict[str, Any]) -> bytes:
    Image.init()
    picture = _picture(mode)
    if "save_all" in options:
        options = options | {"append_images": [picture.rotate(90 * i) for i in (1, 2, 3)]}
    picture.save(file := io.BytesIO(), Image.EXTENSION[Path(name).suffix], **options)
    return file.getvalue()


def _encode_png(pixels: str, flags: str) -> bytes:
    encoder = av.VideoCodecContext.create("png", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = 64, 48, pixels, Fraction(1)
    encoder.options = {"flags": flags} if flags else {}
    frame = av.VideoFrame.from_ndarray(_ramp(64, 48, 0), format="rgb24").reformat(format=pixels)
    return b"".join(map(bytes, encoder.encode(frame)))


def _write_clip(path: Path, codecs: str, pixels: str, options: dict[str, str]) -> None:
    """24 frames at 10 a second, the same in each of the streams."""
    muxer = {"movflags": "frag_keyframe+empty_moov"} if path.stem == "fragmented" else {}
    with av.open(str(path), "w", options={"fflags": "+bitexact", **muxer}) as container:
        streams = []
        for codec in codecs.split("+"):
            stream = cast("av.VideoStream", container.add_stream(codec, rate=10, options={"threads": "1", **options}))
            stream.width, stream.height, stream.pix_fmt = 96, 72, pixels
            streams.append(stream)
        for i in range(24):
            frame = av.VideoFrame.from_ndarray(_ramp(96, 72, i), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 10)
            for stream in streams:
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode())


_EXIF = Image.Exif()
_EXIF[0x0112] = 6  # orientation: on its side
_TEXT = PngImagePlugin.PngInfo()
_TEXT.add_text("Comment", "many words " * 40, zip=True)
_TEXT.add_itxt("Title", "many words " * 40, zip=True)
_ICC = b"a profile of colours " * 20

PICTURES: tuple[tuple[str, str, dict[str, Any]], ...] = (  # name, mode of Pillow, options of its encoder
    ("rgb.jpg", "RGB", {}),
    ("progressive.jpg", "RGB", {"progressive": True, "subsampling": 0}),
    ("cmyk.jpg", "CMYK", {}),
    ("grey.jpg", "L", {"restart_marker_rows": 1}),
    ("exif.jpg", "RGB", {"exif": _EXIF, "icc_profile": _ICC}),
    ("two.mpo", "RGB", {"save_all": True}),
    *((f"{mode.lower()}.png", mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
    ("transparent.png", "P", {"transparency": b"\0\x80\xff"}),
    ("text.png", "RGB", {"pnginfo": _TEXT, "icc_profile": _ICC, "exif": _EXIF}),
    ("moving.apng", "RGBA", {"save_all": True, "duration": 400}),
    ("still.gif", "P", {"transparency": 3}),
    ("moving.gif", "RGB", {"save_all": True, "duration": 400, "disposal": 2, "loop": 0}),
    ("lossy.webp", "RGB", {"exif": _EXIF, "icc_profile": _ICC}),
    ("lossless.webp", "RGBA", {"lossless": True}),
    ("moving.webp", "RGBA", {"save_all": True, "duration": 400}),
    *(
        (f"{mode.lower()}.tif", mode, {})
        for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "LAB", "YCbCr", "I;16", "I", "F")
    ),
    *(
        (f"{code}.tif", "RGB", {"compression": code})
        for code in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd", "lzma")
    ),
    *((f"{code}.tif", "1", {"compression": code}) for code in ("group3", "group4")),
    ("pages.tif", "RGB", {"save_all": True, "compression": "jpeg", "exif": _EXIF}),
    ("big.tif", "L", {"big_tiff": True}),
    *((f"{mode.lower()}.bmp", mode, {}) for mode in ("1", "P", "RGB", "RGBA")),
    ("rgb.dib", "RGB", {}),
    ("rgb.ppm", "RGB", {}),
    ("l.pgm", "L", {}),
    ("i.pgm", "I", {}),
    ("1.pbm", "1", {}),
    ("rgb.avif", "RGB", {"exif": _EXIF}),
    ("moving.avif", "RGBA", {"save_all": True, "duration": 400}),
)
MORE_PNGS = (  # which Pillow reads and does not write: name, format of pixels, flags of FFmpeg's encoder
    ("adam7.png", "rgb24", "+ildct"),
    ("rgb48.png", "rgb48be", ""),
    ("la16.png", "ya16be", ""),
)
ANIMATED = ("moving.apng", "moving.gif", "moving.webp")  # of the pictures; they are clips too

CLIPS: tuple[tuple[str, str, str, dict[str, str]], ...] = (  # name, codecs, format of pixels, options of the encoder
    ("mpeg4.mp4", "mpeg4", "yuv420p", {}),
    ("h264.mp4", "libx264", "yuv420p", {"x264-params": "keyint=8"}),
    ("fragmented.mp4", "libx264", "yuv420p", {}),
    ("hdr.mp4", "libx264", "yuv420p10le", {"x264-params": "transfer=smpte2084:colorprim=bt2020:colormatrix=bt2020nc"}),
    ("hevc.mp4", "libx265", "yuv420p", {"x265-params": "log-level=none"}),
    ("av1.mp4", "libsvtav1", "yuv420p", {}),
    ("two.mkv", "mpeg4+libvpx", "yuv420p", {}),
    ("ffv1.mkv", "ffv1", "yuv420p", {"g": "8"}),
    ("h264.mkv", "libx264", "yuv420p", {}),
    ("vp8.webm", "libvpx", "yuv420p", {}),
    ("vp9.webm", "libvpx-vp9", "yuv420p", {}),
    ("mpeg4.avi", "mpeg4", "yuv420p", {}),
    ("mjpeg.avi", "mjpeg", "yuvj420p", {}),
    ("zmbv.avi", "zmbv", "bgr0", {}),
    ("utvideo.avi", "utvideo", "yuv420p", {}),
    ("png.mov", "png", "rgb24", {}),
    ("prores.mov", "prores_ks", "yuv422p10le", {}),
    ("svq1.mov", "svq1", "yuv410p", {}),
    ("mpeg2.ts", "mpeg2video", "yuv420p", {"flags": "+ildct+ilme"}),
    ("h264.ts", "libx264", "yuv420p", {}),
    ("flv1.flv", "flv", "yuv420p", {}),
    ("h264.flv", "libx264", "yuv420p", {}),
    ("wmv2.wmv", "wmv2", "yuv420p", {}),
    ("vp8.ogv", "libvpx", "yuv420p", {}),
    ("h264.264", "libx264", "yuv420p", {}),
    ("colours.gif", "gif", "rgb8", {}),
)
