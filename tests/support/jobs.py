"""Jobs in processes of their own, which can be ended at a named step; pictures for them; and rules that misbehave.

Run as a script it is such a process: its argument is what `job_process` passes as JSON.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from qalign_fast.jobs.job import Outcome, run_job
from qalign_fast.jobs.local import EngineSetup, LocalEngine
from qalign_fast.jobs.options import JobOptions, RunOptions

STEPS = (
    "before writing",
    "in the middle",
    "before the flush",
    "after the rename",
    "before the journal line",
    "in the journal line",
    "after the journal line",
)
KILLER, HANGER = (250, 0, 0), (0, 250, 0)  # the colours of pictures that end or hold up their process


def small_pictures(folder: Path, count: int, *, seed: int = 0) -> Path:
    """Different JPEGs of 48 x 32 pixels, in folders of 1,000."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        path = folder / f"{number // 1000:03d}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (4, 6, 3), np.uint8)
        Image.fromarray(coarse).resize((48, 32), Image.Resampling.BICUBIC).save(path, quality=80)
    return folder


def make_tar(path: Path, members: dict[str, bytes]) -> Path:
    """A tar of these members, in a folder that is made for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def options(*inputs: Path | str, **others: Any) -> JobOptions:
    """Of a job whose runs give equal bytes."""
    return JobOptions(tuple(map(str, inputs)), **{"timing": False, "shard_size": 32, **others})


def run_options(**others: Any) -> RunOptions:
    return RunOptions(**{"workers": 2, "threads": 2, **others})


def rows_of(out: Path) -> list[dict[str, Any]]:
    """A job's rows of all shards, in order."""
    found: list[dict[str, Any]] = pq.read_table(out).to_pylist()
    return found


def files(out: Path) -> dict[str, bytes]:
    """The shards' files, by name."""
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}


@dataclass
class Ending:
    """Ends this process when a step is reached for the n-th time."""

    step: str
    nth: int = 1

    def __call__(self, step: str) -> None:
        self.nth -= step == self.step
        if self.nth == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def job_process(out: Path, folder: Path, *, step: str = "", nth: int = 1, **job: Any) -> subprocess.Popen[str]:
    """A job on a folder's pictures, in a process that ends itself when a step is reached for the n-th time."""
    asked = {"out": str(out), "folder": str(folder), "step": step, "nth": nth, "job": job}
    return subprocess.Popen(
        [sys.executable, "-m", "support.jobs", json.dumps(asked)],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> int:
    """Waits for it. Returns its exit code; fails with what it printed unless that is 0 or -9."""
    printed, _ = process.communicate(timeout=900)
    assert process.returncode in (0, -signal.SIGKILL), printed
    return process.returncode


class MisbehavingRule:
    """A pixel rule that ends or holds up the process that meets a picture of one of two colours."""

    def __init__(self, rule: Any) -> None:
        self._rule = rule
        self.most_bytes = rule.most_bytes

    def apply(self, rgb: Any, path: Any) -> Any:
        r, g, b, *_ = (int(c) for c in np.asarray(rgb)[0, 0])
        for colour, misbehave in ((KILLER, _end), (HANGER, _hang)):
            if abs(r - colour[0]) + abs(g - colour[1]) + abs(b - colour[2]) < 8:
                misbehave()
        return self._rule.apply(rgb, path)


def misbehaving_engine(job: JobOptions, run: RunOptions, duplicates: Any) -> LocalEngine:
    """A `LocalEngine` whose decoding processes have the rule."""
    engine = LocalEngine(EngineSetup(job, run, "cpu", run.threads, run.workers or 2), duplicates)
    for cell in engine._reader._cells._cells:
        cell._setting = replace(cell._setting, rule=MisbehavingRule(cell._setting.rule))
    return engine


def plain_picture(path: Path, colour: tuple[int, int, int]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), colour).save(path)
    return path


def _end() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _hang() -> None:
    time.sleep(600)


def _main(asked: dict[str, Any]) -> Outcome:
    reached: Callable[[str], None] = Ending(asked["step"], asked["nth"])
    job = options(asked["folder"], **{"taking": _recursive(), **asked["job"]})
    return run_job(Path(asked["out"]), job, run_options(), reached=reached)


def _recursive() -> Any:
    from qalign_fast.jobs.inputs.taking import InputOptions

    return InputOptions(recursive=True)


if __name__ == "__main__":
    assert _main(json.loads(sys.argv[1])).complete
