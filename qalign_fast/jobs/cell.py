"""A decoding process that is replaced when it dies or hangs: a task in, its reading and pixels out."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as TooLongError
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qalign_fast.errors import ImageError, MissingExtraError, QAlignError, VideoError, one_line
from qalign_fast.jobs.decoding import Reading, Setting, Task, decode, read_exchange, start, write_exchange

try:
    from pebble import ProcessExpired, ProcessPool
except ModuleNotFoundError as missing:
    raise MissingExtraError(f"jobs need more packages: pip install 'qalign-fast[jobs]' ({missing})") from missing

if TYPE_CHECKING:
    from qalign_fast.pixels.rule import Pixels

TRIES = 2  # of a picture that kills or hangs its process
_STARTS = 5  # of a pool that breaks before it reads anything
_GRACE = 30.0  # seconds beyond the limit for a pool that should have ended a hanging process


class Cell:
    """One process, used by one thread at a time.

    The pool has a single process, so that nothing is shared that a killed process could leave locked. Pixels cross in a
    file: a message of a few bytes is written at once or not at all, a picture's might break off in the middle.
    """

    def __init__(self, setting: Setting, limit: float) -> None:
        """`limit`: seconds that a picture may take."""
        self._file, path = tempfile.mkstemp(prefix="qalign-pixels-")
        self._path, self._limit = Path(path), limit
        self._setting = replace(setting, exchange=path)
        self._pool: ProcessPool | None = None
        self._closed = False

    def read(self, task: Task, data: bytes | memoryview | None = None) -> tuple[Reading, Pixels | None]:
        """What `decode` gives, after at most `TRIES` tries, and the pixels [F, H, W, 3]. `data`: the task's bytes.

        Raises QAlignError where processes cannot be started, OSError where the exchange file cannot be written.
        """
        died: list[str] = []
        broken = 0
        while len(died) < TRIES:
            if data is not None:
                write_exchange(self._file, data)
            try:
                return self._take(self._ask(task))
            except TooLongError:
                died.append(f"took longer than {self._limit:g} s")
            except ProcessExpired as error:
                died.append(f"ended its process ({_reason(error.exitcode)})")
            except (BrokenProcessPool, RuntimeError, CancelledError) as error:  # it was ended between two pictures
                self._end()
                broken += 1
                if broken == _STARTS:
                    raise QAlignError(f"processes that decode pictures cannot be started: {one_line(error)}") from error
        kind = VideoError if task.medium == "video" else ImageError
        why = kind(f"{task.name}: quarantined, because it {', then '.join(died)}")
        return Reading(error=why, status="quarantined"), None

    def close(self) -> None:
        """Ends the process, and deletes the exchange file. Who waits for a picture gets QAlignError."""
        self._closed = True
        self._end()
        os.close(self._file)
        self._path.unlink(missing_ok=True)

    def _ask(self, task: Task) -> Reading:
        if self._closed:
            raise QAlignError("the job was ended")
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPool(1, initializer=start, initargs=(self._setting,), context=context)
        future = self._pool.schedule(decode, (task,), timeout=self._limit)
        try:
            reading: Reading = future.result(self._limit + _GRACE)
            return reading
        except TooLongError:
            if not future.done():
                self._end()
            raise

    def _take(self, reading: Reading) -> tuple[Reading, Pixels | None]:
        if reading.error is not None:
            return reading, None
        data = read_exchange(self._file, prod(reading.shape))
        return reading, np.frombuffer(data, np.uint8).reshape(reading.shape)

    def _end(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.stop()
            pool.join()


def _reason(code: int | None) -> str:
    """What an exit code says: a signal's name, or the code itself."""
    if code is not None and code < 0:
        with suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"
