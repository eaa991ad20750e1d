"""One item in, the body of a request out: a file's bytes, or pixels.

What is no file, and a file that is to be read in another way than a server would, becomes pixels here, by the model's
own rule. They go as a picture of the model's size. The server applies the same rule, which leaves such a picture as it
is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from secrets import token_hex
from threading import BoundedSemaphore, Condition
from typing import TYPE_CHECKING, Any, TypeAlias

from qalign_fast.errors import ImageError, QAlignError, VideoError
from qalign_fast.feed.prompts import check_frames
from qalign_fast.feed.reading import Keep, Read, Reader
from qalign_fast.feed.snapshots import as_it_is
from qalign_fast.pixels.arrays import is_tensor
from qalign_fast.pixels.encoded import is_encoded, media_name, plain, read_bytes
from qalign_fast.pixels.formats import open_picture
from qalign_fast.pixels.limits import LIMITS, MAX_PIXELS, PictureLimits, check_fps

if TYPE_CHECKING:
    from qalign_fast.engines.contract import Engine
    from qalign_fast.families.prompt import Prompt
    from qalign_fast.feed.items import Item
    from qalign_fast.pixels.rule import Pixels

_MOST_HELD = 256 << 20  # bytes of files that are read and not scored yet
_FILE = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Parcel:
    """A request's body. name: what errors call the item; warnings: what was said when it was read here."""

    body: bytes
    kind: str
    name: str
    warnings: tuple[str, ...] = ()


Label: TypeAlias = "str | os.PathLike[str]"  # a caller's path is asked for its text where it is read
Pack: TypeAlias = Callable[[], AbstractContextManager[Parcel]]  # holds the parcel's bytes as long as it is open


class Packer:
    """Makes parcels of one run's items. most_body: bytes of one at most; `workers` threads make pixels at a time."""

    def __init__(
        self, engine: Engine, limits: PictureLimits, most_body: int, tasks: Sequence[str], workers: int
    ) -> None:
        self._engine, self._limits, self._most = engine, limits, most_body
        self._reader = Reader(engine, limits, tasks)
        # A server has limits of its own: it knows nothing of these, but for those that are checked here.
        self._reads_as_server = replace(limits, max_bytes=None, max_pixels=MAX_PIXELS) == LIMITS
        self._all_pixels = limits.max_pixels == MAX_PIXELS
        self._turns, self._room = BoundedSemaphore(workers), Room(_MOST_HELD)

    def take(self, item: Item[Any], label: Label, prompts: Sequence[Prompt], keep: Keep) -> tuple[Pack, int]:
        """What packs the item later, in any thread, and the bytes that it holds or will need. Raises as a `Reader`."""
        kind = ImageError if item.medium == "image" else VideoError
        as_file = self._reads_as_server and (item.medium == "image" or self._all_pixels)
        if not (as_file and _is_file(item.media, kind)):
            work, held = self._reader.take(item, keep)
            return partial(self._pixels, work, label, kind), held + 2 * self._reader.pixel_bytes(item)  # and as a body
        if item.medium == "image":
            file: Any = item.media
            kept = keep(file, self._limits)
            return partial(self._file, kept.picture, kept.name, kind), kept.bytes
        most = self._engine.family.clip_frames if item.clip.max_frames is None else item.clip.max_frames
        check_frames(self._engine, most, prompts)
        return self._take_clip(item, keep)

    def _take_clip(self, item: Item[Any], keep: Keep) -> tuple[Pack, int]:
        """A caller's open file is read before the caller goes on."""
        media, name, fps = item.media, None, item.clip.fps
        if not isinstance(media, os.PathLike):
            media, name = plain(media, None, VideoError)
        pack, held = partial(self._file, kind=VideoError, fps=fps), 0
        if not (keep is as_it_is or isinstance(media, str | os.PathLike | bytes)):
            media = read_bytes(media, name or "", self._limits.stream_bytes, VideoError)
            held = len(media)
        return partial(pack, media, name), held

    @contextmanager
    def _file(self, media: Any, name: str | None, kind: type[QAlignError], fps: float = 1.0) -> Iterator[Parcel]:
        media, name = plain(media, name, kind)
        check_fps(fps)
        is_clip = kind is VideoError
        size = _size_of(media)
        self._check(size, name, kind)
        with self._room.of(size):
            most = self._limits.stream_bytes if is_clip else self._limits.picture_bytes
            data = read_bytes(media, name, most, kind)
            self._check(len(data), name, kind)
            if not (is_clip or self._all_pixels):
                open_picture(data, name, self._limits)  # which checks what the header says
            yield Parcel(data, _FILE, name)

    @contextmanager
    def _pixels(self, work: Callable[[], Read[Any]], label: Label, kind: type[QAlignError]) -> Iterator[Parcel]:
        with self._turns:
            read = work()
            if read.error:
                raise read.error
            pixels: Any = read.pixels
            frames = [as_file(frame) for frame in (pixels.cpu().numpy() if is_tensor(pixels) else pixels)]
        body, content_type = (frames[0], _FILE) if read.medium == "image" else as_frames(frames)
        name = media_name(label)
        self._check(len(body), name, kind)
        yield Parcel(body, content_type, name, read.warnings)

    def _check(self, size: int, name: str, kind: type[QAlignError]) -> None:
        if size > self._most:
            raise kind(f"{name}: over the limit of the server: {size} bytes, and it takes {self._most} (max_body)")


class Room:
    """Bytes that several threads hold together: one waits until its own have room, unless nobody holds any."""

    def __init__(self, most: int) -> None:
        self._most, self._held, self._changed = most, 0, Condition()

    @contextmanager
    def of(self, size: int) -> Iterator[None]:
        """Holds so many bytes while it is open."""
        with self._changed:
            self._changed.wait_for(lambda: not self._held or self._held + size <= self._most)
            self._held += size
        try:
            yield
        finally:
            with self._changed:
                self._held -= size
                self._changed.notify_all()


def as_file(pixels: Pixels) -> bytes:
    """uint8 [H, W, 3] as a PPM file: exact, and written and read in a fiftieth of a PNG's time."""
    height, width = pixels.shape[:2]
    return b"P6 %d %d 255\n" % (width, height) + pixels.tobytes()


def as_frames(files: Sequence[bytes]) -> tuple[bytes, str]:
    """A multipart body of a clip's frames in order, and its content type."""
    boundary = token_hex(16)
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="frames"; filename="frame"\r\n\r\n'.encode()
    parts = [part for file in files for part in (head, file, b"\r\n")]
    return b"".join([*parts, f"--{boundary}--\r\n".encode()]), f"multipart/form-data; boundary={boundary}"


def _is_file(media: Any, kind: type[QAlignError]) -> bool:
    """Whether it is a file in some form, and neither pixels nor frames. Raises `kind`."""
    if isinstance(media, Mapping):
        media, _ = plain(media, None, kind)
    return is_encoded(media)


def _size_of(media: Any) -> int:
    """The bytes of a file that is not in memory yet, as far as they can be known."""
    if isinstance(media, str | os.PathLike):
        with suppress(OSError, ValueError):
            return Path(os.fsdecode(media)).stat().st_size
    return 0
