"""A rows file in, its columns out: Parquet, JSON lines, CSV, or a job's folder of such files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qalign_fast.analysis.columns import NumbersBuilder, Texts, TextsBuilder
from qalign_fast.analysis.files import Source, open_rows
from qalign_fast.analysis.job import Job, files_beside, job_beside, unfinished
from qalign_fast.analysis.scales import level_places
from qalign_fast.errors import RowsError, TaskError
from qalign_fast.levels import LEVELS
from qalign_fast.records import JOB_FIELDS

if TYPE_CHECKING:
    import numpy.typing as npt

NEEDED = ("source", "task", "score", "error")  # every rows file has them
OURS = JOB_FIELDS.union(LEVELS)  # a column of another name is the user's
KEY, FOLDER = "__key__", "folder"
_NUMBERS = {"score": None, "milliseconds": None, "probabilities": len(LEVELS)}  # name -> numbers in a row
_NO_ERROR = ("", "nan", "NaN", "None", "null", "false", "False")  # what tables hold in place of null
_SUFFIXES = (".parquet", ".jsonl", ".csv")


@dataclass(frozen=True)
class Rows:
    """The rows of one run, column by column; R of them, in the order of the files.

    name: what the user called it. job: what ran; of a file that does not say so, all of it is None.
    texts: the columns of text that were read. numbers: those of numbers; score is float64 [R] on job.scale, NaN where
    there is none, and probabilities [R, 5], the best level first. columns: the names of all columns of the files.
    unfinished: of a job's folder how far the job is, such as "3 of 8 shards are finished"; None if it is finished.
    """

    name: str
    job: Job
    texts: Mapping[str, Texts]
    numbers: Mapping[str, npt.NDArray[np.float64]]
    columns: tuple[str, ...] = field(default=NEEDED)
    unfinished: str | None = None

    def __len__(self) -> int:
        return len(self.score)

    @property
    def score(self) -> npt.NDArray[np.float64]:
        return self.numbers["score"]

    @cached_property
    def scored(self) -> npt.NDArray[np.bool_]:
        """[R]: whether a row has a score and no error."""
        without_error: npt.NDArray[np.bool_] = self.texts["error"].codes < 0
        return np.isfinite(self.score) & without_error

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that rows are in, in the order in which they first appear."""
        return self.texts["task"].values

    def in_task(self, task: str) -> npt.NDArray[np.bool_]:
        """[R]: whether a row is in the task. Raises TaskError, which lists what there is."""
        if task not in self.tasks:
            raise TaskError(f"task {task!r} is not in {self.name}; it has: {', '.join(self.tasks) or 'no rows'}")
        found: npt.NDArray[np.bool_] = self.texts["task"].codes == self.tasks.index(task)
        return found

    def one_task(self, task: str | None) -> str:
        """The task that is asked for, or the only one. Raises TaskError where there are several, or not that one."""
        if task is None and len(self.tasks) != 1:
            raise TaskError(f"{self.name} has the tasks: {', '.join(self.tasks) or 'none'}; --task says which")
        self.in_task(chosen := task or self.tasks[0])
        return chosen

    def group(self, column: str) -> Texts:
        """A column by which rows are grouped; "folder" is the source's, where no column has that name.

        Raises RowsError for a column that the files do not have.
        """
        if column == FOLDER and column not in self.columns:
            return _folders(self.texts["source"])
        if (found := self.texts.get(column)) is None:
            users = ", ".join(name for name in self.columns if name not in OURS) or "no column of yours"
            raise RowsError(f"{self.name} has no column {column!r} of text; it has: {FOLDER}, {users}")
        return found


def read_rows(path: str | os.PathLike[str], wanted: Sequence[str] = ()) -> Rows:
    """The needed columns of a rows file or a job's folder, and those that are wanted, as far as it has them.

    Files are read batch by batch; other columns are not kept. Raises RowsError for what is no rows file, for a score
    outside the scale, and for parts of different models; MissingExtraError for Parquet without pyarrow.
    """
    collector = _Collector(dict.fromkeys([*NEEDED, *wanted]))
    files = find_files(Path(path))
    for file in files:
        collector.read(file)
    job = collector.job or job_beside(files[0].parent)
    rows = Rows(str(path), job, *collector.build(), tuple(collector.columns), unfinished(Path(path)))
    _check_scale(rows)
    return rows


def levels_of(rows: Rows, chosen: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
    """The place in LEVELS of the level of each chosen row [n]; -1 where there is no score.

    It is the row's own word where it has one of these, in small letters or capitals; else that of its score.
    """
    found = np.where(rows.scored[chosen], level_places(rows.score[chosen], rows.job.scale), -1)
    if (level := rows.texts.get("level")) is None:
        return found
    places = {word: place for place, word in enumerate(LEVELS)}
    own = np.array([*(places.get(word.strip().lower(), -1) for word in level.values), -1])[level.codes[chosen]]
    return np.where((found >= 0) & (own >= 0), own, found)


def find_files(path: Path) -> list[Path]:
    """The files of rows, sorted by name: the path itself or, of a folder, those that a job wrote.

    Of a job they are those that its journal names. Without one they are all of the format that the job's description
    says; without that, those called part-*, else all. Raises RowsError for a folder that has none, or several kinds.
    """
    if not path.exists():
        raise RowsError(f"{path}: no such file or folder; expected rows: Parquet, JSON lines, CSV or a job's folder")
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise RowsError(f"{path}: rows are read from a file, not from a pipe; write them into one")
    if (named := files_beside(path)) is not None:
        names = sorted({name for name in named.values() if Path(name).name == name})
        found = [path / name for name in names if (path / name).is_file()]
        if not found:
            raise RowsError(f"{path}: no file of the job in it is there; expected a job of which a shard is finished")
        return found
    found = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES and file.name[0] not in "._")
    found = [file for file in found if file.is_file()]
    if wrote := job_beside(path).options.get("format"):
        found = [file for file in found if file.suffix == f".{wrote}"]
    else:
        found = [file for file in found if file.name.startswith("part-")] or found
    kinds = sorted({file.suffix for file in found})
    if len(kinds) != 1:
        has = f"holds rows in {' and '.join(kinds)}" if kinds else "holds no rows"
        raise RowsError(f"{path}: {has}; expected part-*.parquet, .jsonl or .csv, or other files of one of these kinds")
    return found


class _Collector:
    """Builds the columns of several files."""

    def __init__(self, names: Iterable[str]) -> None:
        self.columns: dict[str, None] = {}  # an ordered set
        self.job: Job | None = None
        self._texts = {name: TextsBuilder() for name in names if name not in _NUMBERS}
        self._numbers = {name: NumbersBuilder(_NUMBERS[name]) for name in names if name in _NUMBERS}

    def read(self, file: Path) -> None:
        """Raises RowsError, which names the file."""
        try:
            with open_rows(file) as source:
                self._see(source)
                for batch in source.batches([*self._texts, *self._numbers]):
                    self._add(batch.count, batch.columns)
                self.columns |= dict.fromkeys(source.columns)  # of all rows of JSON lines
        except RowsError as error:
            raise RowsError(f"{file}: {error}") from error

    def build(self) -> tuple[dict[str, Texts], dict[str, npt.NDArray[np.float64]]]:
        """The columns that any of the files has."""
        has = self.columns
        texts = {name: builder.build() for name, builder in self._texts.items() if name in has}
        texts["error"] = texts["error"].without(_NO_ERROR)
        return texts, {name: builder.build() for name, builder in self._numbers.items() if name in has}

    def _see(self, source: Source) -> None:
        if missing := [name for name in NEEDED if name not in source.columns]:
            has = ", ".join(source.columns) or "nothing"
            raise RowsError(f"no column {missing[0]!r}; it has: {has}; expected rows of score or run")
        mine, its = self.job, source.job
        if mine and its and (mine.sha256, mine.options_sha256) != (its.sha256, its.options_sha256):
            raise RowsError("of another model or of other options than the files before it; read them apart")
        self.job = mine or its

    def _add(self, count: int, columns: Mapping[str, Any]) -> None:
        for name, texts in self._texts.items():
            if name not in columns:
                texts.add_nulls(count)
            elif isinstance(columns[name], Texts):
                texts.add_encoded(columns[name].codes, columns[name].values)
            else:
                texts.add(columns[name])
        for name, numbers in self._numbers.items():
            if name in columns:
                numbers.add(columns[name], name)
            else:
                numbers.add_nulls(count)


def _folders(source: Texts) -> Texts:
    """Each source's folder: what stands before the last slash; "." where there is none."""
    builder = TextsBuilder()
    builder.add(value.replace("\\", "/").rpartition("/")[0] or "." for value in source.values)
    folders = builder.build()
    return Texts(np.append(folders.codes, np.int32(-1))[source.codes], folders.values)


def _check_scale(rows: Rows) -> None:
    low, high = rows.job.scale
    wrong = np.flatnonzero((rows.score < low) | (rows.score > high))  # NaN is neither
    if len(wrong):
        found = f"row {wrong[0] + 1} has the score {rows.score[wrong[0]]:g}"
        raise RowsError(f"{rows.name}: {found}; expected {low:g} to {high:g}")
