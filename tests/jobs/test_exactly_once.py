"""Jobs that are ended anywhere and go on: no row is lost or doubled, and the bytes are those of an unbroken run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from qalign_fast.errors import QAlignError
from qalign_fast.jobs.folder import is_locked
from qalign_fast.jobs.inputs.taking import InputOptions
from qalign_fast.jobs.job import Watcher, run_job
from support.amount import FULL
from support.jobs import STEPS, files, finish, job_process, options, run_options, small_pictures

PICTURES = 5000 if FULL else 200
KILLS = 25 if FULL else 3
RECURSIVE = InputOptions(recursive=True)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_pictures(tmp_path_factory.mktemp("pictures"), PICTURES)


@pytest.fixture(scope="module")
def unbroken(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("unbroken")
    assert finish(job_process(out, pictures)) == 0
    return files(out)


def test_every_input_has_one_row(pictures: Path, unbroken: dict[str, bytes], tmp_path: Path) -> None:
    for name, data in unbroken.items():
        (tmp_path / name).write_bytes(data)
    sources = pq.read_table(tmp_path).column("source").to_pylist()
    assert sorted(sources) == sorted(str(path) for path in pictures.rglob("*.jpg"))


@pytest.mark.parametrize("step", STEPS)
def test_a_job_that_is_killed_at_a_named_step_goes_on(
    step: str, pictures: Path, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert finish(job_process(out, pictures, step=step, nth=3)) == -signal.SIGKILL
    assert len(files(out)) < len(unbroken)
    assert not is_locked(out)
    assert finish(job_process(out, pictures)) == 0
    assert files(out) == unbroken


def test_a_job_that_is_killed_while_it_plans_begins_anew(
    pictures: Path, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    for nth, step in enumerate(("before writing", "after the rename", "before the flush")):
        out = tmp_path / str(nth)
        process = job_process(out, pictures)
        while not (out / "_job").exists():
            time.sleep(0.001)
        time.sleep(0.005 * nth)
        process.kill()
        process.communicate()
        assert finish(job_process(out, pictures)) == 0, step
        assert files(out) == unbroken


def test_a_job_that_is_killed_at_random_moments_goes_on(
    pictures: Path, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    out, kills = tmp_path / "out", 0
    while kills < KILLS:
        process = job_process(out, pictures)
        try:
            process.wait(timeout=rng.uniform(0.3, 6.0 if FULL else 3.0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
        else:  # it was through: another job
            assert files(out) == unbroken
            out = tmp_path / f"out{kills}"
    assert finish(job_process(out, pictures)) == 0
    assert files(out) == unbroken


def test_a_killed_job_leaves_no_process(pictures: Path, tmp_path: Path) -> None:
    process = job_process(tmp_path / "out", pictures, step="before the journal line")
    assert finish(process) == -signal.SIGKILL
    deadline = time.monotonic() + 20
    while children := _with_parent_or_group(process.pid):
        assert time.monotonic() < deadline, children
        time.sleep(0.1)


def _with_parent_or_group(pid: int) -> list[str]:
    """The command lines of processes whose file of pixels was made by a job that is gone."""
    found = []
    for status in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = status.read_text("utf-8", "replace").replace("\0", " ")
        except OSError:
            continue
        if f"parent_pid={pid}" in text or ("spawn_main" in text and f"({pid}" in text):
            found.append(text)
    return found


def test_a_shard_whose_file_was_damaged_or_removed_is_scored_again(
    pictures: Path, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    for name, data in unbroken.items():
        (tmp_path / name).write_bytes(data)
    job = options(pictures, taking=RECURSIVE)
    out = tmp_path / "out"
    run_job(out, job, run_options())
    damaged = bytearray(unbroken["part-00001.parquet"])
    damaged[100] ^= 1
    (out / "part-00001.parquet").write_bytes(damaged)
    (out / "part-00003.parquet").unlink()
    said: list[str] = []
    watcher = Watcher()
    watcher.remark = said.append  # type: ignore[method-assign]
    outcome = run_job(out, job, run_options(), watcher=watcher)
    assert outcome.scored == 2 * job.shard_size
    assert [text.split()[0] for text in said] == ["part-00001.parquet", "part-00003.parquet"]
    assert files(out) == unbroken


def test_the_second_of_two_runs_on_one_output_is_refused(pictures: Path, tmp_path: Path) -> None:
    class Second(Watcher):
        error = ""

        def finished(self, line: object) -> None:
            if not self.error:
                with pytest.raises(QAlignError) as caught:
                    run_job(tmp_path / "out", job, run_options())
                self.error = str(caught.value)

    job, watcher = options(pictures, taking=RECURSIVE, shard_size=100), Second()
    assert run_job(tmp_path / "out", job, run_options(), watcher=watcher).complete
    assert f"process {os.getpid()} is writing it" in watcher.error


def test_a_second_process_is_refused_too(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = job_process(out, pictures)
    try:
        while not is_locked(out):
            time.sleep(0.01)
        with pytest.raises(QAlignError, match=f"process {first.pid} is writing it"):
            run_job(out, options(pictures, taking=RECURSIVE), run_options())
    finally:
        assert finish(first) == 0


def test_ctrl_c_ends_after_the_shards_in_hand(pictures: Path, unbroken: dict[str, bytes], tmp_path: Path) -> None:
    class Stopping(Watcher):
        count = 0

        def finished(self, line: object) -> None:
            self.count += 1

        def stopping(self) -> bool:
            return self.count >= 2

    job = options(pictures, taking=RECURSIVE)
    outcome = run_job(tmp_path / "out", job, run_options(), watcher=Stopping())
    assert not outcome.complete
    assert 2 <= outcome.finished < len(unbroken)
    found = files(tmp_path / "out")
    assert found == {name: unbroken[name] for name in found}
    run_job(tmp_path / "out", job, run_options())
    assert files(tmp_path / "out") == unbroken


def test_another_task_or_option_is_refused_with_what_differs(pictures: Path, tmp_path: Path) -> None:
    job = options(pictures, taking=RECURSIVE, shard_size=100)
    run_job(tmp_path / "out", job, run_options())
    before = files(tmp_path / "out")
    other = options(pictures, taking=RECURSIVE, shard_size=50, dedup=True)
    with pytest.raises(
        QAlignError, match="shard_size: 100 before, 50 now; dedup: False before, True now; the same options"
    ):
        run_job(tmp_path / "out", other, run_options())
    assert files(tmp_path / "out") == before
    assert run_job(tmp_path / "out", other, run_options(), force=True).complete
    assert len(files(tmp_path / "out")) == PICTURES / 50


def test_another_model_is_refused(pictures: Path, tmp_path: Path) -> None:
    job = options(pictures, taking=RECURSIVE, shard_size=100)
    run_job(tmp_path / "out", job, run_options())
    about = tmp_path / "out/_job/job.json"
    text = json.loads(about.read_text())
    text["model"]["sha256"] = "0" * 64
    about.write_text(json.dumps(text))
    with pytest.raises(QAlignError, match=f"model sha256: '{'0' * 64}' before, '[0-9a-f]+' now"):
        run_job(tmp_path / "out", job, run_options())


def test_force_removes_nothing_that_is_not_the_jobs(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = options(pictures, taking=RECURSIVE, shard_size=100)
    run_job(out, job, run_options())
    (out / "mine.txt").write_text("keep")
    run_job(out, options(pictures, taking=RECURSIVE, shard_size=PICTURES), run_options(), force=True)
    assert sorted(files(out)) == ["mine.txt", "part-00000.parquet"]


def test_rows_that_are_there_and_of_no_job_are_not_overwritten(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "part-00000.parquet").write_bytes(b"somebody's")
    with pytest.raises(QAlignError, match="is there already, and is not of this job"):
        run_job(tmp_path, options(pictures, taking=RECURSIVE), run_options())
    assert (tmp_path / "part-00000.parquet").read_bytes() == b"somebody's"
