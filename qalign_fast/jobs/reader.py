"""Planned inputs in, what was read out, by processes of their own: the reader that the feed's read-ahead asks."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from qalign_fast.errors import ImageError, QAlignError, VideoError
from qalign_fast.feed.items import ClipOptions, Item
from qalign_fast.feed.prompts import check_frames, find_prompts
from qalign_fast.feed.reading import Read
from qalign_fast.jobs.cell import Cell
from qalign_fast.jobs.cells import TOGETHER, Cells
from qalign_fast.jobs.decoding import Reading, Setting, Task
from qalign_fast.jobs.entries import Entry

if TYPE_CHECKING:
    from qalign_fast.engines.contract import Engine
    from qalign_fast.families.prompt import Prompt
    from qalign_fast.jobs.fetching import Fetcher
    from qalign_fast.pixels.limits import PictureLimits


class IsolatedReader:
    """Reads entries, each in one of `workers` processes. What was found beside the pixels is left in the entry.

    Local files are read where they are decoded. Others' bytes are fetched in this process: rows of tables in order,
    when they are taken; URLs on the feed's threads.
    """

    def __init__(
        self,
        engine: Engine,
        limits: PictureLimits,
        tasks: tuple[str, ...],
        *,
        workers: int,
        time_limit: float,
        clip: ClipOptions,
        fetcher: Fetcher,
    ) -> None:
        """`time_limit`: seconds that a picture may take. Raises VideoError for more frames than the model can take."""
        self._rule, self._fetcher = engine.config.pixels, fetcher
        self._prompts: Mapping[str, tuple[Prompt, ...] | QAlignError] = {
            medium: _prompts(engine, tasks, medium) for medium in ("image", "video")
        }
        self._most_frames: int = engine.family.clip_frames if clip.max_frames is None else clip.max_frames
        if not isinstance(clips := self._prompts["video"], QAlignError):
            check_frames(engine, self._most_frames, clips)
        setting = Setting(self._rule, limits, clip, self._most_frames)
        self._cells = Cells([Cell(setting, time_limit) for _ in range(workers)])

    def take(self, item: Item[Any]) -> tuple[Callable[[], Read[Any]], int]:
        """A function that reads the entry, which is the item's key; and the bytes that are held until it is called."""
        entry: Entry = item.key
        if entry.kind != "row":
            return partial(self._read, entry, None, -1), 0
        data = self._fetcher.row(entry)
        return partial(self._read, entry, data, self._fetcher.mtime_ns), len(data) if isinstance(data, bytes) else 0

    def pixel_bytes(self, item: Item[Any]) -> int:
        """How many bytes its pixels take at most."""
        most: int = self._rule.most_bytes
        return most * (self._most_frames if item.medium == "video" else 1)

    def close(self) -> None:
        """Ends the processes."""
        self._cells.close()

    @property
    def threads(self) -> int:
        """How many of the feed's threads are to wait: each process takes so many pictures, and as many are next."""
        return 2 * TOGETHER * len(self._cells)

    def _read(self, entry: Entry, data: bytes | str | Reading | None, mtime_ns: int) -> Read[Any]:
        prompts = self._prompts[entry.medium]
        if isinstance(prompts, QAlignError):
            entry.reading = Reading(error=prompts, status="failed")
            return Read(entry, entry.medium, error=prompts)
        if entry.problem is not None:
            data = Reading(error=_error_of(entry, entry.problem), status="failed")
        elif entry.is_url and entry.kind != "row":
            data = self._fetcher.fetch(entry)
        if isinstance(data, Reading):
            entry.reading, pixels = data, None
        else:
            entry.reading, pixels = self._cells.read(_task(entry, data), data if isinstance(data, bytes) else None)
        if mtime_ns != -1:
            entry.reading = replace(entry.reading, mtime_ns=mtime_ns)
        found = entry.reading
        return Read(entry, entry.medium, prompts, pixels, found.warnings, found.error, moments=found.moments)


def _task(entry: Entry, data: bytes | str | None) -> Task:
    if isinstance(data, bytes):
        return Task(entry.source, entry.medium, None, 0, len(data))
    if isinstance(data, str):
        return Task(entry.source, entry.medium, os.fsencode(data))
    if entry.kind == "slice":
        return Task(entry.source, entry.medium, entry.place, entry.offset, entry.size)
    return Task(entry.source, entry.medium, entry.place)


def _prompts(engine: Engine, tasks: tuple[str, ...], medium: str) -> tuple[Prompt, ...] | QAlignError:
    """A task that the model does not have for a medium is an error of that medium's inputs."""
    try:
        return find_prompts(engine, tasks, medium)
    except QAlignError as error:
        return error


def _error_of(entry: Entry, text: str) -> QAlignError:
    return (VideoError if entry.medium == "video" else ImageError)(text)
