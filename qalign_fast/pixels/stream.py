"""A video file in, its frames out, by FFmpeg: upright, and past what cannot be decoded."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from qalign_fast.errors import VideoError, one_line
from qalign_fast.pixels.container import Container
from qalign_fast.pixels.footage import Extent, Shown, check_extent, extent_of
from qalign_fast.pixels.limits import PictureLimits, check_size
from qalign_fast.pixels.tone_mapping import hdr_of, tone_mapped

if TYPE_CHECKING:
    import numpy.typing as npt
    from av.video.frame import VideoFrame

    from qalign_fast.pixels.rule import Pixels

# Decoders whose threads, with _STRICT, let no damage pass unseen. With those of VP8, FFV1, MPEG-4 and others, the
# pixels of a damaged frame depend on the number of cores.
_THREADED = frozenset("h264 hevc vp9 av1 libdav1d prores mjpeg".split())
_STRICT = {"err_detect": "explode+crccheck+bitstream+buffer"}
_NOT_DECODED = "{count} packet{s} could not be decoded"
_AHEAD = 8  # frames decoded behind the last one taken: only they may show that it is damaged
_SLANT = 0.0175  # a display matrix may be off a right angle by 1 degree


class VideoFile:
    """A clip's file, opened. `with` closes the container, not the file."""

    def __init__(self, file: Any, name: str, limits: PictureLimits) -> None:
        """Opens a seekable binary file, where it stands, and counts its frames; none is decoded.

        Raises VideoError, and MissingExtraError without PyAV.
        """
        self._name, self._limits = name, limits
        self._said: dict[str, set[int]] = {}  # remarks, and the frames or packets for which each holds
        self._times: npt.NDArray[np.int64] = np.empty(0, np.int64)  # of all frames, ascending; empty: not all have one
        self._decoding: Iterator[VideoFrame] = iter(())
        self._damaged = False
        self._seen = 0  # frames that were decoded
        self._last = -1  # the number of the last of them
        self._lost = 0  # packets that could not be decoded, and were not yet missed
        self._container = Container(file, name, limits.max_pixels)
        self._threads = self._container.stream.codec_context.name in _THREADED
        try:
            self.extent = self._count()
        except BaseException:
            self._container.close()
            raise

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def rate(self) -> Fraction:
        """The header's average, or the measured one where the header's cannot be true."""
        header, extent = self._container.stream.average_rate, self.extent
        if header and self._denies(extent):
            said, found = float(header), float(extent.rate)
            self._say(f"its header says {said:.6g} frames a second; the {found:.4g} that were measured count")
            return extent.rate
        if header:
            return Fraction(header)
        return extent.rate or (extent.frames / extent.duration if extent.duration else Fraction(1))

    def frames(self) -> Iterator[Shown]:
        """As `Footage.frames`. A packet that cannot be decoded costs its own frames alone."""
        self._seen, self._last, self._lost, self._decoding = 0, -1, 0, self._decode()
        for frame in self._decoding:
            index = self._number(frame)
            yield Shown(index, self._time(frame, index), partial(self._rgb, frame, index))
        if self._seen == 0 and not self._threads and not self._container.stream.codec_context.width:
            most = f"over the limit of {self._limits.max_pixels} pixels (max_pixels)"
            raise VideoError(f"{self._name}: no frame can be decoded; their size is {most}, or damaged")

    def learn(self, short: bool) -> bool:
        """As `Footage.learn`.

        At damage, threads are given up: frames beside it would be lost, or come out otherwise elsewhere. Where there
        are fewer frames than packets, and the header knows, some packets show none, as those of second fields.
        """
        if self._threads:
            for frame in islice(self._decoding, _AHEAD):
                self._number(frame)
        frames = self.extent.frames
        shown = self._seen if short else round(frames * self._seen / (self._last + 1))
        if self._threads and (self._damaged or shown < frames):
            self._threads = self._damaged = False
        elif 0 < shown < frames and not self._damaged and self._are_all(shown):
            share, self._times = Fraction(shown, frames), np.empty(0, np.int64)
            rate, usual = self.extent.rate * share, self.extent.usual * share
            self.extent = replace(self.extent, frames=shown, rate=rate, usual=usual)
        else:
            return False
        self._said.clear()
        return True

    def _are_all(self, frames: int) -> bool:
        """Whether the header's rate speaks for so many frames, and not for as many as there are packets."""
        header, duration = self._container.stream.average_rate, self.extent.duration
        if not (header and duration):
            return len(self._times) == 0
        return abs(float(header * duration) - frames) < abs(float(header * duration) - self.extent.frames)

    def remarks(self) -> Iterator[str]:
        """As `Footage.remarks`."""
        yield from self._container.remarks
        for text, found in self._said.items():
            yield text.format(count=len(found), s="s" * (len(found) > 1))

    def _say(self, text: str, number: int = 0) -> None:
        self._said.setdefault(text, set()).add(number)

    def _count(self) -> Extent:
        """Frames are counted, not read from the header, which may be wrong or silent."""
        stream = self._container.stream
        if stream.width and stream.height:  # a header without a size: each frame is checked all the same
            check_size((stream.width, stream.height), self._name, self._limits.max_pixels, VideoError)
        times, stamped = array("q"), self._container.has_times
        frames, end, last = 0, None, 0  # when the last one begins to be shown, and for how long
        for packet in self._container.packets():
            if packet.is_discard or _is_hidden(packet, stream):
                continue
            frames, stamped = frames + 1, stamped and packet.pts is not None
            time = packet.pts if packet.pts is not None else packet.dts
            if time is not None:
                times.append(time)
                end, last = (time, packet.duration or 0) if end is None or time >= end else (end, last)
            check_extent(frames, Fraction(0), self._name, self._limits)
        ascending = np.sort(np.array(times, np.int64))
        if stamped and np.all(np.diff(ascending) > 0):
            self._times = ascending
        base = stream.time_base or Fraction(1)
        extent = extent_of(frames, ascending, last, base)
        if self._denies(extent):  # the last frame's duration may come from the same header
            extent = extent_of(frames, ascending, 0, base)
        check_extent(frames, extent.duration, self._name, self._limits)
        return extent

    def _denies(self, extent: Extent) -> bool:
        """Whether the header's rate cannot be true. What is cut off does not deny it: its times have gaps."""
        header = self._container.stream.average_rate
        return bool(header) and not self._container.remarks and extent.denies(header)

    def _decode(self) -> Iterator[VideoFrame]:
        """The frames of every packet, from the first again. With threads, up to the first sign of damage."""
        packets, stream = self._container.packets(), self._container.stream
        stream.thread_type = "FRAME" if self._threads else "NONE"
        stream.codec_context.options = {**self._container.limit, **(_STRICT if self._threads else {})}
        for number, packet in enumerate(chain(packets, [None])):  # None: what the decoder still holds
            for frame in self._decoded(stream, packet, number):
                self._damaged = self._damaged or frame.is_corrupt
                if self._threads and self._damaged:
                    return
                yield frame
            if self._threads and self._damaged:
                return

    def _decoded(self, stream: Any, packet: Any, number: int) -> list[VideoFrame]:
        try:
            return stream.decode(packet)  # type: ignore[no-any-return]
        except EOFError:  # the decoder holds nothing
            return []
        except self._container.av.error.FFmpegError:
            self._damaged = True
            self._lost += 1
            self._say(_NOT_DECODED, number)
            return []

    def _number(self, frame: VideoFrame) -> int:
        """A frame's number, by its time where each has one of its own; else one more, and one for each lost packet."""
        index = self._last + 1 + self._lost
        if len(self._times) and frame.pts is not None:
            index = max(self._last + 1, int(np.searchsorted(self._times, frame.pts)))
        missing = index - self._last - 1
        for unseen in range(self._lost, missing):  # more than there were errors
            self._say(_NOT_DECODED, -1 - index + unseen)
        self._seen, self._last, self._lost = self._seen + 1, index, max(0, self._lost - missing)
        return index

    def _time(self, frame: VideoFrame, index: int) -> Fraction:
        base = self._container.stream.time_base  # the last frames, which no packet brings, have none of their own
        if frame.pts is not None and base is not None:
            return Fraction(frame.pts * base)
        return self.extent.start + index / (self.extent.rate or Fraction(1))

    def _rgb(self, frame: VideoFrame, index: int) -> Pixels:
        """uint8 [H, W, 3], turned as the clip's display matrix says. The size may be another than the header's."""
        check_size((frame.width, frame.height), self._name, self._limits.max_pixels, VideoError)
        hdr = hdr_of(frame)
        if hdr and not self._limits.tone_map:
            self._say(f"HDR ({hdr}) was scored as if it were SDR; tone_map changes that")
        if frame.interlaced_frame:
            self._say("it is interlaced; each frame's two fields were scored as one picture")
        if frame.is_corrupt:
            self._say("{count} frame{s} of those scored may be damaged", index)
        try:
            rgb = tone_mapped(frame) if hdr and self._limits.tone_map else frame.to_ndarray(format="rgb24")
        except VideoError as error:
            raise VideoError(f"{self._name}: {error}") from error
        except (self._container.av.error.FFmpegError, ValueError) as error:
            raise VideoError(f"{self._name}: no RGB of {frame.format.name} frames ({one_line(error)})") from error
        return self._turned(cast("Pixels", rgb), frame)

    def _turned(self, rgb: Pixels, frame: VideoFrame) -> Pixels:
        """By a display matrix: x' = a x + c y, y' = b x + d y, in 16.16 fixed point (ISO/IEC 14496-12, 6.2.2)."""
        if self._container.is_picture and not self._limits.exif_rotate:  # what turns it is EXIF
            return rgb
        a, b, c, d = _matrix(frame)
        straight, across = max(abs(a), abs(d)), max(abs(b), abs(c))
        if min(straight, across) > _SLANT * max(straight, across):
            self._say("its display matrix turns it by another angle than a right one; it was not turned")
            return rgb
        if across > straight:
            rgb, a, d = rgb.transpose(1, 0, 2), c, b
        return np.ascontiguousarray(rgb[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def _matrix(frame: VideoFrame) -> tuple[float, float, float, float]:
    try:
        side = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV's, where a frame has side data of a kind that it does not know, as EXIF
        turn = np.deg2rad(frame.rotation)
        return np.cos(turn), -np.sin(turn), np.sin(turn), np.cos(turn)
    if side is None:
        return 1, 0, 0, 1
    a, b, _, c, d = (float(v) for v in np.frombuffer(cast("bytes", side), np.int32)[:5])
    return a, b, c, d


def _is_hidden(packet: Any, stream: Any) -> bool:
    """Whether it holds a picture that others refer to and that is not shown: the fourth bit of VP8 (RFC 6386, 9.1)."""
    return stream.codec_context.name == "vp8" and not memoryview(packet)[0] & 16
