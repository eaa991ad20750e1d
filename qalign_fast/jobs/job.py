"""A folder and options in, a finished job out: planned once, scored shard by shard, continued where it ended."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedIOBase, BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from qalign_fast.errors import OptionError, QAlignError
from qalign_fast.identity import identify_model
from qalign_fast.jobs.crew import Crew, ProcessMember
from qalign_fast.jobs.dedup import Duplicates, content_of
from qalign_fast.jobs.folder import JobFolder, check_same, is_planned, lock, own_options, plan_job, read_about
from qalign_fast.jobs.inputs.found import find_entries
from qalign_fast.jobs.journal import totals
from qalign_fast.jobs.local import EngineSetup, LocalEngine, default_workers
from qalign_fast.jobs.places import Place, places_of
from qalign_fast.jobs.rows import answers_in
from qalign_fast.jobs.safe_files import Reached, unwatched

if TYPE_CHECKING:
    from qalign_fast.jobs.entries import Entry
    from qalign_fast.jobs.journal import Line
    from qalign_fast.jobs.options import JobOptions, RunOptions
    from qalign_fast.jobs.plan import Plan
    from qalign_fast.records import Row

RETRIED = ("unavailable", "quarantined")


class Engines(Protocol):
    """What scores shards: a `LocalEngine` or a `Crew`."""

    def run(self, shards: Iterator[list[Entry]], scored: Callable[[Entry], None]) -> Iterator[list[Entry]]: ...

    def close(self) -> None: ...


class Watcher:
    """Hears how a job goes. This one does not care."""

    def remark(self, text: str) -> None:
        """Something that the user should know."""

    def planning(self, inputs: int) -> None:
        """How many inputs were found so far."""

    def begin(self, inputs: int, done: int) -> None:
        """Scoring begins: of so many inputs, so many are done."""

    def scored(self, entry: Entry) -> None:
        """An input was scored, or has an error."""

    def finished(self, line: Line) -> None:
        """A shard is on the disk and in the journal."""

    def stopping(self) -> bool:
        """Whether the job is to end after the shards in hand."""
        return False


@dataclass(frozen=True)
class Outcome:
    """What a run leaves: counts of all shards that are finished, and of how many.

    inputs, shards: of the plan. counts: as `journal.totals`. scored: inputs that this run scored.
    """

    inputs: int
    shards: int
    finished: int
    counts: dict[str, int] = field(default_factory=dict)
    scored: int = 0

    @property
    def complete(self) -> bool:
        return self.finished == self.shards

    @property
    def errors(self) -> int:
        """Inputs without a score."""
        return self.counts["failed"] + self.counts["unavailable"] + self.counts["quarantined"]


def run_job(
    path: Path,
    job: JobOptions,
    run: RunOptions,
    *,
    force: bool = False,
    retry: bool = False,
    stdin: BufferedIOBase | None = None,
    watcher: Watcher | None = None,
    make_engines: Callable[[JobOptions, RunOptions, Duplicates | None], Engines] | None = None,
    skipped: Callable[[str], None] = lambda _: None,
    reached: Reached = unwatched,
) -> Outcome:
    """Plans a job, or goes on with the one that is in the folder, until every shard is finished.

    `force` starts anew. `retry` scores inputs again that failed for passing reasons. `skipped` hears the kind of
    each file and sample that is left out, `reached` of the steps that a shard's file and line pass, for tests.
    Raises QAlignError for a folder that another process writes, for a job of another model or other options, and for a
    full disk; OptionError for inputs that cannot be read; and what loading a model raises.
    """
    watcher = watcher or Watcher()
    model = identify_model(run.model, run.precision, run.base)
    with _told(path), lock(path):
        if is_planned(path) and not force:
            job = own_options(path, job)
        _prepare(path, job, model, stdin or BytesIO(), watcher, skipped, force=force)
        folder = JobFolder(path, reached)
        plan = folder.open_plan()
        for line in folder.look():
            watcher.remark(f"{line.file} is not as the journal says; its shard is scored again")
        todo = _todo(folder, plan, retry=retry)
        scored = _score(folder, plan, todo, job, run, watcher, make_engines or engines_for) if todo else 0
        summary = folder.summary
        return Outcome(summary.inputs, summary.shards, len(folder.lines), totals(folder.lines.values()), scored)


def engines_for(job: JobOptions, run: RunOptions, duplicates: Duplicates | None) -> Engines:
    """One engine in this process; for several devices or NUMA nodes, one in a process of its own for each."""
    places = places_of(run.devices)
    if job.dedup and len(places) > 1:
        raise OptionError("equal pictures are found by one engine; with --dedup give one --device")
    workers = run.workers or default_workers()
    if len(places) == 1:
        return LocalEngine(EngineSetup(job, run, places[0].device, run.threads, workers), duplicates)
    each = max(1, workers // len(places))
    return Crew([ProcessMember(_setup(job, run, place, each), place.cores) for place in places])


def _setup(job: JobOptions, run: RunOptions, place: Place, workers: int) -> EngineSetup:
    threads = run.threads or (len(place.cores) if place.cores else None)
    return EngineSetup(job, run, place.device, threads, workers)


def _prepare(
    path: Path,
    job: JobOptions,
    model: dict[str, str],
    stdin: BufferedIOBase,
    watcher: Watcher,
    skipped: Callable[[str], None],
    *,
    force: bool,
) -> None:
    """Leaves a planned job with this model and these options in the folder."""
    if is_planned(path) and not force:
        check_same(read_about(path), job, model)
        return
    if not job.inputs:
        raise OptionError(
            f"{path}: {'--force starts anew' if force else 'no job is there to go on with'}; name the inputs"
        )
    groups = find_entries(job.inputs, job.taking, stdin, skipped)
    plan_job(path, job, model, groups, watcher.planning, anew=force)


def _todo(folder: JobFolder, plan: Plan, *, retry: bool) -> list[int]:
    """The shards to score, in order."""
    lines = folder.lines
    return [s for s in range(plan.shards) if s not in lines or (retry and lines[s].retryable)]


def _score(
    folder: JobFolder,
    plan: Plan,
    todo: list[int],
    job: JobOptions,
    run: RunOptions,
    watcher: Watcher,
    make_engines: Callable[[JobOptions, RunOptions, Duplicates | None], Engines],
) -> int:
    """Scores and writes shards. Returns how many inputs that were."""
    duplicates = _duplicates(folder) if job.dedup else None
    before: dict[int, list[Row]] = {}  # of shards that are retried
    count = 0
    try:
        engines = make_engines(job, run, duplicates)
        try:
            done = folder.summary.inputs - sum(plan.inputs(shard) for shard in todo)
            watcher.begin(folder.summary.inputs, done)
            for entries in engines.run(_shards(folder, plan, todo, before, watcher), watcher.scored):
                shard = entries[0].shard
                rows = _rows(folder, entries, before.pop(shard, None))
                watcher.finished(folder.write(shard, rows))
                count += len(entries)
        finally:
            engines.close()
    finally:
        if duplicates is not None:
            duplicates.close()
    return count


def _shards(
    folder: JobFolder, plan: Plan, todo: list[int], before: dict[int, list[Row]], watcher: Watcher
) -> Iterator[list[Entry]]:
    """The entries to score. Of a shard that is retried those that failed for passing reasons, and its rows are kept."""
    for shard in todo:
        if watcher.stopping():
            return
        entries = plan.entries(shard)
        if shard in folder.lines:
            before[shard] = rows = folder.layout.read(folder.file_of(shard))
            entries = [entry for entry in entries if rows[entry.number * len(folder.layout.tasks)]["status"] in RETRIED]
        yield entries


def _rows(folder: JobFolder, entries: list[Entry], before: list[Row] | None) -> list[Row]:
    """A shard's rows: the entries' own, in the places that they have among those that were there before."""
    layout = folder.layout
    rows = before or []
    for entry in entries:
        made = list(layout.rows(entry))
        if before is None:
            rows += made
        else:
            rows[entry.number * len(made) : (entry.number + 1) * len(made)] = made
    return rows


def _duplicates(folder: JobFolder) -> Duplicates:
    """What finished shards hold already."""
    found = Duplicates(folder.inside / "contents.sqlite")
    tasks = len(folder.layout.tasks)
    for shard in sorted(folder.lines):
        rows = folder.layout.read(folder.file_of(shard))
        for at in range(0, len(rows), tasks):
            its = rows[at : at + tasks]
            if its[0]["status"] == "ok":
                medium = "image" if its[0]["frames"] is None else "video"
                found.add(content_of(its[0]["sha256"], medium), answers_in(its))
    return found


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turns the system's errors about the output into one of ours."""
    try:
        yield
    except OSError as error:
        if isinstance(error, QAlignError):
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise QAlignError(
                f"{path}: the disk is full; finished shards are kept, and the same command goes on with them"
            ) from error
        raise QAlignError(f"{error.filename or path}: {error.strerror or error}") from error
