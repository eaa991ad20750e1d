"""One file of rows in, batches of columns out. What the file is, its first bytes say."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from qalign_fast.analysis.columns import Texts, is_null, shown
from qalign_fast.analysis.job import Job, parse_job
from qalign_fast.errors import MissingExtraError, RowsError, one_line
from qalign_fast.levels import LEVELS
from qalign_fast.records import JOB_METADATA, long_fields

_BATCH = 1 << 16  # rows of Parquet
_LINES = 1 << 12  # rows of text: small, so that few Python objects live at a time
_FIVE = ", ".join(LEVELS)
_MARKS = {";": "semicolons", "\t": "tabs", "|": "bars"}  # of tables that are no CSV of ours


@dataclass(frozen=True)
class Batch:
    """Rows of a file: each column a Texts, an array or a list in which None is null."""

    count: int
    columns: Mapping[str, Any]


class Source(Protocol):
    """An open file of rows. `job` is None where the file does not hold it."""

    @property
    def columns(self) -> Sequence[str]: ...

    @property
    def job(self) -> Job | None: ...

    def batches(self, names: Sequence[str]) -> Iterator[Batch]:
        """Those of these columns that the file has. Raises RowsError for what cannot be read."""
        ...


@contextmanager
def open_rows(path: Path) -> Iterator[Source]:
    """Parquet, JSON lines or CSV. Raises RowsError for a file that is none, MissingExtraError without pyarrow."""
    try:
        with path.open("rb") as file:
            begin = file.read(4096)
        if begin.startswith(b"PAR1"):
            yield _Parquet(path)
        # names that are not UTF-8 come back as they went in
        elif (text := begin.removeprefix(b"\xef\xbb\xbf").lstrip()).startswith(b"{") or not text:
            with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as lines:
                yield _Lines(lines)
        elif b"source" in text.splitlines()[0]:
            with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines, long_fields():
                yield _Csv(lines)
        else:
            raise RowsError("no rows of scores; expected Parquet, JSON lines or CSV of score or run")
    except OSError as error:
        raise RowsError(error.strerror or one_line(error)) from error


def _check_names(names: Sequence[str]) -> None:
    if twice := next((name for name, count in Counter(names).items() if name and count > 1), None):
        raise RowsError(f"it has two columns {twice!r}; rename or remove one of them")


class _Parquet:
    def __init__(self, path: Path) -> None:
        try:
            self._arrow: Any = import_module("pyarrow")
            parquet: Any = import_module("pyarrow.parquet")
        except ModuleNotFoundError as missing:
            raise MissingExtraError("reading Parquet needs pyarrow: pip install 'qalign-fast[jobs]'") from missing
        try:
            self._file = parquet.ParquetFile(path)
        except self._arrow.ArrowInvalid as error:
            hint = "a job that was stopped while it wrote leaves such a file; expected whole Parquet"
            raise RowsError(f"damaged Parquet ({one_line(error)}); {hint}") from error
        self._schema = self._file.schema_arrow
        self.columns: Sequence[str] = self._schema.names
        _check_names(self.columns)
        text = (self._schema.metadata or {}).get(JOB_METADATA)
        self.job = None if text is None else parse_job(text, "its metadata qalign.job")

    def batches(self, names: Sequence[str]) -> Iterator[Batch]:
        names = [name for name in names if name in self.columns]
        try:
            for batch in self._file.iter_batches(_BATCH, columns=names):
                yield Batch(batch.num_rows, {name: self._column(batch.column(name), name) for name in names})
        except self._arrow.ArrowException as error:
            raise RowsError(f"damaged Parquet ({one_line(error)})") from error

    def _column(self, column: Any, name: str) -> Any:
        types, kind = self._arrow.types, column.type
        if types.is_struct(kind) and name == "probabilities":
            by_name = dict(zip((field.name for field in kind), column.flatten(), strict=True))
            if missing := [level for level in LEVELS if level not in by_name]:
                raise RowsError(f"column {name!r} lacks {', '.join(missing)}; expected {_FIVE}")
            return np.stack([_numbers(by_name[level]) for level in LEVELS], axis=1)
        if name == "probabilities":
            return _probabilities(column.to_pylist())
        if name in ("score", "milliseconds") and (types.is_floating(kind) or types.is_integer(kind)):
            return _numbers(column)
        if types.is_string(kind) or types.is_large_string(kind):
            column = column.dictionary_encode()
        elif not types.is_dictionary(kind) or not types.is_string(kind.value_type):
            return column.to_pylist()
        return Texts(_codes(column.indices), tuple(map(_text, column.dictionary.cast("large_binary").to_pylist())))


def _numbers(column: Any) -> Any:
    return column.cast("float64").to_numpy(zero_copy_only=False)  # null becomes NaN


def _codes(indices: Any) -> Any:
    return indices.cast("int32").fill_null(-1).to_numpy(zero_copy_only=False)


def _text(value: bytes) -> str:
    """Some writers let bytes pass that are no UTF-8."""
    return value.decode("utf-8", "surrogateescape")


class _Lines:
    """JSON lines. The columns are those of the rows that were read so far: later ones may have more."""

    def __init__(self, lines: IO[str]) -> None:
        self._keys: dict[str, None] = {}  # an ordered set
        self._rows = self._parse(lines)
        self._first = list(islice(self._rows, _LINES))
        self.job: Job | None = None

    @property
    def columns(self) -> Sequence[str]:
        return list(self._keys) or list(_EMPTY)

    def batches(self, names: Sequence[str]) -> Iterator[Batch]:
        rows = self._first
        while rows:
            has = [name for name in names if name in self._keys]
            columns: dict[str, Any] = {name: [row.get(name) for row in rows] for name in has}
            if "probabilities" in columns:
                columns["probabilities"] = _probabilities(columns["probabilities"])
            yield Batch(len(rows), columns)
            rows = list(islice(self._rows, _LINES))

    def _parse(self, lines: IO[str]) -> Iterator[dict[str, Any]]:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                if not isinstance(row, dict) or not all(name in row for name in _EMPTY):
                    raise ValueError("no object with source, task, score and error")
            except (ValueError, TypeError, RecursionError) as error:
                hint = "a run that was stopped may leave half a line; delete it"
                raise RowsError(f"line {number}: not a row ({one_line(error)}); {hint}") from error
            if not row.keys() <= self._keys.keys():
                self._keys |= dict.fromkeys(row)
            yield row


_EMPTY = ("source", "task", "score", "error")  # what an empty file could hold


class _Csv:
    """CSV with a header. An empty field is null; the levels' columns are the probabilities."""

    def __init__(self, lines: IO[str]) -> None:
        self._reader = csv.reader(lines)
        self._header = next(filter(None, self._reader), [])
        _check_names(self._header)
        if "source" not in self._header and (found := [m for m in _MARKS if m in "".join(self._header)]):
            raise RowsError(f"its columns are separated by {_MARKS[found[0]]}; expected commas")
        with_levels = all(level in self._header for level in LEVELS)
        self.columns: Sequence[str] = [*self._header, *(["probabilities"] if with_levels else [])]
        self.job: Job | None = None

    def batches(self, names: Sequence[str]) -> Iterator[Batch]:
        try:
            while rows := [row for row in islice(self._reader, _LINES) if row]:
                yield self._batch(rows, names)
        except csv.Error as error:
            raise RowsError(f"line {self._reader.line_num}: damaged CSV ({error})") from error

    def _batch(self, rows: list[list[str]], names: Sequence[str]) -> Batch:
        if wrong := next((row for row in rows if len(row) != len(self._header)), None):
            found = f"a row of {len(wrong)} fields before line {self._reader.line_num + 1}"
            raise RowsError(f"{found}; expected {len(self._header)}, as the header has")
        by_name = dict(zip(self._header, zip(*rows, strict=True), strict=True))
        columns: dict[str, Any] = {n: [v or None for v in by_name[n]] for n in names if n in by_name}
        if "probabilities" in columns:
            columns["probabilities"] = _probabilities(columns["probabilities"])
        elif "probabilities" in names and "probabilities" in self.columns:
            fields = zip(*(by_name[level] for level in LEVELS), strict=True)
            columns["probabilities"] = [[v or None for v in row] for row in fields]
        return Batch(len(rows), columns)


def _probabilities(values: Sequence[Any]) -> list[list[float | None]]:
    """Each row's five, the best level first. Raises RowsError for what is neither an object nor null."""
    rows = [{} if is_null(value) else value for value in values]
    if wrong := [row for row in rows if not isinstance(row, dict)]:
        raise RowsError(f"column 'probabilities' holds {shown(wrong[0])}; expected an object of {_FIVE}, or nothing")
    return [[row.get(level) for level in LEVELS] for row in rows]
