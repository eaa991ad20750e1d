"""A CSV file of names and mean opinion scores in, the labels of one data set out."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO

from qalign_fast.errors import ListError, one_line
from qalign_fast.evaluation.lists.checks import LARGEST
from qalign_fast.evaluation.lists.tables import delimiter_of
from qalign_fast.records import long_fields

LABEL = "mos"  # the column of labels where none is named, in small letters or capitals
_UTF16 = ("\udcff\udcfe", "\udcfe\udcff")  # its marks, as bytes that are no UTF-8


@dataclass(frozen=True)
class Labels:
    """The labels of one data set, in the file's order; N of them.

    source: the file. column: the name of the labels' column. names: of the pictures or clips, each once.
    values: the labels, on the data set's own scale. lines: where each stands in the file, for errors.
    """

    source: str
    column: str
    names: tuple[str, ...]
    values: tuple[float, ...]
    lines: tuple[int, ...]

    @property
    def may_fall(self) -> bool:
        """Whether the column's name leaves open in which direction quality rises: most DMOS fall, KADID's rise."""
        return "dmos" in self.column.lower()


def read_labels(path: Path, name: str | None = None, label: str | None = None) -> Labels:
    """The labels of a CSV file whose first line names the columns; commas, semicolons or tabs part its fields.

    `name` is the column of names, by default the first; `label` that of labels, by default `mos`. Raises ListError,
    which names the line, for a label that is no number, a name that is missing or there twice, and a file without
    labels.
    """
    try:
        # names that are not UTF-8 come back as they went in
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines, long_fields():
            return _read(str(path), lines, name, label)
    except OSError as error:
        raise ListError(f"{path}: {error.strerror or one_line(error)}") from error
    except csv.Error as error:
        raise ListError(f"{path}: damaged CSV ({error})") from error


def _read(source: str, lines: IO[str], name: str | None, label: str | None) -> Labels:
    first = lines.readline()
    if first.startswith(_UTF16):
        raise ListError(f"{source}: its text is UTF-16; save it as UTF-8")
    rows = _rows(chain([first], lines), delimiter_of(first))
    header = [column.strip() for column in next(rows, (0, []))[1]]
    if not header:
        raise ListError(f"{source}: it is empty; expected a line that names the columns, and labels below it")
    at_name = 0 if name is None else _find(source, header, name)
    at_label = _find_label(source, header) if label is None else _find(source, header, label)
    names: dict[str, int] = {}
    values = []
    for line, row in rows:
        where = f"{source}: line {line}"
        if len(row) != len(header):
            raise ListError(f"{where}: {len(row)} fields; expected {len(header)}, as the first line has")
        _add_name(names, row[at_name].strip(), line, where)
        values.append(_number(row[at_label], where))
    if not names:
        raise ListError(f"{source}: it has no labels below its first line")
    return Labels(source, header[at_label], tuple(names), tuple(values), tuple(names.values()))


def _rows(lines: Iterable[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Each row with the line that it ends in; blank lines are none."""
    reader = csv.reader(lines, delimiter=delimiter)
    for row in reader:
        if row:
            yield reader.line_num, row


def _find_label(source: str, header: Sequence[str]) -> int:
    found = [column for column in header if column.lower() == LABEL]
    if len(found) != 1:
        has = ", ".join(header)
        raise ListError(f"{source}: no column {LABEL!r} alone; it has: {has}; --label says which holds the labels")
    return header.index(found[0])


def _find(source: str, header: Sequence[str], column: str) -> int:
    if header.count(column) != 1:
        found = "two columns" if column in header else "no column"
        raise ListError(f"{source}: {found} {column!r}; it has: {', '.join(header)}")
    return header.index(column)


def _add_name(names: dict[str, int], name: str, line: int, where: str) -> None:
    if not name:
        raise ListError(f"{where}: no name; expected that of a picture or a clip")
    if name in names:
        raise ListError(f"{where}: {name!r} has a label in line {names[name]} already; expected each name once")
    names[name] = line


def _number(text: str, where: str) -> float:
    try:
        value = float("nan" if "_" in text else text)
    except ValueError:
        value = float("nan")
    if not abs(value) <= LARGEST:  # nor where it is NaN
        raise ListError(f"{where}: the label {text!r} is no number that can be used")
    return value
