"""Items that can be watched, and threads that can be counted."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread

from PIL import Image

from qalign_fast import Scorer

SAME = 1e-5
GREYS = (20, 90, 160, 230)


def of_greys(scorer: Scorer) -> list[float]:
    return [scorer.score(Image.new("RGB", (50, 40), (grey, 0, 255 - grey))).value for grey in GREYS]


def values(scorer: Scorer, pictures: object) -> list[float]:
    return [score.value for score in scorer.score_iter(pictures, workers=3)]


class Stuck(os.PathLike):
    """A path that the thread which reads it waits for until `free` is set."""

    def __init__(self, free: Event, path: Path | str = "missing.jpg") -> None:
        self._free, self._path = free, path

    def __fspath__(self) -> str:
        self._free.wait()
        return str(self._path)


def wait_for(found: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while not found() and time.monotonic() < deadline:
        time.sleep(0.01)
    return found()


def threads_named(name: str) -> list[Thread]:
    return [thread for thread in threading.enumerate() if thread.name == name]
