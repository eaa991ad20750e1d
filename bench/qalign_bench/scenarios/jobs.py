"""`jobs`: rows a second of a job over files on disk, beside the feed alone; what exactness costs; plans and resuming.

The contestants take turns over the same files, with engines that are loaded and decoding processes that run. A pass is
several shards. Planning and resuming are timed with made-up names, of which nothing is scored.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from io import BytesIO
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from qalign_bench.cli.session import Run, Session
from qalign_bench.contestants.generated_pictures import generated_pictures
from qalign_bench.contestants.models import Model
from qalign_bench.contestants.wire import Message
from qalign_bench.figures.runs import of_times, our_run
from qalign_bench.figures.spread import median, ratio
from qalign_fast.feed.items import Item
from qalign_fast.jobs.entries import Entry
from qalign_fast.jobs.inputs.taking import InputOptions
from qalign_fast.jobs.job import Watcher, run_job
from qalign_fast.jobs.local import EngineSetup, LocalEngine, default_workers
from qalign_fast.jobs.options import JobOptions, RunOptions

_ROUNDS = 7
_DISTINCT, _SIZE = 16, (1632, 1224)  # generated files, 2 MP
_PICTURES, _SHARD = 256, 64  # of a pass, of a shard
_FEED_WORKERS = 4  # as `Scorer.score_iter`
_PLANNED, _FOLDER = 1_000_000, 200_000  # made-up names; files of a folder
_STEPS = {  # what passes between a step that is told and the one before it
    "before the flush": "write",
    "after the rename": "flush",
    "before the journal line": "hash",
    "after the journal line": "journal",
}


@dataclass
class _Clock:
    """Hears a shard's steps. Leaves the seconds between them."""

    seconds: dict[str, float] = field(default_factory=dict)
    last: float = 0.0

    def __call__(self, step: str) -> None:
        now = time.perf_counter()
        if name := _STEPS.get(step):
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self.last
        if name or step == "before writing":
            self.last = now


class _Kept:
    """An engine that several jobs use one after another."""

    def __init__(self, engine: LocalEngine) -> None:
        self.engine = engine

    def run(self, shards: Iterable[list[Entry]], scored: Callable[[Entry], None]) -> Iterator[list[Entry]]:
        return self.engine.run(shards, scored)

    def close(self) -> None:
        """Not yet."""


@dataclass
class _Passes:
    """A contestant's rounds, in ms a picture."""

    name: str
    workers: int
    play: Callable[[], tuple[float, dict[str, float]]]  # seconds a pass, and seconds by step
    ms: list[float] = field(default_factory=list)
    steps: list[dict[str, float]] = field(default_factory=list)


def measure(session: Session) -> None:
    """Leaves a run for the feed and for a job with each number of processes. Raises QAlignError."""
    options = session.options
    [model, *_] = session.models()
    files = list(options.files) or generated_pictures(options.work, _DISTINCT, *_SIZE)
    with tempfile.TemporaryDirectory(prefix="qalign-bench-jobs-") as work:
        names = Path(work, "names.txt")
        names.write_text("".join(f"{os.path.abspath(file)}\n" for file in islice(cycle(files), _PICTURES)))  # noqa: PTH100
        job = JobOptions((str(names),), options.tasks, shard_size=_SHARD)
        setup = EngineSetup(job, RunOptions(model.loaded), options.device, options.threads, default_workers())
        engines = {count: LocalEngine(replace(setup, workers=count)) for count in _workers()}
        try:
            passes = [_Passes("feed", _FEED_WORKERS, _feed(engines[default_workers()], names, job))]
            passes += [_Passes(_name(count), count, _job(e, Path(work), job)) for count, e in engines.items()]
            rounds = options.repeat or _ROUNDS
            for r in range(-1, rounds):  # the first one warms
                for p, each in enumerate(passes):
                    session.progress(
                        (r + 1) * len(passes) + p, (rounds + 1) * len(passes), f"{each.name}, round {r + 1}"
                    )
                    seconds, steps = each.play()
                    if r >= 0:
                        each.ms.append(1e3 * seconds / _PICTURES)
                        each.steps.append({name: 1e3 * s / _PICTURES for name, s in steps.items()})
                session.noise.sample()
            session.runs += [_run(session, model, engines, each, passes[0]) for each in passes]
        finally:
            for engine in engines.values():
                engine.close()
        session.facts["hash_ms_per_picture"] = _hash_ms(files)
        session.facts |= _plans(session, Path(work), model)


def _workers() -> list[int]:
    """Numbers of decoding processes: one, the default, and twice as many."""
    return sorted({1, default_workers(), 2 * default_workers()})


def _name(count: int) -> str:
    return f"job, {count} process{'' if count == 1 else 'es'}"


def _feed(engine: LocalEngine, names: Path, job: JobOptions) -> Callable[[], tuple[float, dict[str, float]]]:
    def play() -> tuple[float, dict[str, float]]:
        started = time.perf_counter()
        items = (Item(name, name) for name in names.read_text().splitlines())
        found = engine.feed.run(items, job.tasks, batch_size=16, workers=_FEED_WORKERS)
        count = sum(scored.error is None for scored in found)
        assert count == _PICTURES, count
        return time.perf_counter() - started, {}

    return play


def _job(engine: LocalEngine, work: Path, job: JobOptions) -> Callable[[], tuple[float, dict[str, float]]]:
    def play() -> tuple[float, dict[str, float]]:
        clock = _Clock()
        with tempfile.TemporaryDirectory(dir=work) as out:
            started = time.perf_counter()
            found = run_job(Path(out), job, RunOptions(), make_engines=lambda *_: _Kept(engine), reached=clock)
            seconds = time.perf_counter() - started
        assert (found.complete, found.errors) == (True, 0), found
        return seconds, clock.seconds

    return play


def _run(session: Session, model: Model, engines: dict[int, LocalEngine], passes: _Passes, feed: _Passes) -> Run:
    engine = engines[default_workers()].engine
    ready: Message = {
        "name": "qalign-fast",
        "precision": engine.precision,
        "engine": engine.name,
        "kernels": engine.kernels,
        "device": engine.device,
        "weights_bytes": model.weights_bytes,
        "load_s": None,
        "versions": {},
    }
    share = ratio(feed.ms, passes.ms)
    steps = {name: median([s[name] for s in passes.steps]) for name in passes.steps[0]}
    return our_run(session, model, ready) | {
        "contestant": passes.name,
        "batch": 16,
        "ms_of": "a picture of a pass over files",
        **of_times(passes.ms, passes.ms, 1),
        "stations_ms": steps,
        "pictures": _PICTURES,
        "shard": _SHARD,
        "workers": passes.workers,
        "of_feed": {"share": share.middle, "range": [share.low, share.high]},
    }


def _hash_ms(files: list[str]) -> float:
    """The content hash that every row has, of a file in memory."""
    data = [Path(file).read_bytes() for file in files]
    times = []
    for _ in range(5):
        started = time.perf_counter()
        for each in data:
            hashlib.sha256(each).hexdigest()
        times.append(1e3 * (time.perf_counter() - started) / len(data))
    return median(times)


class _BegunError(Exception):
    """Ends a job that was timed up to its first picture."""


class _Beginning(Watcher):
    """Notes when scoring begins, and ends the job."""

    planned = 0.0

    def planning(self, inputs: int) -> None:
        self.planned = time.perf_counter()

    def begin(self, inputs: int, done: int) -> None:
        raise _BegunError


def _plans(session: Session, work: Path, model: Model) -> dict[str, Any]:
    """Seconds to plan a million made-up names and a folder of files, and to begin again with the plan."""
    session.remark(f"planning {_PLANNED:,} names and a folder of {_FOLDER:,} files")
    names = work / "made_up.txt"
    with names.open("w") as file:
        file.writelines(f"/made/up/{number // 1000:04d}/{number:07d}.jpg\n" for number in range(_PLANNED))
    out = work / "planned"
    plan_s = _begin(out, JobOptions((str(names),)), model)
    resume_s = median([_begin(out, JobOptions((str(names),)), model) for _ in range(3)])
    folder = work / "folder"
    for number in range(_FOLDER):
        if number % 1000 == 0:
            (folder / f"{number // 1000:03d}").mkdir(parents=True)
        (folder / f"{number // 1000:03d}" / f"{number:06d}.jpg").touch()
    job = JobOptions((str(folder),), taking=InputOptions(recursive=True))
    return {
        "planned_names": _PLANNED,
        "plan_names_s": plan_s,
        "resume_s": resume_s,
        "plan_bytes": (out / "_job" / "plan.parquet").stat().st_size,
        "folder_files": _FOLDER,
        "plan_folder_s": _begin(work / "planned_folder", job, model),
    }


def _begin(out: Path, job: JobOptions, model: Model) -> float:
    """Seconds until the first picture would be scored; planning, loading and all."""
    started = time.perf_counter()
    try:
        run_job(out, job, RunOptions(model.loaded), stdin=BytesIO(), watcher=_Beginning())
    except _BegunError:
        return time.perf_counter() - started
    raise AssertionError("the job had nothing to do")
