"""A job's folder: its description, plan, journal and lock, and the shards' files beside them.

DIR/part-00000.parquet ...   the rows, a file for each shard; or TAR.parquet for a WebDataset's tar
DIR/_job/job.json            the model, the options and the plan's summary; written last, so a plan is whole
DIR/_job/plan.parquet        every input, a row group for each shard
DIR/_job/journal.jsonl       a line for each finished shard
DIR/_job/lock                held while a process writes
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from qalign_fast.errors import OptionError, QAlignError, one_line
from qalign_fast.families.registry import find_family
from qalign_fast.jobs.inputs.found import Group
from qalign_fast.jobs.journal import Journal, Line, agreeing, hash_file
from qalign_fast.jobs.options import JobOptions, differences, hash_options
from qalign_fast.jobs.packages import FileLock, Timeout
from qalign_fast.jobs.plan import Plan, Summary, write_plan
from qalign_fast.jobs.rows import CHANGED, Layout
from qalign_fast.jobs.safe_files import Reached, remove_temporary, unwatched, write_whole
from qalign_fast.levels import LEVELS
from qalign_fast.records import JOB_FIELDS, JOB_FOLDER

_VERSION = 1
_ABOUT = ("model", "options", "options_sha256", "tasks", "scale", "folder", "plan", "plan_sha256")  # in job.json
_MOMENT = 0.5  # seconds in which `is_locked`, which takes the lock to look, has let it go


class JobFolder:
    """A job that was planned. `lock` must be held while it is written.

    about: what job.json holds. lines: of the shards that are finished, by number.
    """

    def __init__(self, path: Path, reached: Reached = unwatched) -> None:
        """Opens a planned job. Raises QAlignError for a folder without one, or whose plan was changed."""
        self.path, self.inside, self._reached = path, path / JOB_FOLDER, reached
        self.about = read_about(path)
        self.summary = Summary(**{**self.about["plan"], "names": _by_number(self.about["plan"]["names"])})
        family = find_family(self.about["model"]["family"])
        options = self.about["options"]
        header = {
            name: self.about[name] for name in ("version", "model", "options", "options_sha256", "tasks", "scale")
        }
        tasks, kept = tuple(self.about["tasks"]), self.summary.kept
        self.layout = Layout(
            options["format"], family.scale, tasks, kept, self.summary.keyed, header, options["timing"]
        )
        self.journal = Journal(self.inside / "journal.jsonl", reached)
        self.lines: dict[int, Line] = {}

    def open_plan(self) -> Plan:
        """The plan. Raises QAlignError for one that is not as it was written."""
        path = self.inside / "plan.parquet"
        try:
            matches = hash_file(path) == self.about["plan_sha256"]
        except OSError as error:
            raise QAlignError(f"{path}: {error.strerror}; --force starts anew") from error
        if not matches:
            raise QAlignError(f"{path}: the plan was changed; --force starts anew")
        return Plan(path, self.about["folder"])

    def look(self) -> list[Line]:
        """Reads the journal and removes what was left half written. Returns the lines whose files do not agree."""
        remove_temporary(self.path)
        remove_temporary(self.inside)
        self.lines, wrong = agreeing(self.path, self.journal.read())
        return wrong

    def file_of(self, shard: int) -> Path:
        return self.path / f"{self.summary.name(shard)}.{self.layout.format}"

    def write(self, shard: int, rows: list[dict[str, Any]]) -> Line:
        """Writes a shard's rows and its line in the journal. Raises OSError."""
        file = self.file_of(shard)
        write_whole(file, lambda aside: self.layout.write(rows, aside, self._reached), self._reached)
        found = _counts(rows, len(self.layout.tasks))
        line = Line(shard, file.name, file.stat().st_size, hash_file(file), len(rows), **found)
        self.journal.append(line)
        self.lines[shard] = line
        return line


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Holds a folder's lock. A process that ends, however it ends, lets it go.

    Raises QAlignError where another process holds it, OSError where the folder cannot be made.
    """
    (path / JOB_FOLDER).mkdir(parents=True, exist_ok=True)
    file, owner = FileLock(path / JOB_FOLDER / "lock"), path / JOB_FOLDER / "owner"
    try:
        file.acquire(timeout=_MOMENT)
    except Timeout as error:
        who = owner.read_text("utf-8") if owner.is_file() else "another process"
        raise QAlignError(f"{path}: {who} is writing it; wait until that ends, or give another --out") from error
    try:
        owner.write_text(f"process {os.getpid()}", "utf-8")
        yield
    finally:
        owner.unlink(missing_ok=True)
        file.release()


def is_locked(path: Path) -> bool:
    """Whether a process writes into the folder now."""
    if not (path / JOB_FOLDER / "lock").exists():
        return False
    file = FileLock(path / JOB_FOLDER / "lock")
    try:
        file.acquire(timeout=0)
    except Timeout:
        return True
    file.release()
    return False


def is_planned(path: Path) -> bool:
    """Whether there is a job in the folder whose plan is whole."""
    return (path / JOB_FOLDER / "job.json").is_file()


def read_about(path: Path) -> dict[str, Any]:
    """What job.json holds. Raises QAlignError."""
    file = path / JOB_FOLDER / "job.json"
    try:
        found: dict[str, Any] = json.loads(file.read_text("utf-8"))
        if found["version"] != _VERSION:
            raise QAlignError(f"{file}: of version {found['version']}; this program reads {_VERSION}")
        if lacking := [name for name in _ABOUT if name not in found]:
            raise ValueError(f"without {', '.join(lacking)}")
    except FileNotFoundError as error:
        raise QAlignError(f"{path}: no job is there") from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise QAlignError(f"{file}: cannot be read ({one_line(error)}); --force starts anew") from error
    return found


def plan_job(
    path: Path,
    options: JobOptions,
    model: Mapping[str, str],
    groups: Iterable[Group],
    seen: Callable[[int], None] = lambda _: None,
    *,
    anew: bool = False,
) -> None:
    """Plans a job into a folder that has none; `anew`: in place of the one that is there, once the plan stands.

    Raises OptionError, QAlignError and OSError.
    """
    inside = path / JOB_FOLDER
    inside.mkdir(parents=True, exist_ok=True)
    check_kept(options)
    found: list[Summary] = []

    def write(aside: Path) -> None:
        summary = write_plan(aside, groups, options.shard_size, options.taking.keep, seen)
        there = {file.name for file in path.iterdir()} - (_files_of_job(path) if anew else set())
        for shard in range(summary.shards):
            if (name := f"{summary.name(shard)}.{options.format}") in there:
                raise QAlignError(f"{path / name}: is there already, and is not of this job; give another --out")
        if anew:
            remove_job(path, keep=aside)
        found.append(summary)

    write_whole(inside / "plan.parquet", write)
    [summary] = found
    about = describe(options, model) | {"folder": os.getcwd(), "plan": asdict(summary)}  # noqa: PTH109
    about["plan_sha256"] = hash_file(inside / "plan.parquet")
    text = json.dumps(about, indent=1)
    write_whole(inside / "job.json", lambda aside: _write_text(aside, text))


def describe(options: JobOptions, model: Mapping[str, str]) -> dict[str, Any]:
    """A job's model and options, as job.json and every Parquet file hold them."""
    plain = options.to_json()
    scale = find_family(model["family"]).scale
    return {
        "version": _VERSION,
        "model": dict(model),
        "options": plain,
        "options_sha256": hash_options(plain),
        "tasks": list(options.tasks),
        "scale": [scale.low, scale.high],
    }


def check_same(about: Mapping[str, Any], options: JobOptions, model: Mapping[str, str]) -> None:
    """Raises QAlignError, which says what differs, unless a job has this model and these options."""
    now = options.to_json()
    found = differences(
        {f"model {k}": v for k, v in about["model"].items()}, {f"model {k}": v for k, v in model.items()}
    )
    found += differences(about["options"], now)
    if found:
        raise QAlignError(
            f"the job there differs: {'; '.join(found)}; the same options go on, --out names another folder, "
            "--force starts anew"
        )


def own_options(path: Path, options: JobOptions) -> JobOptions:
    """The given options, with the job's own inputs for none, and all its own for none at all. Raises QAlignError."""
    if options.inputs:
        return options
    own = JobOptions.from_json(read_about(path)["options"])
    return own if options == JobOptions(()) else replace(options, inputs=own.inputs)


def check_kept(options: JobOptions) -> None:
    """Raises OptionError for a kept column whose name is that of one of ours, or that is named twice."""
    keep = options.taking.keep
    if len(set(keep)) < len(keep):
        raise OptionError(f"--keep {', '.join(keep)}: a column is named twice")
    if both := sorted((JOB_FIELDS | set(LEVELS if options.format == "csv" else ())) & set(keep)):
        raise OptionError(f"--keep {', '.join(both)}: rows have a column of that name already")


def remove_job(path: Path, keep: Path) -> None:
    """Removes a job and its rows, and nothing else; `keep` is a file to keep. Raises OSError."""
    for name in _files_of_job(path):
        (path / name).unlink(missing_ok=True)
    for file in (path / JOB_FOLDER).iterdir():
        if file.name not in ("lock", "owner", keep.name):
            file.unlink()


def _files_of_job(path: Path) -> set[str]:
    """The names of a job's shards, whether they are there or not."""
    found = {line.file for line in Journal(path / JOB_FOLDER / "journal.jsonl").read().values()}
    with suppress(QAlignError):  # a job that cannot be read any more has no other names
        job = JobFolder(path)
        found |= {job.file_of(shard).name for shard in range(job.summary.shards)}  # may be there without a line
    return found


def _counts(rows: list[dict[str, Any]], tasks: int) -> dict[str, int]:
    inputs = rows[::tasks]
    found = dict.fromkeys(("ok", "failed", "unavailable", "quarantined"), 0)
    for row in inputs:
        found[row["status"]] += 1
    return found | {"changed": sum(any(CHANGED in text for text in row["warnings"] or ()) for row in inputs)}


def _by_number(names: Mapping[str, str]) -> dict[int, str]:
    return {int(shard): name for shard, name in names.items()}


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, "utf-8")
