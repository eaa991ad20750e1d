"""Threads that stay: one is started when work comes and none is idle, and waits for more work afterwards.

The pool of concurrent.futures does not serve here: its threads hold up the interpreter's exit as long as a read hangs,
and a forked process inherits a pool whose threads it does not have.

Code that ends a run or a pool takes no lock and waits for no thread. Garbage collection may call it in any thread and
under any lock, for example in a thread that is just starting, whose lock every wait for a thread takes.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections.abc import Callable
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Generic, TypeAlias, TypeVar
from weakref import WeakSet, finalize

from qalign_fast.errors import QAlignError

Result = TypeVar("Result")
Step: TypeAlias = Callable[[], bool]
_NICER = 5  # a reader then gets a third of what the engine gets of a core that both want
_AT_EXIT = 5.0  # seconds to wait for what is under way; what takes longer is left


class Task(Generic[Result]):
    """Work for another thread, and later its result."""

    def __init__(self, work: Callable[[], Result]) -> None:
        self._work: Callable[[], Result] | None = work
        self._error: BaseException | None = None
        self._running = Lock()  # until the result is there
        self._running.acquire()

    def run(self) -> bool:
        """Does the work once and releases what it held. Returns False: it is finished."""
        assert self._work is not None
        try:
            self._result = self._work()
        except BaseException as error:
            self._error = error
        self._work = None
        self._running.release()
        return False

    @property
    def done(self) -> bool:
        return self._work is None

    def wait(self) -> None:
        with self._running:
            pass

    def result(self) -> Result:
        """Waits for the result. Raises what the work raised."""
        with self._running:
            if self._error is not None:
                raise self._error
            return self._result


class Threads:
    """At most `most` threads for steps of work. `start` is called first in each of them.

    They are daemons: one that hangs, as in reading a file, does not hold up the interpreter's exit.
    """

    def __init__(self, most: int, name: str, start: Callable[[], None] | None = None) -> None:
        self._most, self._name, self._start = most, name, start
        self._shared = _Shared()
        self._end = finalize(self, self._shared.end)
        self._end.atexit = False  # `_end_all` ends them

    def submit(self, step: Step) -> None:
        """Has `step` called on a thread, again and again until it returns False, in turn with the others' steps.

        Raises QAlignError after `close`.
        """
        self.check_open()
        thread = None
        with self._shared.lock:
            self._shared.free -= 1
            if self._shared.free < 0 and len(self._shared.threads) < self._most:
                thread = Thread(target=_work, args=(self._shared, self._start), name=self._name, daemon=True)
                self._shared.threads.append(thread)
                self._shared.free += 1
        self._shared.steps.put(step)
        if thread:
            thread.start()

    def call(self, work: Callable[[], Result]) -> Task[Result]:
        """Has `work` done on a thread. Raises QAlignError after `close`."""
        task = Task(work)
        self.submit(task.run)
        return task

    def check_open(self) -> None:
        """Raises QAlignError after `close`."""
        if not self._end.alive:
            raise QAlignError("this scorer is closed; Scorer.load makes another one")

    def close(self) -> None:
        """Lets the threads end when they have done what was submitted. Does not wait for them."""
        self._end()


class _Shared:
    """What threads share with their owner. They do not hold the owner itself, so that it can become garbage."""

    def __init__(self) -> None:
        self.reset()
        _ALL.add(self)

    def reset(self) -> None:
        self.steps: SimpleQueue[Step | None] = SimpleQueue()  # None: the end. A `put` may interrupt another one
        self.lock = Lock()
        self.free = 0  # idle threads, less the steps that wait for one
        self.threads: list[Thread] = []
        self.exiting = False

    def end(self) -> None:
        self.steps.put(None)


def _work(shared: _Shared, start: Callable[[], None] | None) -> None:
    """A thread's life."""
    if start:
        start()
    while not shared.exiting:
        step = shared.steps.get()
        if step is None:
            shared.end()  # for the next thread, behind the steps that still wait
            if shared.steps.qsize() == 1:
                return
        elif step():
            shared.steps.put(step)
        else:
            del step  # releases it now, not at the next step
            with shared.lock:
                shared.free += 1


_ALL: WeakSet[_Shared] = WeakSet()


@atexit.register
def _end_all() -> None:
    """Lets what is under way finish: a thread that meets the end of the interpreter inside C++ code may abort it."""
    deadline = time.monotonic() + _AT_EXIT
    for shared in list(_ALL):
        shared.exiting = True
        shared.end()
    for thread in [thread for shared in list(_ALL) for thread in shared.threads]:
        if thread.ident is not None:  # it was started
            thread.join(max(0.0, deadline - time.monotonic()))


def _forget_all() -> None:
    """In a process that was just forked: it has none of the threads."""
    for shared in list(_ALL):
        shared.reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


def give_way() -> None:
    """Lets the engine's threads go before this one: an engine waits for the slowest of its threads.

    Only Linux has a priority for each thread.
    """
    if sys.platform == "linux":
        os.nice(_NICER)
