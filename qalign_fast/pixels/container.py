"""An open video file in, the packets of its best video stream out, by FFmpeg, past places that are damaged.

FFmpeg is given the open file, never a name: it takes names for addresses, runs protocols such as concat:, and opens
what a playlist names.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from qalign_fast.errors import MissingExtraError, VideoError, one_line
from qalign_fast.pixels.limits import MAX_SIDE

_KEPT = 64 << 20  # bytes of packets that are kept between counting and decoding, so that a file is read once
_BESIDE = 512  # bytes that a packet takes beside its data, about
_BREAKS = 3  # after so many failures to read on, one after another, a stream has ended
_PADDING = 2 * 128 * MAX_SIDE  # pixels that a codec may add: each side has up to 127 more
_MOST_PIXELS = (1 << 31) - 1  # that FFmpeg takes for a limit
_JUMP = ("mpegts", "mpeg")  # formats in which parts with time stamps of their own are put together
_LISTS = (b"#EXTM3U", b"ffconcat", b"v=0", b"<?xml", b"<MPD", b"RTSPtext", b"rtsp:", b"http:", b"https:")
_HEAD = 64  # bytes in which a header tells the size of its file; as many may be missing: some writers count badly
_BUFFER = 1 << 18  # bytes that FFmpeg asks for at once


class Container:
    """A video file that is open, and the stream in it that players show."""

    stream: Any  # after a call of `packets`, its decoder has decoded nothing

    def __init__(self, file: Any, name: str, max_pixels: int) -> None:
        """Opens a seekable binary file, where it stands. Raises VideoError, and MissingExtraError without PyAV.

        `max_pixels`: larger frames are not decoded.
        """
        self.av = import_av()
        self.limit = {"max_pixels": str(min(max_pixels + _PADDING, _MOST_PIXELS))}  # an option for decoders
        self.remarks: list[str] = []  # on what is missing, known when the packets were read once
        self._file, self._start, self._name = file, file.tell(), name
        self._kept: list[Any] | None = []  # None: they are too large to be kept
        self._read = self._used = False  # whether packets were read, and were read twice
        self._open()

    @property
    def has_times(self) -> bool:
        """Whether its packets say when their frames are shown. In AVI, FFmpeg has to guess it."""
        return self._format != "avi"

    @property
    def is_picture(self) -> bool:
        """Whether it is a still picture's file, or several, one after another."""
        return self._format.endswith("_pipe")

    def close(self) -> None:
        """Closes the container, not the file."""
        self._container.close()

    def packets(self) -> Iterator[Any]:
        """The stream's packets, none of them empty, from the first again at each call.

        They come to an end where the file is cut off, and go on past what cannot be read of it.
        """
        if not self._read:
            self._read = True
            return self._first()
        if self._used or self._kept is None:
            self._container.close()
            self._open()
        self._used = True
        return self._demux() if self._kept is None else iter(self._kept)

    def _open(self) -> None:
        self._file.seek(self._start)
        source = _Source(self._file, self._start, self._name)
        options = {"protocol_whitelist": "none", **self.limit}  # nothing that a playlist names is opened
        try:
            self._container = self.av.open(source, "r", options=options, buffer_size=_BUFFER, metadata_errors="replace")
        except self.av.error.FFmpegError as error:
            raise VideoError(f"{self._name}: {self._not_opened()} ({error.strerror or one_line(error)})") from error
        try:
            self._format: str = self._container.format.name
            self.stream = self._best()
        except VideoError:
            self._container.close()
            raise

    def _not_opened(self) -> str:
        self._file.seek(self._start)
        if (self._file.read(16) or b"").lstrip(b"\xef\xbb\xbf").startswith(_LISTS):
            return "a list of other files, which are not opened; expected the file of a video"
        return "not a video that FFmpeg can read"

    def _best(self) -> Any:
        """The stream that players show. A cover is none."""
        streams = self._container.streams
        shown = [s for s in streams.video if not s.disposition & self.av.stream.Disposition.attached_pic]
        if not shown:
            raise VideoError(f"{self._name}: has no video stream")
        known = [s for s in shown if s.codec_context is not None]
        if not known:
            raise VideoError(f"{self._name}: this PyAV has no decoder for its video")
        best = streams.best("video")
        return best if best in known else known[0]

    def _first(self) -> Iterator[Any]:
        """As `packets`, for the first time. Keeps them, and learns what is missing."""
        size, listed = 0, len(self.stream.index_entries) if self._format.startswith("mov") else 0
        for packet in self._demux():
            size += packet.size + _BESIDE
            if self._kept is not None:
                self._kept.append(packet)
                self._kept = None if size > _KEPT else self._kept
            yield packet
        self.remarks += self._missing(listed)

    def _missing(self, listed: int) -> Iterator[str]:
        """`listed`: how many packets there were to be, in the formats whose header lists them all."""
        self._file.seek(0, os.SEEK_END)
        found = self._file.tell() - self._start
        self._file.seek(self._start)
        said = _said_size(bytes(self._file.read(_HEAD) or b""))
        if self._count < listed:
            yield f"the stream breaks off: {self._count} of the {listed} packets that its header lists are there"
        elif found < said - _HEAD:
            yield f"the stream breaks off: {found} of the {said} bytes that its header says are there"
        elif self._failed:
            yield "the stream breaks off, or a part of it cannot be read"

    def _demux(self) -> Iterator[Any]:
        self._count, self._failed = 0, False
        failures, packets = 0, self._container.demux(self.stream)
        clock = _Clock(float(self.stream.time_base or 1)) if self._format in _JUMP else None
        while failures < _BREAKS:
            try:
                packet = next(packets, None)
            except self.av.error.FFmpegError:
                self._failed, failures = True, failures + 1
                packets = self._container.demux(self.stream)
                continue
            except IndexError:  # PyAV's, at the end of a file in which another stream has appeared
                return
            if packet is None:
                return
            failures = 0
            self._count += packet.size > 0 or packet.dts is not None  # else it is PyAV's, which ends a stream
            if packet.size:
                yield clock.set(packet) if clock else packet


def _said_size(head: bytes) -> int:
    """How many bytes a file says to have, by its head: AVI's RIFF, Matroska's segment (RFC 8794); 0 where unknown."""
    if head[8:12] == b"AVI ":
        return (8 + int.from_bytes(head[4:8], "little")) % (1 << 32)
    if not head.startswith(b"\x1a\x45\xdf\xa3"):
        return 0
    header, at = _ebml_size(head, 4)
    size, behind = _ebml_size(head, at + header + 4)
    return behind + size if size and head[at + header :].startswith(b"\x18\x53\x80\x67") else 0


def _ebml_size(head: bytes, at: int) -> tuple[int, int]:
    """An element's size, 0 where it is unknown, and where its content begins."""
    length = 9 - head[at].bit_length() if at < len(head) and head[at] else 1
    ones = (1 << 7 * length) - 1
    size = int.from_bytes(head[at : at + length], "big") & ones
    return size if size < ones else 0, at + length


class _Clock:
    """Goes on where time stamps jump, as ffmpeg does: by over 10 s, or back."""

    def __init__(self, base: float) -> None:
        """`base`: of a time stamp, in seconds."""
        self._most, self._back = int(10 / base), int(0.1 / base)
        self._offset = 0
        self._next: int | None = None  # the decoding time that is expected

    def set(self, packet: Any) -> Any:
        if packet.dts is not None:
            delta = 0 if self._next is None else packet.dts + self._offset - self._next
            if delta > self._most or delta < -self._back:
                self._offset -= delta
            packet.dts += self._offset
            self._next = packet.dts + (packet.duration or 0)
        if packet.pts is not None:
            packet.pts += self._offset
        return packet


class _Source:
    """What FFmpeg sees of a file: where it stood is its beginning, and it has no name to guess a format by."""

    def __init__(self, file: Any, start: int, name: str) -> None:
        self._file, self._start, self._name = file, start, name

    def read(self, size: int = -1) -> bytes:
        try:
            return bytes(self._file.read(size) or b"")
        except Exception as error:  # the file's own: a lost connection, a damaged archive
            raise VideoError(f"{self._name}: cannot be read ({one_line(error)})") from error

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            self._file.seek(offset + (self._start if whence == 0 else 0), whence)
            return self.tell()
        except Exception as error:
            raise VideoError(f"{self._name}: cannot be read ({one_line(error)})") from error

    def tell(self) -> int:
        return int(self._file.tell()) - self._start


def import_av() -> ModuleType:
    """PyAV, silenced: a damaged stream is told by its error, not by lines on stderr."""
    try:
        import av
    except ModuleNotFoundError as error:
        raise MissingExtraError("reading video needs PyAV: pip install 'qalign-fast[video]'") from error
    av.logging.set_level(None)
    module: ModuleType = av
    return module
