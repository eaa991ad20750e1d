"""`kill -9` at any moment of an export: what is not whole does not load, and the next export works."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections import Counter
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import numpy as np
import pytest

from qalign_fast import ArtifactError, Scorer
from qalign_fast.artifact.manifest import PARTIAL, open_artifact
from support.goldens import GOLDEN

KILLS = 20
# a server that has imported torch and onnx forks each process, so that the kill comes within the export itself
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["qalign_fast.cli.app", "qalign_export.writer"])


def export(out: str) -> None:
    """Runs `qalign-fast export`."""
    import torch

    from qalign_fast.cli.app import main

    torch.set_num_threads(1)
    sys.argv = ["qalign-fast", "export", str(GOLDEN / "narrow-112"), out]
    main()


def start(out: Path) -> ForkServerProcess:
    process = FORKS.Process(target=export, args=(str(out),))
    process.start()
    return process


def finish(process: ForkServerProcess) -> int | None:
    process.join(120)
    return process.exitcode


def partials(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if PARTIAL in path.name]


def wait_for_partial(folder: Path, known: list[Path] = []) -> Path:  # noqa: B006
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if new := [path for path in partials(folder) if path not in known]:
            return new[0]
        time.sleep(0.0005)
    raise AssertionError("no export began")


def whole_run(out: Path) -> tuple[float, float]:
    """The seconds before an export begins to write, and the seconds that it writes."""
    started = time.monotonic()
    process = start(out)
    wait_for_partial(out.parent)
    wrote = time.monotonic()
    assert finish(process) == 0
    shutil.rmtree(out)
    return wrote - started, time.monotonic() - wrote


def judge(out: Path) -> str:
    """Says how far the killed export had come, and holds that only a whole artifact loads."""
    for path in out.parent.iterdir():
        if path != out:
            for load in (open_artifact, Scorer.load):
                with pytest.raises(ArtifactError):
                    load(path)
    if out.exists():
        open_artifact(out)
        shutil.rmtree(out)
        return "finished"
    return "writing" if partials(out.parent) else "not begun"


def test_killed_exports_leave_nothing_that_loads(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    out = tmp_path / "artifact"
    whole_run(out)  # the server starts
    before, writing = whole_run(out)
    came: Counter[str] = Counter()
    for i in range(KILLS):
        known = partials(tmp_path)
        process = start(out)
        if i % 4 == 0:  # any moment at all
            time.sleep(rng.uniform(0, before + writing))
        else:  # while it writes, half of them towards the end
            wait_for_partial(tmp_path, known)
            time.sleep(writing * rng.uniform(0.7 if i % 2 else 0, 1.05))
        process.kill()
        finish(process)
        state = judge(out)
        came[state] += 1
        if state == "finished":  # the machine was busy when the whole run was measured
            writing *= 0.8
    assert came.total() == KILLS
    assert came["writing"] >= KILLS // 4, came  # otherwise this test tests nothing
    assert finish(start(out)) == 0
    assert list(tmp_path.iterdir()) == [out]  # the folders of the killed ones are gone
    Scorer.load(out)


def test_an_export_that_still_runs_is_let_be(tmp_path: Path) -> None:
    out = tmp_path / "artifact"
    slow = start(out)
    partial = wait_for_partial(tmp_path)
    while not list(partial.iterdir()):  # until it has its own lock, it holds that of the folder that both share
        time.sleep(0.0005)
    assert slow.pid is not None
    os.kill(slow.pid, signal.SIGSTOP)
    fast = start(out)
    assert finish(fast) == 0
    assert partial.exists()
    os.kill(slow.pid, signal.SIGCONT)
    assert finish(slow) == 1  # its target appeared meanwhile
    assert list(tmp_path.iterdir()) == [out]
    Scorer.load(out)
