"""A clip in, the pixels [F, S, S, 3] of its sampled frames out, decoded as a stream: only kept frames stay in memory.

Two rules say which frames: "index", upstream's, frame int(rate * i / fps) of a clip with `rate` frames a second on
average; "time", the frame on the screen at i / fps seconds, which is right where the frame rate varies.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal, cast

import numpy as np

from qalign_fast.errors import MissingExtraError, VideoError
from qalign_fast.pixels.limits import LIMITS, PictureLimits, check_bytes, check_size
from qalign_fast.pixels.paths import pixel_path
from qalign_fast.pixels.picture import stack_frames
from qalign_fast.pixels.rule import PixelRule, Pixels

if TYPE_CHECKING:
    import av
    from av.video.frame import VideoFrame

Sampling = Literal["index", "time"]


@dataclass(frozen=True)
class Clip:
    pixels: Pixels  # [F, S, S, 3]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Extent:
    """The facts of a stream that one pass over its packets gives. Nothing is decoded."""

    frames: int
    start: Fraction  # seconds
    duration: Fraction

    @property
    def rate(self) -> Fraction:
        return self.frames / self.duration if self.duration else Fraction(0)


def load_clip(
    path: str | os.PathLike[str],
    rule: PixelRule,
    *,
    max_frames: int,
    fps: float = 1.0,
    sampling: Sampling = "index",
    limits: PictureLimits = LIMITS,
) -> Clip:
    """The frames of a video file, `fps` a second, at most max_frames spread evenly; at least one.

    Raises VideoError naming the file for one over the limits, before a pixel is decoded, and for one that has no frame
    to decode; MissingExtraError where PyAV is missing.
    """
    av = _import_av()
    name = os.fspath(path)
    if not fps > 0 or fps == float("inf"):
        raise VideoError(f"fps is {fps}; expected a positive number of frames a second")
    try:
        if limits.max_bytes is not None:
            check_bytes(Path(name).stat().st_size, name, limits.max_bytes, VideoError)
        with av.open(name) as container:
            extent = _measure(container, name, limits)
        with av.open(name) as container:
            return _sample(container, extent, rule, max_frames, Fraction(fps), sampling, name, limits)
    except (av.error.FFmpegError, OSError) as error:
        raise VideoError(f"{name}: {error.strerror or error}") from error
    except ValueError as error:  # PyAV's for a path with a null byte
        raise VideoError(f"{name}: {error}") from error


def spread(total: int, most: int) -> list[int]:
    """At most `most` of the indices 0..total-1, evenly, the first and last among them."""
    if total <= most:
        return list(range(total))
    return [int(i) for i in np.linspace(0, total - 1, most).round()]


def _import_av() -> ModuleType:
    """PyAV, silenced: a damaged stream is told by its error, not by lines on stderr."""
    try:
        import av
    except ModuleNotFoundError as error:
        raise MissingExtraError("reading video needs PyAV: pip install 'qalign-fast[video]'") from error
    av.logging.set_level(None)
    module: ModuleType = av
    return module


def _measure(container: av.container.InputContainer, name: str, limits: PictureLimits) -> _Extent:
    """Frames are counted, not read from the header, which may be wrong or silent."""
    if not container.streams.video:
        raise VideoError(f"{name}: has no video stream")
    stream = container.streams.video[0]
    if stream.width and stream.height:  # a header without a size: each frame is checked all the same
        check_size((stream.width, stream.height), name, limits.max_pixels, VideoError)
    frames, first, last = 0, None, None
    try:
        for packet in container.demux(stream):
            if packet.size == 0:
                continue
            frames += 1
            time = packet.pts if packet.pts is not None else packet.dts  # AVI has no presentation times
            if time is not None:
                first = time if first is None else min(first, time)
                last = max(last or 0, time + (packet.duration or 0))
    except _import_av().error.FFmpegError:
        pass  # a broken stream: what came before the break counts
    base = stream.time_base or Fraction(1)
    if first is None or last is None:
        return _Extent(frames, Fraction(0), Fraction(0))
    return _Extent(frames, first * base, (last - first) * base)


def _sample(
    container: av.container.InputContainer,
    extent: _Extent,
    rule: PixelRule,
    max_frames: int,
    fps: Fraction,
    sampling: Sampling,
    name: str,
    limits: PictureLimits,
) -> Clip:
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    rate = stream.average_rate or extent.rate or Fraction(1)
    total = max(1, int(extent.frames / rate * fps if sampling == "index" else extent.duration * fps))
    chosen = spread(total, max_frames)
    warnings = []
    if len(chosen) < total:
        warnings.append(f"{len(chosen)} of {total} frames, spread evenly; max_frames is {max_frames}")
    decoded = _decode(container, stream)
    if sampling == "index":
        frames = _by_index(decoded, [int(rate * i / fps) for i in chosen])
    else:
        frames = _by_time(decoded, [extent.start + i / fps for i in chosen])
    pixels = [_resize(frame, rule, name, limits) for frame in frames]
    if not pixels:
        raise VideoError(f"{name}: not a single frame can be decoded")
    if len(pixels) < len(chosen):
        warnings.append(f"the stream breaks off: {len(pixels)} of {len(chosen)} frames could be decoded")
    return Clip(stack_frames(pixels, name), tuple(warnings))


def _resize(frame: VideoFrame, rule: PixelRule, name: str, limits: PictureLimits) -> Pixels:
    """uint8 [S, S, 3] of a frame, whose size may be another than the header's."""
    check_size((frame.width, frame.height), name, limits.max_pixels, VideoError)
    return rule.apply(cast("Pixels", frame.to_ndarray(format="rgb24")), pixel_path())


def _decode(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[VideoFrame]:
    """Frames in presentation order, up to where the stream breaks."""
    try:
        yield from container.decode(stream)
    except _import_av().error.FFmpegError:
        return


def _by_index(frames: Iterator[VideoFrame], wanted: Sequence[int]) -> Iterator[VideoFrame]:
    """The frames with these ascending indices; an index may come twice."""
    remaining = list(reversed(wanted))
    for index, frame in enumerate(frames):
        while remaining and remaining[-1] == index:
            remaining.pop()
            yield frame
        if not remaining:
            return


def _by_time(frames: Iterator[VideoFrame], wanted: Sequence[Fraction]) -> Iterator[VideoFrame]:
    """For each ascending time in seconds, the last frame shown by then; before the first frame, the first."""
    remaining = list(reversed(wanted))
    shown = None
    for frame in frames:
        if frame.pts is None or frame.time_base is None:
            continue
        while remaining and shown is not None and frame.pts * frame.time_base > remaining[-1]:
            remaining.pop()
            yield shown
        if not remaining:
            return
        shown = frame
    if shown is not None:
        for _ in remaining:
            yield shown
