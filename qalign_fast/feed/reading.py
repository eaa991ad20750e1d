"""Items in, batches of their pixels or errors out, in order: read ahead on threads, within bounds."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, takewhile
from threading import Lock
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeAlias

from qalign_fast.errors import InternalError, QAlignError, VideoError, one_line
from qalign_fast.feed.items import ClipOptions, Item, Key, Medium
from qalign_fast.feed.prompts import check_frames, find_prompts
from qalign_fast.feed.snapshots import Snapshot, as_it_is, snapshot
from qalign_fast.feed.threads import Task, Threads
from qalign_fast.pixels.arrays import is_tensor
from qalign_fast.pixels.device_square import for_another_thread
from qalign_fast.pixels.encoded import is_encoded, plain, read_bytes
from qalign_fast.pixels.frames import Frames, is_frames, is_listed, read_frames, spread_listed
from qalign_fast.pixels.limits import PictureLimits
from qalign_fast.pixels.picture import Picture, load_pixels, stack_frames
from qalign_fast.pixels.rule import Pixels

if TYPE_CHECKING:
    from qalign_fast.engines.contract import Engine
    from qalign_fast.families.prompt import Prompt
    from qalign_fast.pixels.rule import PixelRule

_MOST_BYTES = 256 << 20  # of snapshots and pixels that wait
_BATCHES = 3  # held at most, the next one included

Keep: TypeAlias = Callable[[Picture, PictureLimits], Snapshot]
_Label: TypeAlias = "str | os.PathLike[str]"


@dataclass(frozen=True, slots=True)
class Read(Generic[Key]):
    """An item whose pixels [F, S, S, 3] were read, one frame for a picture; or the error why there are none."""

    key: Key
    medium: Medium
    prompts: tuple[Prompt, ...] = ()
    pixels: Pixels | None = None
    warnings: tuple[str, ...] = ()
    error: QAlignError | None = None
    each: tuple[Prompt, ...] = ()  # that are asked of every frame of a clip too
    moments: tuple[tuple[int, float | None], ...] = ()


class ItemReader(Protocol):
    """What read-ahead asks of a reader."""

    def take(self, item: Item[Key], /) -> tuple[Callable[[], Read[Key]], int]:
        """A function that reads the item later, in any thread, and the bytes that are held until it is called.

        The function raises nothing about the item: its error is in what it returns.
        """
        ...

    def pixel_bytes(self, item: Item[Key], /) -> int:
        """How many bytes its pixels take at most."""
        ...


class Reader:
    """Reads items for some tasks of a model. Whatever is raised while an item is read is in its `Read`."""

    def __init__(self, engine: Engine, limits: PictureLimits, tasks: Sequence[str]) -> None:
        self._engine, self._limits = engine, limits
        self._tasks = (tasks,) if isinstance(tasks, str) else tuple(tasks)
        self._rule: PixelRule = engine.config.pixels

    def read(self, item: Item[Key]) -> Read[Key]:
        """Reads an item at once, in this thread."""
        return self.take(item, as_it_is)[0]()

    def take(self, item: Item[Key], keep: Keep = snapshot) -> tuple[Callable[[], Read[Key]], int]:
        """A function that reads the item later, in any thread, and the bytes that are held until it is called."""
        try:
            if isinstance(item.media, QAlignError):
                raise item.media
            prompts = find_prompts(self._engine, self._tasks, item.medium)
            each: tuple[Prompt, ...] = ()
            if item.medium == "video":
                load, held = self._take_clip(item, prompts, keep)
                if item.clip.timeline:
                    each = find_prompts(self._engine, self._tasks, "image")
            else:
                load, held = self._take([item.media], keep)
        except Exception as error:
            return partial(Read, item.key, item.medium, error=_as_ours(error, _label(item))), 0
        return partial(_read, Read(item.key, item.medium, prompts, each=each), _label(item), load), held

    def pixel_bytes(self, item: Item[Key]) -> int:
        """How many bytes its pixels take at most."""
        return self._rule.most_bytes * (self._most_frames(item.clip) if item.medium == "video" else 1)

    def _most_frames(self, clip: ClipOptions) -> int:
        return self._engine.family.clip_frames if clip.max_frames is None else clip.max_frames

    def _take(self, pictures: Sequence[Any], keep: Keep, *warnings: str) -> tuple[Callable[[], Frames], int]:
        kept = [keep(picture, self._limits) for picture in pictures]
        return lambda: self._load(kept, warnings), sum(picture.bytes for picture in kept)

    def _take_clip(self, item: Item[Key], prompts: Sequence[Prompt], keep: Keep) -> tuple[Callable[[], Frames], int]:
        most = self._most_frames(item.clip)
        check_frames(self._engine, most, prompts)
        media: Any = item.media
        if not is_frames(media):
            return self._take_file(media, item.clip, keep)
        if is_listed(media):
            chosen, warnings = spread_listed(media, most, self._limits)
            load, held = self._take([media[i] for i in chosen], keep, *warnings)
            return lambda: load()._replace(moments=tuple((i, None) for i in chosen)), held
        found = read_frames(media, most, self._limits, lambda frame: self._load([Snapshot(frame)]))
        return lambda: found, 0

    def _take_file(self, media: Any, clip: ClipOptions, keep: Keep) -> tuple[Callable[[], Frames], int]:
        """A caller's open file, and an animated picture, are read before the caller goes on."""
        if isinstance(media, os.PathLike):
            return partial(self._load_file, media, clip), 0
        media, name = plain(media, None, VideoError)
        if keep is as_it_is or isinstance(media, str | os.PathLike | bytes):
            return partial(self._load_file, media, clip, name), 0
        if is_encoded(media):
            data = read_bytes(media, name, self._limits.stream_bytes, VideoError)
            return partial(self._load_file, data, clip, name), len(data)
        found = self._load_file(media, clip, name)
        return lambda: found, 0

    def _load(self, pictures: Sequence[Snapshot], warnings: Sequence[str] = ()) -> Frames:
        said = dict.fromkeys(warnings)

        def warn(text: str) -> None:
            said[text] = None

        for p in pictures:
            p.ready()
        found = [load_pixels(p.picture, self._rule, limits=self._limits, name=p.name, warn=warn) for p in pictures]
        pixels: Any = stack_frames(found, "a clip")
        if is_tensor(pixels):
            for_another_thread(pixels)()  # the batch may be scored on another stream; and the snapshots are free now
        return Frames(pixels, tuple(said))

    def _load_file(self, media: Any, clip: ClipOptions, name: str | None = None) -> Frames:
        from qalign_fast.pixels.clip import load_clip

        found = load_clip(
            media,
            self._rule,
            max_frames=self._most_frames(clip),
            fps=clip.fps,
            sampling=clip.sampling,
            limits=self._limits,
            name=name,
        )
        return Frames(found.pixels, found.warnings, found.moments)


def _read(read: Read[Key], label: _Label, load: Callable[[], Frames]) -> Read[Key]:
    """The item with what `load` gives. The item's media are not held here: they may be a caller's."""
    try:
        pixels, warnings, moments = load()
    except Exception as error:
        return replace(read, error=_as_ours(error, label))
    return replace(read, pixels=pixels, warnings=warnings, moments=moments)


def _as_ours(error: Exception, label: _Label) -> QAlignError:
    """An error about an item as one of ours: itself, or an InternalError that names the item and keeps the cause."""
    if isinstance(error, QAlignError):
        return error
    try:
        name = os.fsdecode(label)
    except Exception:  # a caller's own kind of path may be what is wrong
        name = f"<{type(label).__name__}>"
    found = InternalError(f"{name}: internal error ({type(error).__name__}: {one_line(error)})")
    found.__cause__ = error
    return found


def _label(item: Item[Any]) -> _Label:
    """What an item is called. A caller's path is not asked for its text yet: that may take long."""
    if isinstance(item.media, os.PathLike):
        return item.media
    try:
        return plain(item.media)[1]
    except QAlignError:
        return f"<{type(item.media).__name__}>"


@dataclass(frozen=True, slots=True)
class _Waiting(Generic[Key]):
    """An item that was taken from its source."""

    task: Task[Read[Key]]
    medium: Medium
    group: object
    held: int  # bytes, until it is read
    pixels: int  # bytes, as long as it waits


class _Todo:
    """Tasks for at most `most` threads at a time."""

    def __init__(self, threads: Threads, most: int) -> None:
        self._threads, self._most = threads, most
        self._tasks: deque[Task[Any]] = deque()
        self._lock = Lock()
        self._under_way = 0

    def add(self, task: Task[Any]) -> None:
        with self._lock:
            self._tasks.append(task)
            more = self._under_way < self._most
            self._under_way += more
        if more:
            self._threads.submit(self._step)

    def drop(self) -> None:
        """Drops the tasks that have not begun. Takes no lock, see threads.py."""
        self._tasks.clear()

    def _step(self) -> bool:
        with self._lock:
            try:
                task = self._tasks.popleft()
            except IndexError:  # a test before it would not do: `drop` may come between
                task = None
            self._under_way -= task is None
        if task:
            task.run()
        return task is not None


class ReadAhead(Generic[Key]):
    """Batches of one source's items, read on threads while others are scored.

    Items are taken from the source, and their media kept, in the thread that asks for a batch.
    """

    def __init__(
        self,
        items: Iterable[Item[Key]],
        reader: ItemReader,
        threads: Threads,
        batch_size: int,
        workers: int,
        group: Callable[[Key], object] | None = None,
    ) -> None:
        self._items, self._reader, self._threads, self._batch_size = items, reader, threads, batch_size
        self._group = group or (lambda _: None)
        self._todo = _Todo(threads, workers)
        self._waiting: deque[_Waiting[Key]] = deque()
        self._read = 0  # how many of the first waiting items are known to be read
        self._held = self._pixels = 0  # bytes of snapshots that are not read yet, and of the pixels of all that wait

    def batches(self) -> Iterator[list[Read[Key]]]:
        """Pictures of one group in batches of up to `batch_size`, each clip alone, in order."""
        source = iter(self._items)
        try:
            while True:
                while self._has_room() and (item := next(source, None)) is not None:
                    self._take(item)
                if not self._waiting:
                    return
                yield [self._pop() for _ in range(self._next_batch())]
        finally:
            self._todo.drop()

    def _take(self, item: Item[Key]) -> None:
        self._threads.check_open()
        work, held = self._reader.take(item)
        waiting = _Waiting(Task(work), item.medium, self._group(item.key), held, self._reader.pixel_bytes(item))
        self._waiting.append(waiting)
        self._held += waiting.held
        self._pixels += waiting.pixels
        self._todo.add(waiting.task)

    def _has_room(self) -> bool:
        """Whether another item may be taken: always for the next batch, else while the bytes are under the limit.

        For the next batch only snapshots count, for its pixels are needed in any case. Over the limit it waits until
        waiting items are read, because a snapshot may be larger than its pixels.
        """
        needed = len(self._waiting) < self._batch_size and all(w.medium == "image" for w in self._waiting)
        pixels = 0 if needed else self._pixels
        while self._held + pixels > _MOST_BYTES and self._read < len(self._waiting):
            first = self._waiting[self._read]
            if not needed and not first.task.done:
                return False
            first.task.wait()
            self._held -= first.held
            self._read += 1
        return needed or (self._held + pixels <= _MOST_BYTES and len(self._waiting) < _BATCHES * self._batch_size)

    def _next_batch(self) -> int:
        """How many of those that wait are in it."""
        group = self._waiting[0].group
        alike = takewhile(lambda w: w.medium == "image" and w.group == group, islice(self._waiting, self._batch_size))
        return max(1, sum(1 for _ in alike))

    def _pop(self) -> Read[Key]:
        first = self._waiting.popleft()
        self._pixels -= first.pixels
        self._held -= 0 if self._read else first.held
        self._read = max(0, self._read - 1)
        return first.task.result()
