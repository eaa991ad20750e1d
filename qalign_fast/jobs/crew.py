"""Shards in, the same shards scored out, by several engines that share the work. One that dies is replaced."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread
from typing import TYPE_CHECKING, Protocol

from qalign_fast.errors import QAlignError, one_line
from qalign_fast.jobs.packages import ProcessExpired, ProcessPool
from qalign_fast.jobs.spawning import end_with_parent, uninterrupted

if TYPE_CHECKING:
    from qalign_fast.jobs.entries import Entry
    from qalign_fast.jobs.local import EngineSetup, LocalEngine

_PATIENCE = 10.0  # seconds that an engine has to end
TRIES = 3  # of a shard whose engine dies


class MemberDiedError(Exception):
    """An engine that ended before its shard was scored. The next call of its member starts another one."""


class Member(Protocol):
    """An engine somewhere else."""

    def score(self, entries: list[Entry]) -> list[Entry]:
        """Scores a shard. Raises MemberDiedError, and what the engine raises."""
        ...

    def close(self) -> None: ...


class Crew:
    """Several members. Each takes the next shard as soon as it has scored one."""

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = members
        self._lock = Lock()
        self._closed = False

    def run(
        self, shards: Iterable[list[Entry]], scored: Callable[[Entry], None] = lambda _: None
    ) -> Iterator[list[Entry]]:
        """Scores shards, in any order, and leaves in each entry what was found. `scored` hears of a whole shard's.

        Raises what an engine raises, and QAlignError for a shard whose engines die.
        """
        source = iter(shards)
        done: SimpleQueue[list[Entry] | BaseException | None] = SimpleQueue()
        threads = [Thread(target=self._work, args=(m, source, done), daemon=True) for m in self._members]
        for thread in threads:
            thread.start()
        left = len(threads)
        while left:
            found = done.get()
            if isinstance(found, BaseException):
                raise found
            if found is None:
                left -= 1
                continue
            for entry in found:
                scored(entry)
            yield found

    def close(self) -> None:
        """Ends the engines."""
        self._closed = True
        for member in self._members:
            member.close()

    def _work(
        self, member: Member, source: Iterator[list[Entry]], done: SimpleQueue[list[Entry] | BaseException | None]
    ) -> None:
        try:
            while not self._closed:
                with self._lock:
                    entries = next(source, None)
                if entries is None:
                    break
                done.put(self._score(member, entries))
            done.put(None)
        except BaseException as error:  # it is raised in the thread that waits
            done.put(error)

    def _score(self, member: Member, entries: list[Entry]) -> list[Entry]:
        for _ in range(TRIES):
            try:
                return member.score(entries)
            except MemberDiedError as error:
                last = error
        raise QAlignError(f"shard {entries[0].shard}: its engine ended {TRIES} times; the last time: {last}") from last


class ProcessMember:
    """An engine in a process of its own on this machine. Entries cross in a file, as pixels do in cell.py."""

    def __init__(self, setup: EngineSetup, cores: frozenset[int] | None) -> None:
        self._setup, self._cores = setup, cores
        self._folder = tempfile.TemporaryDirectory(prefix="qalign-engine-")
        self._pool: ProcessPool | None = None
        self._closed = False

    def score(self, entries: list[Entry]) -> list[Entry]:
        if self._closed:
            raise QAlignError("the job was ended")
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            told = (self._setup, self._cores, self._folder.name)
            self._pool = ProcessPool(1, initializer=_start, initargs=told, context=context)
        path = Path(self._folder.name, "shard")
        path.write_bytes(pickle.dumps(entries))
        try:
            with uninterrupted():  # the first one starts the process
                future = self._pool.schedule(_score_file, (str(path),))
        except RuntimeError as error:  # it died between two shards
            self._end()
            raise MemberDiedError(one_line(error)) from error
        try:
            future.result()
        except ProcessExpired as error:
            raise MemberDiedError(f"exit code {error.exitcode}") from error
        except (BrokenProcessPool, CancelledError) as error:
            self._end()
            raise MemberDiedError(one_line(error)) from error
        found: list[Entry] = pickle.loads(path.read_bytes())
        return found

    def close(self) -> None:
        self._closed = True
        if self._pool is not None and self._pool.active:
            with suppress(Exception):  # an engine that cannot end itself is ended
                self._pool.schedule(_close, timeout=_PATIENCE).result(_PATIENCE)
        self._end()
        self._folder.cleanup()

    def _end(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.stop()
            pool.join()


_setup: EngineSetup
_engine: LocalEngine | None = None


def _start(setup: EngineSetup, cores: frozenset[int] | None, folder: str) -> None:
    global _setup  # noqa: PLW0603 (a process has one engine)
    if cores is not None:
        os.sched_setaffinity(0, cores)
    end_with_parent(folder)  # pebble's end of a process waits for its own processes, and those wait for it
    _setup = setup


def _close() -> None:
    """In the engine's process: ends its decoding processes."""
    if _engine is not None:
        _engine.close()


def _score_file(path: str) -> None:
    """In the engine's process: scores the entries that a file holds, and leaves them there."""
    global _engine  # noqa: PLW0603
    if _engine is None:  # not when the process starts: an error then reaches the one who waits
        from qalign_fast.jobs.local import LocalEngine

        _engine = LocalEngine(_setup)
    file = Path(path)
    [entries] = _engine.run([pickle.loads(file.read_bytes())])
    aside = file.with_suffix(".done")
    aside.write_bytes(pickle.dumps(entries))
    aside.replace(file)
