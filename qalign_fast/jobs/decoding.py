"""Tasks in, pixels in a file out: what runs in a process of its own, so that a picture can kill nothing else."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from qalign_fast.errors import ImageError, InternalError, QAlignError, VideoError, one_line
from qalign_fast.feed.threads import give_way
from qalign_fast.pixels.encoded import media_name, open_path, read_all
from qalign_fast.pixels.libtiff import silence_libtiff
from qalign_fast.pixels.limits import PictureLimits, check_bytes
from qalign_fast.pixels.picture import load_pixels

if TYPE_CHECKING:
    import numpy.typing as npt

    from qalign_fast.feed.items import ClipOptions, Medium
    from qalign_fast.pixels.rule import PixelRule

Status: TypeAlias = Literal["ok", "failed", "unavailable", "quarantined"]

_PART = 1 << 20  # bytes hashed at a time


@dataclass(frozen=True, slots=True)
class Task:
    """A picture or a clip to read: a file, a slice of a file, or bytes that lie in the exchange file.

    `name` is what errors call it. `offset` and `length` are of the slice or the bytes; no length: the whole file.
    """

    name: str
    medium: Medium
    path: bytes | None  # None: the bytes lie in the exchange file
    offset: int = 0
    length: int | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read. The pixels, uint8 of `shape` [F, H, W, 3], lie in the exchange file; none where there is an error.

    sha256: of the encoded bytes; None where they could not be read.
    seconds: to read, hash and decode.
    status: "failed" for a picture that cannot be read; "unavailable" where it may be had the next time, because its
        file could not be opened or memory was short; "quarantined" if it ended or held up its process twice.
    size, mtime_ns: of the file, when it was read.
    """

    shape: tuple[int, ...] = ()
    sha256: str | None = None
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    moments: tuple[tuple[int, float | None], ...] = ()
    error: QAlignError | None = None
    status: Status = "ok"
    size: int = -1
    mtime_ns: int = -1


@dataclass(frozen=True)
class Setting:
    """What a decoding process needs to know: the family's pixel rule, limits, and its exchange file.

    most_frames: of a clip whose options name no number.
    """

    rule: PixelRule
    limits: PictureLimits
    clip: ClipOptions
    most_frames: int
    exchange: str = ""


_setting: Setting
_exchange = -1


def start(setting: Setting) -> None:
    """Called once in each process. Ctrl-C is the main process's to handle."""
    global _setting, _exchange  # noqa: PLW0603 (a process has one setting)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    give_way()
    silence_libtiff()
    _setting = setting
    _exchange = os.open(setting.exchange, os.O_RDWR | getattr(os, "O_BINARY", 0))


def decode(tasks: Sequence[Task]) -> list[Reading]:
    """Reads pictures or clips; their pixels lie one behind another in the exchange file.

    Whatever is raised about one of them is in its Reading.
    Raises OSError where the exchange file cannot be written: that is not a picture's fault.
    """
    given = [read_exchange(_exchange, task.length or 0, task.offset) if task.path is None else None for task in tasks]
    readings: list[Reading] = []
    place = 0
    for task, data in zip(tasks, given, strict=True):
        reading = _decode(task, data, place)
        place += prod(reading.shape) if reading.shape else 0
        readings.append(reading)
    return readings


def write_exchange(file: int, data: memoryview | bytes, offset: int) -> None:
    """Writes all of the data at an offset. Raises OSError."""
    view, place = memoryview(data), 0
    while place < len(view):
        place += os.pwrite(file, view[place:], offset + place)


def read_exchange(file: int, length: int, offset: int) -> npt.NDArray[np.uint8]:
    """Bytes from an offset on. Raises OSError where there are fewer."""
    data = np.empty(length, np.uint8)
    view, place = data.data, 0
    while place < length:
        count = os.preadv(file, [view[place:]], offset + place)
        if not count:
            raise OSError(f"the exchange file ends {length - place} bytes too early")
        place += count
    return data


def _decode(task: Task, data: npt.NDArray[np.uint8] | None, place: int) -> Reading:
    started = time.perf_counter()
    about: dict[str, Any] = {}
    try:
        pixels = _load(task, _open(task, data, about), about)
    except _UnavailableError as error:
        about |= {"error": error.error, "status": "unavailable"}
    except Exception as error:
        about["error"] = error if isinstance(error, QAlignError) else _internal(task.name, error)
        about["status"] = "unavailable" if isinstance(error, MemoryError) else "failed"
    else:
        write_exchange(_exchange, pixels.data.cast("B"), place)
        about["shape"] = pixels.shape
    return Reading(seconds=time.perf_counter() - started, **about)


class _UnavailableError(Exception):
    def __init__(self, error: QAlignError) -> None:
        self.error = error


def _open(task: Task, given: npt.NDArray[np.uint8] | None, about: dict[str, Any]) -> bytes | str:
    """The encoded bytes; of a clip's file the path, because it is read as a stream. Leaves hash, size and time."""
    limits, kind = _setting.limits, VideoError if task.medium == "video" else ImageError
    if task.path is None:
        assert given is not None
        data = given.tobytes()
        check_bytes(len(data), task.name, limits.picture_bytes if task.medium == "image" else limits.stream_bytes, kind)
    else:
        try:
            whole_clip = task.medium == "video" and task.length is None
            allowed = limits.picture_bytes if task.medium == "image" else limits.stream_bytes
            most = limits.max_bytes if whole_clip else allowed if task.length is None else None
            with open_path(os.fsdecode(task.path), task.name, most, kind) as file:
                status = os.fstat(file.fileno())
                about |= {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
                if whole_clip:
                    about["sha256"] = _hash_file(file)
                    return os.fsdecode(task.path)
                data = _read(file, task, status.st_size, allowed, kind)
        except kind as error:
            if isinstance(error.__cause__, OSError):
                raise _UnavailableError(error) from None
            raise
        except OSError as error:
            raise _UnavailableError(kind(f"{task.name}: {error.strerror or one_line(error)}")) from None
    about["sha256"] = hashlib.sha256(data).hexdigest()
    return data


def _read(file: Any, task: Task, size: int, most: int, kind: type[QAlignError]) -> bytes:
    """The whole file, or the task's slice of it."""
    if task.length is None:
        return read_all(file, task.name, most, kind, size + 1)
    check_bytes(task.length, task.name, most, kind)
    file.seek(task.offset)
    data: bytes = file.read(task.length)
    if len(data) < task.length:
        raise _UnavailableError(kind(f"{task.name}: the archive ends inside of it"))
    return data


def _hash_file(file: Any) -> str:
    digest = hashlib.sha256()
    while part := file.read(_PART):
        digest.update(part)
    return digest.hexdigest()


def _load(task: Task, media: bytes | str, about: dict[str, Any]) -> np.ndarray:
    """uint8 [F, H, W, 3]: one frame of a picture."""
    rule, limits = _setting.rule, _setting.limits
    if task.medium == "image":
        said: dict[str, None] = {}
        pixels = load_pixels(media, rule, limits=limits, name=task.name, warn=lambda text: said.update({text: None}))
        about["warnings"] = tuple(said)
        return np.ascontiguousarray(pixels)[None] if pixels.ndim == 3 else np.ascontiguousarray(pixels)
    from qalign_fast.pixels.clip import load_clip

    clip = _setting.clip
    found = load_clip(
        media,
        rule,
        max_frames=_setting.most_frames if clip.max_frames is None else clip.max_frames,
        fps=clip.fps,
        sampling=clip.sampling,
        limits=limits,
        name=task.name,
    )
    about |= {"warnings": tuple(found.warnings), "moments": tuple(found.moments)}
    return np.ascontiguousarray(found.pixels)


def _internal(name: str, error: Exception) -> InternalError:
    return InternalError(f"{media_name(name)}: internal error ({type(error).__name__}: {one_line(error)})")
