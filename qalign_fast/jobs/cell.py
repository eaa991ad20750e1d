"""A decoding process that is replaced when it dies or hangs: tasks in, their readings and pixels out."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as TooLongError
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext, suppress
from dataclasses import replace
from math import prod
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING
from weakref import finalize

from qalign_fast.errors import ImageError, QAlignError, VideoError, one_line
from qalign_fast.jobs.decoding import Reading, Setting, Task, decode, read_exchange, start, write_exchange
from qalign_fast.jobs.packages import ProcessExpired, ProcessPool
from qalign_fast.jobs.spawning import uninterrupted

if TYPE_CHECKING:
    from qalign_fast.pixels.rule import Pixels

TRIES = 2  # of a picture that kills or hangs its process
_STARTS = 5  # of a pool that breaks before it reads anything
_ENDED = (BrokenProcessPool, RuntimeError, CancelledError, ProcessExpired)  # what pebble raises for a lost process
_GRACE = 120.0  # seconds beyond the limit, in which a process also starts


class Cell:
    """One process, used by one thread at a time.

    The pool has a single process, so that nothing is shared that a killed process could leave locked. Pixels cross in a
    file: a message of a few bytes is written at once or not at all, a picture's might break off in the middle.
    """

    def __init__(self, setting: Setting, limit: float) -> None:
        """`limit`: seconds that a picture may take."""
        self._file, path = _exchange_file(self)
        self._limit = limit
        self._setting = replace(setting, exchange=path)
        self._pool: ProcessPool | None = None
        self._closed = False

    def read(self, tasks: Sequence[Task], data: Sequence[bytes | None]) -> list[tuple[Reading, Pixels | None]]:
        """What `decode` gives, and the pixels [F, H, W, 3]. `data`: the bytes of tasks without a path.

        Tasks are asked for together. If their process ends or takes too long they are asked for one by one, each up to
        `TRIES` times. Raises QAlignError where processes cannot be started, OSError where the exchange file cannot be
        written.
        """
        if len(tasks) > 1:
            try:
                return self._ask(tasks, data)
            except (*_ENDED, TooLongError):
                pass  # one of them is to blame
        return [self._read_one(task, its) for task, its in zip(tasks, data, strict=True)]

    def _read_one(self, task: Task, data: bytes | None) -> tuple[Reading, Pixels | None]:
        died: list[str] = []
        broken = 0
        while len(died) < TRIES:
            try:
                return self._ask([task], [data])[0]
            except TooLongError:
                died.append(f"took longer than {self._limit:g} s")
            except ProcessExpired as error:
                died.append(f"ended its process ({_reason(error.exitcode)})")
            except _ENDED as error:  # it was ended between two pictures
                self._end()
                broken += 1
                if broken == _STARTS:
                    raise QAlignError(f"processes that decode pictures cannot be started: {one_line(error)}") from error
        kind = VideoError if task.medium == "video" else ImageError
        why = kind(f"{task.name}: quarantined, because it {', then '.join(died)}")
        return Reading(error=why, status="quarantined"), None

    def close(self) -> None:
        """Ends the process. Who waits for a picture gets QAlignError."""
        self._closed = True
        self._end()

    def _ask(self, tasks: Sequence[Task], data: Sequence[bytes | None]) -> list[tuple[Reading, Pixels | None]]:
        if self._closed:
            raise QAlignError("the job was ended")
        starting = uninterrupted() if self._pool is None else nullcontext()
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPool(1, initializer=start, initargs=(self._setting,), context=context)
        with starting:
            future = self._pool.schedule(decode, (self._laid_down(tasks, data),), timeout=self._limit)
        try:
            return list(self._taken_up(future.result(self._limit + _GRACE)))
        except TooLongError:
            if not future.done():
                self._end()
            raise

    def _laid_down(self, tasks: Sequence[Task], data: Sequence[bytes | None]) -> list[Task]:
        """The tasks, with their bytes in the exchange file."""
        place, found = 0, []
        for task, its in zip(tasks, data, strict=True):
            if its is not None:
                write_exchange(self._file, its, place)
                task = replace(task, offset=place, length=len(its))  # noqa: PLW2901
                place += len(its)
            found.append(task)
        return found

    def _taken_up(self, readings: list[Reading]) -> Iterator[tuple[Reading, Pixels | None]]:
        place = 0
        for reading in readings:
            if reading.error is not None:
                yield reading, None
                continue
            pixels = read_exchange(self._file, prod(reading.shape), place).reshape(reading.shape)
            place += pixels.size
            yield reading, pixels

    def _end(self) -> None:
        """Ends the pool, and waits for that, but not for ever: a message that broke off would hold it up."""
        pool, self._pool = self._pool, None
        if pool is not None:
            ending = Thread(target=_stop, args=(pool,), daemon=True)
            ending.start()
            ending.join(_GRACE)


def _exchange_file(owner: object) -> tuple[int, str]:
    """A file's handle, and the path by which the other process opens it. It is gone when its owner is."""
    if hasattr(os, "memfd_create"):  # it goes with this process, even one that is killed
        handle = os.memfd_create("qalign-pixels")
        finalize(owner, os.close, handle)
        return handle, f"/proc/{os.getpid()}/fd/{handle}"
    handle, path = tempfile.mkstemp(prefix="qalign-pixels-")
    finalize(owner, os.close, handle)
    finalize(owner, Path(path).unlink, missing_ok=True)
    return handle, path


def _stop(pool: ProcessPool) -> None:
    pool.stop()
    pool.join()


def _reason(code: int | None) -> str:
    """What an exit code says: a signal's name, or the code itself."""
    if code is not None and code < 0:
        with suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"
