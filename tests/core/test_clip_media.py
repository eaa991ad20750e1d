"""In what form a clip's file may come, and that nothing beside it is opened."""

# ruff: noqa: SIM115 (files that are opened here are what is tested; Python closes them)

from __future__ import annotations

import base64
import gzip
import io
import mmap
import os
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from qalign_fast import PictureLimits, VideoError
from support.clips import animation, film, load, pictures, write_frames
from support.pictures import png_chunk

FILE = film("mpeg4", ".mp4")
DATA = FILE.read_bytes()
EXPECTED = load(FILE).pixels


@pytest.fixture
def server() -> Iterator[tuple[str, list[Any]]]:
    """An address, and the connections that were made to it."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.setblocking(False)
        made: list[Any] = []
        yield f"127.0.0.1:{listening.getsockname()[1]}", made
        with suppress(BlockingIOError):
            made.append(listening.accept())
        assert not made


@pytest.mark.parametrize(
    "name", ["clip:1.mp4", "file:x.mp4", "http:x.mp4", "-", "x%03d.mp4", "#1?.mp4", "concat:x.mp4"]
)
def test_any_name_is_a_files(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(DATA)
    assert np.array_equal(load(name).pixels, EXPECTED)


@pytest.mark.parametrize(
    "name",
    [
        "http://{server}/x.mp4",
        "rtsp://{server}/x",
        "tcp://{server}",
        "concat:real.mp4|real.mp4",
        "subfile,,start,0,end,0,,:real.mp4",
        "file:real.mp4",
        "file://{folder}/real.mp4",
        "async:real.mp4",
        "pipe:0",
        "fd:",
        "x%03d.mp4",
        "lavfi:testsrc",
    ],
)
def test_a_name_is_never_an_address(tmp_path: Path, name: str, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for real in ("real.mp4", "x001.mp4"):
        (tmp_path / real).write_bytes(DATA)
    with pytest.raises(VideoError, match="No such file or directory"):
        load(name.format(server=server[0], folder=tmp_path))


LISTS = {
    "ffconcat": "ffconcat version 1.0\nfile real.mp4\n",
    "ffconcat of a server": "ffconcat version 1.0\nfile http://{server}/x.mp4\n",
    "HLS": "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nreal.mp4\n#EXT-X-ENDLIST\n",
    "HLS of a server": "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nhttp://{server}/x.ts\n#EXT-X-ENDLIST\n",
    "SDP": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
    "a=rtpmap:96 H264/90000\n",
    "DASH": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'mediaPresentationDuration="PT3S" profiles="urn:mpeg:dash:profile:isoff-main:2011"><Period><AdaptationSet '
    'mimeType="video/mp4"><Representation id="1" bandwidth="1"><BaseURL>http://{server}/x.mp4</BaseURL>'
    "</Representation></AdaptationSet></Period></MPD>",
}


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize("name", ["list.mp4", "list.m3u8"])
def test_what_a_list_names_is_not_opened(
    tmp_path: Path, kind: str, name: str, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real.mp4").write_bytes(DATA)
    before = (tmp_path / "real.mp4").stat().st_atime_ns
    (tmp_path / name).write_text(LISTS[kind].format(server=server[0]))
    with pytest.raises(VideoError, match=rf"{name}: a list of other files, which are not opened; expected the file of"):
        load(name)
    assert (tmp_path / "real.mp4").stat().st_atime_ns == before


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.mp4")  # opening it would wait for a writer
    (tmp_path / "folder.mp4").mkdir()
    for path, cause in (
        (tmp_path / "fifo.mp4", "not a regular file"),
        ("/dev/zero", "not a regular file"),
        (tmp_path / "folder.mp4", "a folder, not a file"),
        (tmp_path / ("x" * 300), "File name too long"),
        ("\0.mp4", "null byte"),
    ):
        with pytest.raises(VideoError, match=cause):
            load(path)


class Reads:
    """A file that can only be read, perhaps a few bytes at a time."""

    def __init__(self, data: bytes, most: int | None = None) -> None:
        self._file, self._most = io.BytesIO(data), most

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size if self._most is None else min(size, self._most))


class Seeks(Reads):
    """One that can be sought in, and whose seek says nothing."""

    def seek(self, offset: int, whence: int = 0) -> None:
        self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def behind(data: bytes, file: Any) -> Any:
    """A file that stands where its clip begins."""
    file.write(b"something else" + data)
    file.seek(14)
    return file


def zipped(data: bytes) -> Any:
    with zipfile.ZipFile(out := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("clip.mp4", data)
    return zipfile.ZipFile(out).open("clip.mp4")


def tarred(data: bytes, mode: str) -> Any:
    with tarfile.open(fileobj=(out := io.BytesIO()), mode="w") as archive:
        (info := tarfile.TarInfo("clip.mp4")).size = len(data)
        archive.addfile(info, io.BytesIO(data))
    out.seek(0)
    opened: Any = tarfile.open(fileobj=out, mode=mode)
    return opened.extractfile(opened.next())


def piped(data: bytes) -> Any:
    out, into = os.pipe()

    def write() -> None:
        with os.fdopen(into, "wb") as file:
            file.write(data)

    threading.Thread(target=write).start()
    return os.fdopen(out, "rb", buffering=0)


def mapped(data: bytes) -> Any:
    (memory := mmap.mmap(-1, len(data))).write(data)
    memory.seek(0)
    return memory


MEDIA: dict[str, Callable[[bytes], Any]] = {
    "bytes": lambda data: data,
    "bytearray": bytearray,
    "memoryview": memoryview,
    "every second byte of memory": lambda data: memoryview(np.repeat(np.frombuffer(data, np.uint8), 2))[::2],
    "BytesIO": io.BytesIO,
    "BytesIO, behind": lambda data: behind(data, io.BytesIO()),
    "a file, behind": lambda data: behind(data, tempfile.TemporaryFile()),
    "a raw file": lambda data: behind(data, tempfile.TemporaryFile(buffering=0)),
    "a spooled file in memory": lambda data: behind(data, tempfile.SpooledTemporaryFile()),
    "a spooled file on disk": lambda data: behind(data, tempfile.SpooledTemporaryFile(max_size=10)),
    "a member of a zip": zipped,
    "a member of a tar": lambda data: tarred(data, "r"),
    "a member of a tar that is a stream": lambda data: tarred(data, "r|"),
    "gzip": lambda data: gzip.open(io.BytesIO(gzip.compress(data))),
    "mapped memory": mapped,
    "a pipe": piped,
    "only read": Reads,
    "only read, little at once": lambda data: Reads(data, 100),
    "seek says nothing": Seeks,
    "seek says nothing, little at once": lambda data: Seeks(data, 100),
    "a data set's bytes": lambda data: {"bytes": data, "path": None},
    "a data set's bytes with a name": lambda data: {"bytes": data, "path": "nowhere.mp4"},
    "a data: URI": lambda data: "data:video/mp4;base64," + base64.b64encode(data).decode(),
}


@pytest.mark.parametrize("form", MEDIA)
def test_a_clip_in_any_form_is_the_same(form: str) -> None:
    assert np.array_equal(load(MEDIA[form](DATA)).pixels, EXPECTED)


@pytest.mark.parametrize("form", ["bytes", "BytesIO, behind", "a pipe", "a data set's bytes", "a data: URI"])
def test_an_animation_in_any_form_is_the_same(form: str) -> None:
    data = animation("GIF")
    assert np.array_equal(load(MEDIA[form](data)).pixels, load(data).pixels)


def test_a_data_sets_path_and_a_path_of_any_kind() -> None:
    for media in ({"bytes": None, "path": str(FILE)}, {"path": FILE}, str(FILE), FILE):
        assert np.array_equal(load(media).pixels, EXPECTED)


@pytest.mark.parametrize("piping", [True, False])
def test_stdin_by_its_path(piping: bool) -> None:
    code = "from support.clips import load; print(load('/dev/stdin').pixels.sum())"
    with FILE.open("rb") as file:
        given: Any = {"input": DATA} if piping else {"stdin": file}
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=environment, **given)
    assert int(run.stdout) == EXPECTED.sum()


class Breaks(io.BytesIO):
    """A file whose connection is lost."""

    def __init__(self, data: bytes, after: int) -> None:
        super().__init__(data)
        self.left = after

    def read(self, size: int | None = -1) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("connection lost\nby the peer")
        return super().read(size)


@pytest.mark.parametrize("after", range(5))
def test_an_error_of_the_file_is_told_with_its_cause(tmp_path: Path, after: int) -> None:
    data = write_frames(tmp_path / "c.mov", "rawvideo", pictures(30, 128, 128)).read_bytes()
    assert len(data) > 1_400_000  # FFmpeg asks for 262,144 at once
    with pytest.raises(VideoError, match=r"^<Breaks>: cannot be read \(connection lost\)$") as caught:
        load(Breaks(data, after))
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_closed_file_and_a_text_file_are_refused() -> None:
    with FILE.open("rb") as closed:
        pass
    with pytest.raises(VideoError, match=r"cannot be read .*closed file"):
        load(closed)
    with FILE.open(encoding="latin-1") as text, pytest.raises(VideoError, match="open it in binary mode"):
        load(text)


class Counts(io.BytesIO):
    """A file that counts what is read of it."""

    count = 0

    def read(self, size: int | None = -1) -> bytes:
        found = super().read(size)
        self.count += len(found)
        return found


@pytest.mark.parametrize(
    ("codec", "suffix"), [("png", ".mov"), ("ffv1", ".mkv"), ("mpeg2video", ".ts"), ("png", ".avi")]
)
def test_a_file_is_read_once(codec: str, suffix: str) -> None:
    file = Counts(film(codec, suffix).read_bytes())
    load(file, fps=10)
    assert file.count < len(file.getvalue()) + 200  # and its first bytes, which say what it is
    assert not file.closed


def test_files_that_are_opened_are_closed(tmp_path: Path) -> None:
    (broken := tmp_path / "broken.mp4").write_bytes(DATA[:500])
    (gif := tmp_path / "a.gif").write_bytes(animation("GIF"))
    open_before = set(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else set()  # noqa: PTH208
    for path in (FILE, gif, broken):
        with suppress(VideoError):
            load(path)
    assert not open_before or set(os.listdir("/proc/self/fd")) == open_before  # noqa: PTH208


def test_limits_hold_in_every_form() -> None:
    for form in ("bytes", "BytesIO, behind", "a pipe", "a data: URI"):
        load(MEDIA[form](DATA), limits=PictureLimits(max_bytes=len(DATA)))
        with pytest.raises(VideoError, match="over the limit of 99 bytes"):
            load(MEDIA[form](DATA), limits=PictureLimits(max_bytes=99))


@pytest.mark.parametrize(
    ("within", "over"),
    [({"max_frames": 30}, {"max_frames": 29}), ({"max_seconds": 3}, {"max_seconds": 2.9}), ({}, {"max_pixels": 4095})],
)
@pytest.mark.parametrize("kind", ["film", "GIF"])
def test_limits_of_frames_seconds_and_pixels(within: dict, over: dict, kind: str) -> None:
    data = DATA if kind == "film" else animation("GIF")
    assert len(load(data, limits=PictureLimits(**within)).pixels) == 3
    with pytest.raises(VideoError, match="over the limit of"):
        load(data, limits=PictureLimits(**over))


SIDE = 12_000  # 432 MB as RGB


def png_bomb() -> bytes:
    """A PNG of 140 KB."""
    deflate = zlib.compressobj(9)
    row = bytes(1 + 3 * SIDE)
    data = b"".join(deflate.compress(row) for _ in range(SIDE)) + deflate.flush()
    header = png_chunk(b"IHDR", SIDE.to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0")
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")


@pytest.mark.parametrize("suffix", [".png", ".mov"])
def test_a_frame_over_the_limit_is_refused_without_its_memory(tmp_path: Path, suffix: str) -> None:
    path, bomb = tmp_path / f"bomb{suffix}", png_bomb()
    if suffix == ".png":
        path.write_bytes(bomb)
    else:  # its header speaks of another size
        with av.open(str(film("png", ".mov"))) as read, av.open(str(path), "w") as write:
            packet = av.Packet(bomb)
            packet.pts, packet.dts, packet.time_base = 0, 0, Fraction(1, 10)
            packet.stream = write.add_stream_from_template(read.streams.video[0])
            write.mux(packet)
    code = """
import sys
from resource import RUSAGE_SELF, getrusage
from qalign_fast import VideoError
from support.clips import FILM, load, write_frames
load(sys.argv[2])
before = getrusage(RUSAGE_SELF).ru_maxrss
try:
    load(sys.argv[1])
except VideoError as error:
    assert "over the limit of 120000000 pixels" in str(error), error
    print(getrusage(RUSAGE_SELF).ru_maxrss - before)
"""
    command = [sys.executable, "-c", code, str(path), str(film("png", ".mov"))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(command, capture_output=True, check=True, env=environment)
    assert int(run.stdout) < 100_000  # KB


def test_a_limit_of_any_size_may_be_given() -> None:
    assert np.array_equal(load(FILE, limits=PictureLimits(max_pixels=1 << 40)).pixels, EXPECTED)
