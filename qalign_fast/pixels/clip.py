"""A clip in, the pixels [F, S, S, 3] of its sampled frames out, decoded as a stream: only kept frames stay in memory.

Two rules say which frames: "index", upstream's, frame int(rate * i / fps) of a clip with `rate` frames a second on
average; "time", the frame on the screen at i / fps seconds, which is right where the frame rate varies.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import IO, Any, Literal

from PIL import Image

from qalign_fast.errors import ImageError, VideoError
from qalign_fast.pixels.animation import Animation
from qalign_fast.pixels.container import import_av
from qalign_fast.pixels.damage import enough_memory
from qalign_fast.pixels.encoded import is_encoded, open_path, plain, read_all
from qalign_fast.pixels.footage import Footage, Shown, by_index, by_time, spread
from qalign_fast.pixels.formats import loading, open_picture
from qalign_fast.pixels.limits import LIMITS, PictureLimits, check_bytes, check_fps
from qalign_fast.pixels.paths import pixel_path
from qalign_fast.pixels.picture import stack_frames
from qalign_fast.pixels.rule import PixelRule, Pixels
from qalign_fast.pixels.stream import VideoFile

Sampling = Literal["index", "time"]
_BY_PILLOW = (".gif", ".webp", ".png", ".apng")


@dataclass(frozen=True)
class Clip:
    """A clip's frames as the engine takes them, and what is odd about the clip, a sentence each."""

    pixels: Pixels  # [F, S, S, 3]
    warnings: tuple[str, ...]
    moments: tuple[tuple[int, float], ...]  # of each frame: its number among all, and the seconds where it is shown


def load_clip(
    clip: Any,
    rule: PixelRule,
    *,
    max_frames: int,
    fps: float = 1.0,
    sampling: Sampling = "index",
    limits: PictureLimits = LIMITS,
    name: str | None = None,
) -> Clip:
    """The frames of a video file or an animated picture, `fps` a second, at most max_frames spread evenly.

    There is at least one. `clip` is a file's path, its bytes, an open binary file (from where it stands), a data: URI,
    a data set's dict {"bytes": ..., "path": ...} or an animated PIL picture. A file that cannot be sought in, such as a
    pipe, is held in memory. Raises VideoError naming the file for one over the limits, before a pixel is decoded, and
    for one that has no frame to decode; MissingExtraError without PyAV.
    """
    clip, name = plain(clip, name, VideoError)
    check_fps(fps)
    try:
        with _opened(clip, name, limits) as footage:
            return _sample(footage, rule, max_frames, Fraction(fps), sampling, name)
    except ImageError as error:
        raise VideoError(str(error)) from error


@contextmanager
def _opened(clip: Any, name: str, limits: PictureLimits) -> Iterator[Footage]:
    if isinstance(clip, Image.Image):
        with loading(clip), Animation(lambda: clip, name, limits) as animation:
            yield animation
        return
    if not is_encoded(clip):
        raise VideoError(f"{name}: not a clip; expected a path, bytes, a binary file, a PIL picture or frames")
    if isinstance(clip, str | os.PathLike) and not os.fsdecode(clip).lower().endswith(_BY_PILLOW):
        import_av()  # what is to be installed is told even before a missing file
    with _sought(clip, name, limits) as file:
        if data := _animated(file, name, limits):
            with Animation(partial(open_picture, data, name, limits), name, limits) as animation:
                yield animation
        else:
            with VideoFile(file, name, limits) as video:
                yield video


@contextmanager
def _sought(clip: Any, name: str, limits: PictureLimits) -> Iterator[IO[bytes]]:
    """The clip as a file that can be sought in, checked against the limit of bytes. Closes what it opened."""
    if isinstance(clip, bytes | bytearray | memoryview):
        check_bytes(memoryview(clip).nbytes, name, limits.max_bytes, VideoError)
        yield io.BytesIO(bytes(clip))
    elif isinstance(clip, str | os.PathLike):
        with open_path(clip, name, limits.max_bytes, VideoError) as file:
            yield file if file.seekable() else _held(file, name, limits)
    else:
        yield clip if _check_file(clip, name, limits) else _held(clip, name, limits)


def _held(file: Any, name: str, limits: PictureLimits) -> io.BytesIO:
    data = read_all(file, name, limits.stream_bytes, VideoError)
    check_bytes(len(data), name, limits.stream_bytes, VideoError)
    return io.BytesIO(data)


def _check_file(file: Any, name: str, limits: PictureLimits) -> bool:
    """Whether a caller's file can be sought in; if so, its bytes are checked."""
    try:
        if not getattr(file, "seekable", lambda: True)():
            return False
        start = file.tell()
        file.seek(0, os.SEEK_END)
        size = file.tell() - start
        file.seek(start)
    except Exception:  # the file's own: what is wrong with it, if anything, reading it will tell
        return False
    check_bytes(size, name, limits.max_bytes, VideoError)
    return True


def _animated(file: IO[bytes], name: str, limits: PictureLimits) -> bytes | None:
    """The file's content if it is a GIF, or a WebP or PNG with several frames. FFmpeg reads other stills."""
    start = file.tell()
    begin = read_all(file, name, 31, VideoError)
    file.seek(start)
    png = begin.startswith(b"\x89PNG\r\n\x1a\n")
    webp = begin.startswith(b"RIFF") and begin[8:16] == b"WEBPVP8X" and begin[20] & 2
    if not (png or webp or begin.startswith(b"GIF8")):
        return None
    data = read_all(file, name, limits.stream_bytes, VideoError)
    check_bytes(len(data), name, limits.stream_bytes, VideoError)
    file.seek(start)
    if png and b"acTL" not in data[: data.find(b"IDAT")]:
        return None
    return data


def _sample(footage: Footage, rule: PixelRule, max_frames: int, fps: Fraction, sampling: Sampling, name: str) -> Clip:
    again = True
    while again:
        chosen, total, frames = _choose(footage, max_frames, fps, sampling)
        taken, moments = [], []
        for frame in frames:
            taken.append(_resized(frame, rule, name))
            moments.append((frame.index, float(frame.time - footage.extent.start)))
        again = footage.learn(len(taken) < len(chosen))
    if not taken:
        raise VideoError(f"{name}: not a single frame can be decoded")
    warnings = []
    if len(chosen) < total:
        warnings.append(f"{len(chosen)} of {total} frames, spread evenly; max_frames is {max_frames}")
    warnings += footage.remarks()
    if len(taken) < len(chosen):
        warnings.append(f"the stream breaks off: {len(taken)} of {len(chosen)} frames could be decoded")
    return Clip(stack_frames(taken, name), tuple(warnings), tuple(moments))


def _choose(
    footage: Footage, max_frames: int, fps: Fraction, sampling: Sampling
) -> tuple[list[int], int, Iterator[Shown]]:
    """Which of how many samples are wanted, and their frames, as far as there are any."""
    extent = footage.extent
    if sampling == "index":
        rate = footage.rate()
        chosen = spread(total := max(1, int(extent.frames / rate * fps)), max_frames)
        return chosen, total, by_index(footage.frames(), [int(rate * i / fps) for i in chosen])
    chosen = spread(total := max(1, int(extent.duration * fps)), max_frames)
    return chosen, total, by_time(footage.frames(), [extent.start + i / fps for i in chosen])


def _resized(frame: Shown, rule: PixelRule, name: str) -> Pixels:
    rgb = frame.rgb()
    with enough_memory(rgb.size if isinstance(rgb, Image.Image) else rgb.shape[1::-1], name):
        return rule.apply(rgb, pixel_path())
