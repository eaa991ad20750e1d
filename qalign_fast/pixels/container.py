"""An open video file in, the packets of its best video stream out, by FFmpeg, past places that are damaged.

FFmpeg is given the open file, never a name: it takes names for addresses, runs protocols such as concat:, and opens
what a playlist names.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

from qalign_fast.errors import MissingExtraError, VideoError, one_line

_KEPT = 64 << 20  # bytes of packets that are kept between counting and decoding, so that a file is read once
_BESIDE = 512  # bytes that a packet takes beside its data, about
_BREAKS = 3  # after so many failures to read on, one after another, a stream has ended
_OPTIONS = {"protocol_whitelist": "none"}  # nothing that a playlist names is opened
_BUFFER = 1 << 18  # bytes that FFmpeg asks for at once


class Container:
    """A video file that is open, and the stream in it that players show."""

    stream: Any  # after a call of `packets`, its decoder has decoded nothing

    def __init__(self, file: Any, name: str) -> None:
        """Opens a seekable binary file, where it stands. Raises VideoError, and MissingExtraError without PyAV."""
        self.av = import_av()
        self.remarks: list[str] = []  # on what is missing, known when the packets were read once
        self._file, self._start, self._name = file, file.tell(), name
        self._kept: list[Any] | None = []  # None: they are too large to be kept
        self._read = self._used = False  # whether packets were read, and were read twice
        self._open()

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
        try:
            self._container = self.av.open(
                source, "r", options=_OPTIONS, buffer_size=_BUFFER, metadata_errors="replace"
            )
        except (self.av.error.FFmpegError, OSError) as error:
            raise VideoError(f"{self._name}: {error.strerror or one_line(error)}") from error
        try:
            self.stream = self._best()
        except VideoError:
            self._container.close()
            raise

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
        size = 0
        listed, self._count, self._end, self._failed = self._listed(), 0, 0.0, False
        for packet in self._demux():
            size += packet.size + _BESIDE
            if self._kept is not None:
                self._kept.append(packet)
                self._kept = None if size > _KEPT else self._kept
            yield packet
        self.remarks += self._missing(listed)

    def _listed(self) -> int:
        """How many packets the header lists, in the formats that list them all."""
        if self._container.format.name.startswith("mov"):
            return len(self.stream.index_entries)
        return int(self.stream.frames) if self._container.format.name == "avi" else 0

    def _missing(self, listed: int) -> Iterator[str]:
        end, said = self._end, (self._container.duration or 0) / 1e6
        if self._count < listed:
            yield f"the stream breaks off: {self._count} of the {listed} packets that its header lists are there"
        elif self._container.format.name.startswith("matroska") and said > max(1.1 * end, end + 0.5):
            yield f"the stream breaks off: it ends after {end:.1f} of the {said:.1f} s that its header says"
        elif self._failed:
            yield "the stream breaks off, or a part of it cannot be read"

    def _demux(self) -> Iterator[Any]:
        failures, packets = 0, self._container.demux()
        while failures < _BREAKS:
            try:
                packet = next(packets, None)
            except self.av.error.FFmpegError:
                self._failed, failures = True, failures + 1
                packets = self._container.demux()
                continue
            if packet is None:
                return
            failures = 0
            if packet.dts is not None and packet.pts is not None:
                self._end = max(self._end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream_index == self.stream.index:
                self._count += (
                    bool(packet.size) or packet.dts is not None
                )  # not the empty one that PyAV adds at the end
                if packet.size:
                    yield packet


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
