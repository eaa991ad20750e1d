"""Makes clips whose frames show their own number, and changes them by their bytes as phones, taggers and damage do."""

from __future__ import annotations

import io
import random
import struct
import tempfile
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from PIL import Image

from qalign_fast.families.mplug_owl2.sizes import pixel_rule
from qalign_fast.pixels.clip import Clip, load_clip
from qalign_fast.pixels.limits import LIMITS, PictureLimits
from qalign_fast.pixels.stream import VideoFile

Frames = Sequence[npt.NDArray[np.uint8]]
RULE = pixel_rule(112)
ONE = 1 << 16  # 1 in a display matrix
PIXELS = {"png": "rgb24", "mjpeg": "yuvj420p", "rawvideo": "rgb24"}  # other codecs take yuv420p


def load(clip: Any, **options: Any) -> Clip:
    return load_clip(clip, RULE, **{"max_frames": 1000, **options})


def first_frame(data: bytes, limits: PictureLimits = LIMITS) -> tuple[npt.NDArray[np.uint8], list[str]]:
    """A video file's first frame [H, W, 3] before it is resized, and remarks."""
    with VideoFile(io.BytesIO(data), "clip", limits) as video:
        return np.asarray(next(video.frames()).rgb()), list(video.remarks())


def write_clip(path: Path, times: list[Fraction], rate: int = 30, size: int = 64) -> Path:
    """Writes a clip. Frame i is a grey of brightness 4 + 2 i, shown from times[i]."""
    codec = {".mp4": "mpeg4", ".mkv": "ffv1", ".avi": "mpeg4", ".webm": "libvpx"}[path.suffix]
    tick = Fraction(1, rate) if path.suffix == ".avi" else Fraction(1, 1000)  # AVI has one tick a frame
    frames = [np.full((size, size, 3), 4 + 2 * i, np.uint8) for i in range(len(times))]
    return write_frames(path, codec, frames, rate, times=times, tick=tick)


def constant(frames: int, rate: int) -> list[Fraction]:
    return [Fraction(i, rate) for i in range(frames)]


def pictures(count: int, height: int = 64, width: int = 64, seed: int = 0) -> list[npt.NDArray[np.uint8]]:
    """Frames [H, W, 3] that all differ, and in which no turn or flip looks like another."""
    rng = np.random.default_rng(seed)
    ground = rng.integers(0, 100, (height // 8 + 1, width // 8 + 1, 3)).repeat(8, 0).repeat(8, 1)[:height, :width]
    return [np.asarray(np.roll(ground, 3 * i, 1) + 3 * (i % 50), np.uint8) for i in range(count)]


FILM = pictures(30)  # 3 s at 10 frames a second


@cache
def film(codec: str, suffix: str) -> Path:
    """FILM by a codec in a container. Keyframes are 10 frames apart; H.264 has B-frames."""
    folder = Path(tempfile.mkdtemp(prefix="qalign-fast-tests-"))
    return write_frames(folder / f"{codec}{suffix}", codec, FILM, gop=10, b_frames=2 if codec == "libx264" else 0)


def numbers(clip: Any, source: Any, **options: Any) -> list[int]:
    """Which of all the frames of `source` those are that were taken of `clip`; -1 for none of them."""
    frames = load(source, fps=10).pixels
    taken = load(clip, **options).pixels
    return [next((i for i, frame in enumerate(frames) if np.array_equal(frame, one)), -1) for one in taken]


def write_frames(
    path: Path,
    codec: str,
    frames: Frames,
    rate: int = 10,
    *,
    pix_fmt: str | None = None,
    times: list[Fraction] | None = None,
    tick: Fraction | None = None,
    gop: int = 250,
    b_frames: int = 0,
    options: dict[str, str] | None = None,
    hdr: int = 0,
) -> Path:
    """Writes uint8 frames [H, W, 3]. `hdr`: the number of a curve, in BT.2020 (ITU-T H.273)."""
    tick = tick or Fraction(1, rate)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt or PIXELS.get(codec, "yuv420p")
        stream.bit_rate, stream.gop_size, stream.codec_context.max_b_frames = 4_000_000, gop, b_frames
        stream.codec_context.time_base = tick
        if hdr:
            context = stream.codec_context
            context.color_trc, context.color_primaries, context.colorspace = hdr, 9, 9
        for i, picture in enumerate(frames):
            frame: Any = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            if hdr:
                frame = frame.reformat(format=stream.pix_fmt)
                frame.color_trc, frame.color_primaries, frame.colorspace = hdr, 9, 9
            frame.pts, frame.time_base = int((times[i] if times else Fraction(i, rate)) / tick), tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def remux(source: Path, path: Path, start: Fraction = Fraction(0)) -> Path:
    """Copies packets, as `ffmpeg -ss START -c copy`: what is shown before `start` becomes lead-in."""
    with av.open(str(source)) as read, av.open(str(path), "w") as write:
        stream = read.streams.video[0]
        copy = write.add_stream_from_template(stream)
        for packet in _packets(read, stream):
            packet.pts = (packet.pts or 0) - int(start / packet.time_base)
            packet.dts = (packet.dts or 0) - int(start / packet.time_base)
            packet.stream = copy
            write.mux(packet)
    return path


def write_with_covers(source: Path, path: Path, covers: int = 1) -> Path:
    """The film, and covers as taggers attach them to it."""
    with av.open(str(source)) as read, av.open(str(path), "w", format=_format(path)) as write:
        attached = [_add_cover(write) for _ in range(covers)]
        copy = write.add_stream_from_template(read.streams.video[0])
        for cover in attached:
            packet = av.Packet(_red_jpeg())
            packet.pts, packet.dts, packet.time_base, packet.stream = 0, 0, Fraction(1), cover
            write.mux(packet)
        copy_packets(source, write, copy)
    return path


def copy_packets(source: Path, write: Any, stream: Any) -> None:
    """Into a stream of an open container."""
    with av.open(str(source)) as read:
        for packet in _packets(read, read.streams.video[0]):
            packet.stream = stream
            write.mux(packet)


def animation(kind: str, frames: Sequence[Image.Image] = (), **options: Any) -> bytes:
    """A GIF, WebP, PNG or AVIF of `frames`, or else of FILM, 100 ms each, without loss where it can be."""
    shown = list(frames) or [Image.fromarray(frame) for frame in FILM]
    if kind == "GIF":
        shown = [picture.convert("P", palette=Image.Palette.ADAPTIVE) for picture in shown]
    lossless = {"lossless": True} if kind == "WEBP" else {}
    out, made = io.BytesIO(), {"duration": 100, **lossless, **options}
    shown[0].save(out, kind, save_all=True, append_images=shown[1:], **made)
    return out.getvalue()


def cover_first(data: bytes) -> bytes:
    """An MP4 whose cover stands before the film, so that its stream is the first."""
    at = data.index(b"moov") - 4
    end = at + _size(data, at)
    inner = sorted(_boxes(data, at + 8, end), key=lambda box: {b"mvhd": 0, b"udta": 1}.get(box[4:8], 2))
    return data[: at + 8] + b"".join(inner) + data[end:]


def write_sound(path: Path, codec: str, cover: bool = False) -> Path:
    with av.open(str(path), "w", format=_format(path)) as container:
        picture = _add_cover(container) if cover else None
        stream: Any = container.add_stream(codec, rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 48000
        if picture:
            packet = av.Packet(_red_jpeg())
            packet.pts, packet.dts, packet.time_base, packet.stream = 0, 0, Fraction(1), picture
            container.mux(packet)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def with_matrix(data: bytes, a: int, b: int, c: int, d: int) -> bytes:
    """An MP4 or MOV with this display matrix: x' = a x + c y, y' = b x + d y."""
    at = data.index(b"tkhd") + 44
    return data[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[at + 36 :]


def with_rate(data: bytes, rate: float) -> bytes:
    """A Matroska file whose header says so many frames a second (DefaultDuration)."""
    at = data.index(b"\x23\xe3\x83")
    length = data[at + 3] & 0x7F
    return data[: at + 4] + round(1e9 / rate).to_bytes(length, "big") + data[at + 4 + length :]


def damaged(data: bytes, numbers: Sequence[int]) -> bytes:
    """A file in which these packets of the video are noise behind their first 8 bytes."""
    with av.open(io.BytesIO(data)) as container:
        places = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    changed, noise = bytearray(data), random.Random(0)
    for number in numbers:
        at, size = places[number]
        changed[at + 8 : at + size] = noise.randbytes(size - 8)
    return bytes(changed)


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    return (packet for packet in container.demux(stream) if packet.size)


def _format(path: Path) -> str | None:
    return "mp4" if path.suffix.startswith(".m4") else None  # FFmpeg would take another, which has no covers


def _add_cover(container: Any) -> Any:
    cover = container.add_stream("mjpeg", rate=1)
    cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
    cover.disposition = av.stream.Disposition.attached_pic
    return cover


def _red_jpeg() -> bytes:
    Image.new("RGB", (32, 32), "red").save(out := io.BytesIO(), "JPEG")
    return out.getvalue()


def _boxes(data: bytes, at: int, end: int) -> Iterator[bytes]:
    while at < end:
        yield data[at : at + _size(data, at)]
        at += _size(data, at)


def _size(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "big")
