"""Bytes that decoding processes cannot read themselves: rows of tables, and files in other stores."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from threading import Thread
from typing import TYPE_CHECKING, Any

from qalign_fast.errors import ImageError, QAlignError, VideoError, one_line
from qalign_fast.jobs.decoding import Reading
from qalign_fast.jobs.inputs.columns import open_columns
from qalign_fast.jobs.inputs.stores import entry_of_url, is_url, protocols_of, store_of
from qalign_fast.jobs.inputs.tables import column_of
from qalign_fast.pixels.encoded import read_all

if TYPE_CHECKING:
    from qalign_fast.jobs.entries import Entry
    from qalign_fast.jobs.inputs.taking import InputOptions
    from qalign_fast.pixels.limits import PictureLimits

_ROWS = 16  # of pictures' bytes that are read at a time


class Fetcher:
    """`row` is for the one thread that takes entries in order; `fetch` for any thread."""

    def __init__(self, taking: InputOptions, limits: PictureLimits, time_limit: float) -> None:
        """`taking`: how the inputs were taken. `time_limit`: seconds that a file of another store may take."""
        self._taking, self._limits, self._time_limit = taking, limits, time_limit
        self._opened = ExitStack()
        self.mtime_ns = -1  # of the table that was opened last
        self._place: bytes | None = None
        self._next = 0  # the row that `_values` gives next
        self._values: Iterator[Any] = iter(())

    def row(self, entry: Entry) -> bytes | str | Reading:
        """The bytes that a table's row holds, or the path of a file in their place; or why they cannot be had."""
        try:
            if self._place != entry.place or self._next > entry.offset:
                self._open(entry)
            value = next(self._values)
            while self._next < entry.offset:
                self._next, value = self._next + 1, next(self._values)
            self._next += 1
        except Exception as error:  # of any store's and any format's own kind
            self._place = None
            return _unavailable(entry, one_line(error) if not isinstance(error, StopIteration) else "the row is gone")
        data = value.get("bytes") if isinstance(value, dict) else value
        if data is None and isinstance(value, dict) and (path := value.get("path")):
            return self._named(entry, path)
        if data is None:
            return Reading(error=_kind(entry)(f"{entry.source}: no picture, the row has no bytes"), status="failed")
        return bytes(data)

    def fetch(self, entry: Entry) -> bytes | Reading:
        """A file of another store, or its slice; or why it cannot be had, which may be otherwise the next time."""
        try:
            return _within(self._time_limit, lambda: self._fetch(entry))
        except TimeoutError:
            return _unavailable(entry, f"it did not come within {self._time_limit:g} seconds")

    def _named(self, entry: Entry, path: str) -> bytes | str | Reading:
        """What a row without bytes names: a file, whose path this is, or a URL, which is fetched if that is allowed."""
        table = os.fsdecode(entry.place)
        if is_url(path):
            url = entry_of_url(entry.source, path, self._taking.protocols)
            return self.fetch(url) if url.problem is None else Reading(error=_kind(entry)(url.problem), status="failed")
        return os.path.join(self._taking.root or os.path.dirname(table), path)  # noqa: PTH118, PTH120

    def close(self) -> None:
        self._opened.close()

    def _fetch(self, entry: Entry) -> bytes | Reading:
        url = entry.place.decode("utf-8", "surrogateescape")
        start, end = (entry.offset, entry.offset + entry.size) if entry.kind == "slice" else (None, None)
        most = self._limits.stream_bytes if entry.medium == "video" else self._limits.picture_bytes
        try:
            store, path = store_of(url)
            if 0 <= entry.size <= most:
                data = bytes(store.cat_file(path, start=start, end=end))  # one request
                if start is not None and len(data) != entry.size:
                    return _unavailable(entry, "the store does not give parts of a file; copy the tar here first")
                return data
            with store.open(path, "rb") as file:
                return read_all(file, entry.source, most, _kind(entry))
        except QAlignError as error:
            return Reading(error=error, status="unavailable")
        except Exception as error:  # of any store's own kind
            return _unavailable(entry, f"{type(error).__name__}: {one_line(error)}")

    def _open(self, entry: Entry) -> None:
        self._opened.close()
        name = os.fsdecode(entry.place)
        table = self._opened.enter_context(open_columns(name, _allowed(name, self._taking)))
        column = column_of(name, self._taking, table.schema.names)
        batches = table.batches([column], _ROWS, entry.offset)
        self._values = (value for batch in batches for value in batch.column(0).to_pylist())
        self._place, self._next = entry.place, entry.offset
        self.mtime_ns = -1 if is_url(name) else os.stat(name).st_mtime_ns  # noqa: PTH116


def _within(seconds: float, call: Callable[[], bytes | Reading]) -> bytes | Reading:
    """What a call gives. Raises TimeoutError after `seconds`; its thread is left to the store's own time limits."""
    found: Future[bytes | Reading] = Future()

    def work() -> None:
        try:
            found.set_result(call())
        except BaseException as error:  # it is raised in the thread that waits
            found.set_exception(error)

    Thread(target=work, name="qalign-fetch", daemon=True).start()
    return found.result(seconds)


def _allowed(name: str, taking: InputOptions) -> tuple[str, ...]:
    """What was planned was allowed."""
    return (*taking.protocols, *protocols_of(name)) if is_url(name) else taking.protocols


def _kind(entry: Entry) -> type[QAlignError]:
    return VideoError if entry.medium == "video" else ImageError


def _unavailable(entry: Entry, why: str) -> Reading:
    return Reading(error=_kind(entry)(f"{entry.source}: {why}"), status="unavailable")
