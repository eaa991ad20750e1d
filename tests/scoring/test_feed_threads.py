"""The threads of the work loop: how many there are, what they share, and how they end."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import repeat
from threading import Event, Thread

import numpy as np
import pytest

from qalign_fast import QAlignError, Scorer
from qalign_fast.feed.threads import Threads
from support.feeds import SAME, Stuck, threads_named, wait_for
from support.goldens import Golden


def test_threads_are_made_once(scorer: Scorer, narrow: Golden) -> None:
    with Scorer(scorer.engine) as other:
        before = set(threads_named("qalign-pixels"))
        for _ in range(10):
            list(other.score_iter(narrow.pictures, workers=3))
        made = set(threads_named("qalign-pixels")) - before
        assert 1 <= len(made) <= 6  # three, and some where one run's last step met the next run's first
    assert wait_for(lambda: not any(thread.is_alive() for thread in made))


def test_a_single_picture_needs_no_thread(scorer: Scorer, narrow: Golden) -> None:
    with Scorer(scorer.engine) as other:
        before = threading.active_count()
        other.score(narrow.pictures[0])
        other.score_video([narrow.pictures[0]])
        assert threading.active_count() == before


def test_no_more_workers_than_asked_for_read_at_the_same_time(scorer: Scorer, narrow: Golden) -> None:
    under_way = most = 0
    lock = threading.Lock()

    class Watched(os.PathLike):
        def __fspath__(self) -> str:
            nonlocal under_way, most
            with lock:
                under_way += 1
                most = max(most, under_way)
            time.sleep(0.01)
            with lock:
                under_way -= 1
            return str(narrow.pictures[0])

    list(scorer.score_iter([Watched() for _ in range(9)], workers=5))
    most = 0
    list(scorer.score_iter([Watched() for _ in range(9)], workers=2))
    assert most <= 2


def test_several_threads_score_at_once(scorer: Scorer, narrow: Golden) -> None:
    expected = [scorer.score(picture).value for picture in narrow.pictures]
    found: dict[int, list[float]] = {}

    def work(i: int) -> None:
        pictures = [*narrow.pictures[i:], *narrow.pictures[:i]] * 3
        found[i] = [score.value for score in scorer.score_iter(pictures, batch_size=1 + i, workers=1 + i % 3)]

    threads = [Thread(target=work, args=(i,)) for i in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for i in range(5):
        np.testing.assert_allclose(found[i], [*expected[i:], *expected[:i]] * 3, rtol=0, atol=SAME)


def test_a_closed_scorer_says_so(narrow: Golden) -> None:
    scorer = Scorer.load(narrow.artifact)
    running = scorer.score_iter(repeat(narrow.pictures[0]), batch_size=2)
    next(running)
    scorer.close()
    scorer.close()
    with pytest.raises(QAlignError, match="closed"):
        list(running)  # it ends: what was taken before is read
    for use in (lambda: scorer.score(narrow.pictures[0]), lambda: scorer.score(narrow.pictures)):
        with pytest.raises(QAlignError, match="this scorer is closed"):
            use()


def test_a_dropped_iterator_reads_nothing_more(scorer: Scorer, narrow: Golden) -> None:
    free, read = Event(), []

    class Counted(Stuck):
        def __fspath__(self) -> str:
            read.append(self)
            return super().__fspath__()

    scores = scorer.score_iter([*narrow.pictures[:2], *(Counted(free) for _ in range(4))], batch_size=2, workers=2)
    next(scores)
    assert wait_for(lambda: len(read) == 2)
    del scores
    gc.collect()
    free.set()
    list(scorer.score_iter(narrow.pictures, workers=2))
    assert len(set(map(id, read))) == 2


def test_a_dropped_scorer_s_threads_end(scorer: Scorer, narrow: Golden) -> None:
    other = Scorer(scorer.engine)
    before = set(threads_named("qalign-pixels"))
    scores = other.score_iter(narrow.pictures * 4, batch_size=2)
    next(scores)
    made = set(threads_named("qalign-pixels")) - before
    assert made
    del other, scores
    gc.collect()
    assert wait_for(lambda: not any(thread.is_alive() for thread in made))


def test_steps_take_turns_and_threads_are_used_again() -> None:
    threads, order = Threads(1, "test"), []
    begin, done = Event(), Event()

    def steps(name: str, count: int) -> Callable[[], bool]:
        left = iter(range(count))

        def step() -> bool:
            begin.wait()
            order.append(name)
            return next(left, None) is not None

        return step

    threads.submit(steps("a", 3))
    threads.submit(steps("b", 3))
    begin.set()
    threads.submit(lambda: bool(done.set()))
    assert done.wait(20)
    assert wait_for(lambda: len(order) == 8)
    assert "".join(order) == "abababab"


END = """
import os, sys, threading, time
from qalign_fast import Scorer
scorer = Scorer.load(sys.argv[1])
class Slow(os.PathLike):
    def __fspath__(self):
        time.sleep({sleep})
        return sys.argv[2]
scores = scorer.score_iter((Slow() if i > 5 else sys.argv[2] for i in range(10_000)), batch_size=6, workers=4)
next(scores)
print("scored", flush=True)
"""


@pytest.mark.parametrize("sleep", [0.05, 600])
def test_the_interpreter_ends_with_an_iterator_half_way(narrow: Golden, sleep: float) -> None:
    command = [sys.executable, "-c", END.format(sleep=sleep), str(narrow.artifact), str(narrow.pictures[0])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("scored\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_process_has_threads_of_its_own() -> None:
    code = """
import os
from qalign_fast.feed.threads import Threads
threads = Threads(2, "test")
assert threads.call(lambda: 1).result() == 1
child = os.fork()
if child == 0:
    os._exit(threads.call(lambda: 7).result())
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), threads.call(lambda: 2).result())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "7 2\n"
