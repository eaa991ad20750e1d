"""Cells that many threads share: each task gets its own result, pictures go together, and no cell is ever lost."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any

import pytest

from qalign_fast.jobs.cells import TOGETHER, Cells
from qalign_fast.jobs.decoding import Reading, Task


class FakeCell:
    """Answers with the task's name as its hash. Notes what it was asked, and refuses two threads at a time."""

    def __init__(self, delay: float = 0.0) -> None:
        self.asked: list[list[str]] = []
        self.busy = Lock()
        self.delay = delay
        self.closed = False

    def read(self, tasks: list[Task], data: list[bytes | None]) -> list[tuple[Reading, Any]]:
        assert self.busy.acquire(blocking=False)
        self.asked.append([task.name for task in tasks])
        time.sleep(self.delay * random.random())
        self.busy.release()
        if any(task.name == "bad" for task in tasks):
            raise OSError("full")
        return [(Reading(sha256=task.name + str(its)), None) for task, its in zip(tasks, data, strict=True)]

    def close(self) -> None:
        self.closed = True


def task(name: str, medium: Any = "image") -> Task:
    return Task(name, medium, b"")


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_task_gets_its_result_and_every_cell_stays_in_use(count: int) -> None:
    fakes = [FakeCell(0.002) for _ in range(count)]
    cells = Cells(fakes)  # type: ignore[arg-type]
    with ThreadPoolExecutor(2 * TOGETHER * count) as threads:
        found = list(threads.map(lambda n: cells.read(task(str(n)), bytes([n % 256])), range(1500)))
    assert [reading.sha256 for reading, _ in found] == [str(n) + str(bytes([n % 256])) for n in range(1500)]
    assert len(cells._free) == count
    assert not cells._waiting
    groups = [group for fake in fakes for group in fake.asked]
    assert sorted(int(name) for group in groups for name in group) == list(range(1500))
    assert max(map(len, groups)) <= TOGETHER
    assert 1500 / len(groups) > 1.5  # they went together
    assert min(len(fake.asked) for fake in fakes) > len(groups) / count / 2  # none was left out


def test_a_clip_goes_alone() -> None:
    fake = FakeCell(0.002)
    cells = Cells([fake])  # type: ignore[list-item]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: cells.read(task(str(n), "video" if n % 3 == 0 else "image"), None), range(60)))
    assert all(len(group) == 1 or all(int(name) % 3 for name in group) for group in fake.asked)


def test_an_error_reaches_those_who_asked_and_the_cell_goes_on() -> None:
    fake = FakeCell(0.002)
    cells = Cells([fake])  # type: ignore[list-item]

    def read(name: str) -> str:
        try:
            return str(cells.read(task(name), None)[0].sha256)
        except OSError as error:
            return str(error)

    names = ["bad" if n == 20 else str(n) for n in range(60)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(read, names))
    [together] = [group for group in fake.asked if "bad" in group]
    assert found == ["full" if name in together else f"{name}None" for name in names]
    assert cells._free == [fake]
    cells.close()
    assert fake.closed
