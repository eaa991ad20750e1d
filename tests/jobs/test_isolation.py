"""Pictures that kill or hang their process, processes that are killed from outside, and disks that are full."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qalign_fast import Scorer
from qalign_fast.errors import QAlignError
from qalign_fast.feed.items import ClipOptions
from qalign_fast.jobs.cell import Cell
from qalign_fast.jobs.decoding import Setting, Task
from qalign_fast.jobs.inputs.taking import InputOptions
from qalign_fast.jobs.job import Watcher, run_job
from qalign_fast.jobs.local import EngineSetup, LocalEngine
from qalign_fast.pixels.limits import LIMITS
from support.jobs import (
    HANGER,
    KILLER,
    files,
    finish,
    job_process,
    misbehaving_engine,
    options,
    plain_picture,
    rows_of,
    run_options,
    small_pictures,
)

RECURSIVE = InputOptions(recursive=True)


@pytest.fixture
def cell() -> Iterator[Cell]:
    cell = Cell(Setting(Scorer.load().config.pixels, LIMITS, ClipOptions(), 31), 60.0)
    yield cell
    cell.close()


def task(path: Path, **others: Any) -> Task:
    return Task(str(path), "image", os.fsencode(path), **others)


def read(cell: Cell, one: Task) -> Any:
    [found] = cell.read([one], [None])
    return found


def pid_of(cell: Cell) -> int:
    [pid] = cell._pool._pool_manager.worker_manager.workers  # type: ignore[union-attr]
    return int(pid)


def test_a_picture_that_kills_its_process_is_tried_twice_and_listed(tmp_path: Path) -> None:
    for number in range(12):
        plain_picture(tmp_path / f"in/{number:02d}.png", KILLER if number == 5 else (90, 90, number))
    outcome = run_job(tmp_path / "out", options(tmp_path / "in"), run_options(), make_engines=misbehaving_engine)
    assert (outcome.counts["ok"], outcome.counts["quarantined"]) == (11, 1)
    rows = rows_of(tmp_path / "out")
    assert [Path(row["source"]).name for row in rows] == [f"{n:02d}.png" for n in range(12)]
    assert [row["status"] for row in rows] == ["quarantined" if n == 5 else "ok" for n in range(12)]
    assert rows[5]["error"].endswith(
        "05.png: quarantined, because it ended its process (SIGKILL), then ended its process (SIGKILL)"
    )
    assert rows[5]["score"] is None


def test_a_picture_that_hangs_its_process_is_given_up(tmp_path: Path) -> None:
    for number in range(4):
        plain_picture(tmp_path / f"in/{number:02d}.png", HANGER if number == 2 else (90, 90, number))
    outcome = run_job(
        tmp_path / "out", options(tmp_path / "in"), run_options(time_limit=2.0), make_engines=misbehaving_engine
    )
    assert (outcome.counts["ok"], outcome.counts["quarantined"]) == (3, 1)
    assert rows_of(tmp_path / "out")[2]["error"].endswith("took longer than 2 s, then took longer than 2 s")


def test_a_quarantined_picture_is_scored_by_a_retry(tmp_path: Path) -> None:
    for number in range(4):
        plain_picture(tmp_path / f"in/{number:02d}.png", KILLER if number == 2 else (90, 90, number))
    job = options(tmp_path / "in")
    run_job(tmp_path / "out", job, run_options(), make_engines=misbehaving_engine)
    before = rows_of(tmp_path / "out")
    assert run_job(tmp_path / "out", job, run_options()).scored == 0
    assert run_job(tmp_path / "out", job, run_options(), retry=True).scored == 1
    after = rows_of(tmp_path / "out")
    assert after[2]["status"] == "ok"
    assert after[:2] + after[3:] == before[:2] + before[3:]
    run_job(tmp_path / "unbroken", job, run_options())
    assert [row["source"] for row in after] == [row["source"] for row in rows_of(tmp_path / "unbroken")]


def test_an_idle_process_that_is_killed_is_replaced(cell: Cell, tmp_path: Path) -> None:
    picture = plain_picture(tmp_path / "a.png", (9, 9, 9))
    first, pixels = read(cell, task(picture))
    for _ in range(3):
        os.kill(pid_of(cell), signal.SIGKILL)
        again, same = read(cell, task(picture))
        assert again.sha256 == first.sha256
        assert (same == pixels).all()


def test_processes_that_are_killed_at_random_lose_nothing(tmp_path: Path) -> None:
    """Every 30 ms one of the decoding processes is killed."""
    small_pictures(tmp_path / "in", 60)
    job = options(tmp_path / "in", taking=RECURSIVE)
    run_job(tmp_path / "unbroken", job, run_options())

    class Killing(Watcher):
        engine: LocalEngine | None = None
        kills = 0

        def scored(self, entry: object) -> None:
            assert self.engine
            cells = self.engine._reader._cells._cells
            pool = cells[self.kills % len(cells)]._pool
            if self.kills < 12 and pool is not None:
                for pid in list(pool._pool_manager.worker_manager.workers):
                    os.kill(pid, signal.SIGKILL)
                self.kills += 1

    watcher = Killing()

    def make(job: Any, run: Any, duplicates: Any) -> LocalEngine:
        watcher.engine = LocalEngine(EngineSetup(job, run, "cpu", 2, 2), duplicates)
        return watcher.engine

    outcome = run_job(tmp_path / "out", job, run_options(), watcher=watcher, make_engines=make)
    assert watcher.kills == 12
    assert outcome.complete
    if outcome.counts["quarantined"]:  # a picture that was in the hands of two that were killed
        run_job(tmp_path / "out", job, run_options(), retry=True)
    found, unbroken = rows_of(tmp_path / "out"), rows_of(tmp_path / "unbroken")
    assert [row["source"] for row in found] == [row["source"] for row in unbroken]
    assert all(row["status"] == "ok" for row in found)


def test_processes_that_cannot_start_end_the_job_with_a_reason(tmp_path: Path) -> None:
    class Unpicklable:
        most_bytes = 3

        def __reduce__(self) -> Any:
            return os._exit, (3,)

    cell = Cell(Setting(Unpicklable(), LIMITS, ClipOptions(), 31), 5.0)  # type: ignore[arg-type]
    try:
        with pytest.raises(QAlignError, match="processes that decode pictures cannot be started"):
            read(cell, task(plain_picture(tmp_path / "a.png", (1, 2, 3))))
    finally:
        cell.close()


def test_what_cannot_be_had_is_unavailable_and_what_cannot_be_read_failed(cell: Cell, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty.jpg").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.jpg")
    expected = {"missing.jpg": "unavailable", "text.jpg": "failed", "empty.jpg": "failed", "pipe.jpg": "failed"}
    for name, status in expected.items():
        reading, pixels = read(cell, task(tmp_path / name))
        assert (reading.status, pixels) == (status, None), reading
    assert read(cell, task(tmp_path, offset=0))[0].status == "failed"  # a folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)], check=False)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_ends_the_job_and_it_goes_on(small_disk: Path, tmp_path: Path) -> None:
    small_pictures(tmp_path / "in", 96)
    job = options(tmp_path / "in", taking=RECURSIVE)
    run_job(tmp_path / "unbroken", job, run_options())
    out = small_disk / "out"
    ballast = small_disk / "ballast"

    class Filling(Watcher):
        def finished(self, line: object) -> None:
            free = os.statvfs(small_disk)
            ballast.write_bytes(b"\0" * (free.f_bavail * free.f_bsize - 4096))  # less than a shard needs

    with pytest.raises(QAlignError, match="the disk is full; finished shards are kept"):
        run_job(out, job, run_options(), watcher=Filling())
    assert list(files(out)) == ["part-00000.parquet"]
    ballast.unlink()
    assert run_job(out, job, run_options()).scored == 64
    assert files(out) == files(tmp_path / "unbroken")


def test_a_disk_that_is_full_from_the_start_leaves_no_half_plan(small_disk: Path, tmp_path: Path) -> None:
    small_pictures(tmp_path / "in", 40)
    free = os.statvfs(small_disk)
    (small_disk / "ballast").write_bytes(b"\0" * (free.f_bavail * free.f_bsize))
    job = options(tmp_path / "in", taking=RECURSIVE)
    with pytest.raises(QAlignError, match="the disk is full"):
        run_job(small_disk / "out", job, run_options())
    (small_disk / "ballast").unlink()
    assert run_job(small_disk / "out", job, run_options()).complete


def test_inputs_that_were_removed_or_changed_since_the_plan_are_said(tmp_path: Path) -> None:
    small_pictures(tmp_path / "in", 96)
    out = tmp_path / "out"
    assert finish(job_process(out, tmp_path / "in", step="after the journal line")) == -signal.SIGKILL
    names = sorted((tmp_path / "in").rglob("*.jpg"))
    names[50].unlink()
    time.sleep(0.01)
    names[60].write_bytes(names[0].read_bytes())
    outcome = run_job(out, options(tmp_path / "in", taking=RECURSIVE), run_options())
    assert (outcome.counts["unavailable"], outcome.counts["changed"]) == (1, 1)
    rows = rows_of(out)
    assert len(rows) == 96
    assert (rows[50]["status"], rows[50]["error"]) == ("unavailable", f"{names[50]}: No such file or directory")
    assert rows[60]["warnings"] == ["the file was changed after the plan was made"]
    assert rows[60]["score"] == rows[0]["score"]
    names[50].write_bytes(names[0].read_bytes())
    assert run_job(out, options(tmp_path / "in", taking=RECURSIVE), run_options(), retry=True).scored == 1
    assert rows_of(out)[50]["status"] == "ok"


def test_an_engine_that_is_killed_is_replaced(tmp_path: Path) -> None:
    """Two engines in processes of their own; one is killed after the first shard."""
    small_pictures(tmp_path / "in", 96)
    job = options(tmp_path / "in", taking=RECURSIVE, shard_size=16)
    run_job(tmp_path / "unbroken", job, run_options())
    from qalign_fast.jobs.job import engines_for

    class Killing(Watcher):
        def __init__(self) -> None:
            self.crew: Any = None
            self.killed: list[int] = []

        def finished(self, line: object) -> None:
            if not self.killed:
                self.killed += self.crew._members[0]._pool._pool_manager.worker_manager.workers
                os.kill(self.killed[0], signal.SIGKILL)

    watcher = Killing()

    def make(*asked: Any) -> Any:
        watcher.crew = engines_for(*asked)
        return watcher.crew

    run = run_options(devices=("cpu", "cpu"), threads=1)
    assert run_job(tmp_path / "out", job, run, watcher=watcher, make_engines=make).complete
    assert watcher.killed
    assert files(tmp_path / "out") == files(tmp_path / "unbroken")


def test_an_engine_that_cannot_be_loaded_ends_the_job(tmp_path: Path) -> None:
    small_pictures(tmp_path / "in", 4)
    with pytest.raises(QAlignError, match="cuda:7"):
        run_job(
            tmp_path / "out",
            options(tmp_path / "in", taking=RECURSIVE),
            run_options(devices=("cuda:7", "cuda:8")),
        )
