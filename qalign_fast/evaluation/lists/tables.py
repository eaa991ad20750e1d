"""Rows with a header in, a parsed list out: CSV and spreadsheets of archives, pyiqa's meta_info, and plain tables."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qalign_fast.errors import ListError, one_line
from qalign_fast.evaluation.lists.checks import labelled, listed, unit_of
from qalign_fast.evaluation.lists.entries import Labelled, Parsed
from qalign_fast.evaluation.lists.layouts import LABELS, LAYOUTS, NAMES, UNITS, Layout, key_of
from qalign_fast.evaluation.lists.splits import choose_rows
from qalign_fast.records import long_fields

_DELIMITERS = (",", ";", "\t")


@dataclass(frozen=True)
class Table:
    """header: as the file has it. rows: each with its number in the file, and as many cells as the header."""

    header: tuple[str, ...]
    rows: tuple[tuple[int, tuple[Any, ...]], ...]

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(map(key_of, self.header))

    def place(self, key: str) -> int:
        """The column of this name. Raises ListError where there are two."""
        if self.keys.count(key) > 1:
            raise ListError(f"it has {self.keys.count(key)} columns {key!r}; rename all but one of them")
        return self.keys.index(key)


def read_csv(text: str) -> Table:
    """Raises ListError for lines whose number of fields is not the header's."""
    delimiter = delimiter_of(text.lstrip().partition("\n")[0])
    rows = []
    with long_fields():
        reader = csv.reader(text.splitlines(keepends=True), delimiter=delimiter)
        try:
            rows = [(reader.line_num, tuple(row)) for row in reader if any(map(str.strip, row))]
        except csv.Error as error:
            raise ListError(f"line {reader.line_num}: no CSV ({one_line(error)})") from error
    return make_table(rows)


def delimiter_of(first: str) -> str:
    """What parts the fields of a table with this first line; a comma where it has one field."""
    return max(_DELIMITERS, key=first.count)


def make_table(rows: Sequence[tuple[int, tuple[Any, ...]]]) -> Table:
    """The first row is the header. Cells beyond it must be empty."""
    header = tuple(str(cell or "").strip() for cell in rows[0][1]) if rows else ()
    while header and not header[-1]:
        header = header[:-1]
    for number, row in rows[1:]:
        if len(row) < len(header) or any(cell not in (None, "") for cell in row[len(header) :]):
            raise ListError(f"line {number} has {len(row)} fields; expected {len(header)}, as in the header")
    return Table(header, tuple((number, row[: len(header)]) for number, row in rows[1:]))


def parse_table(table: Table, column: str | None, split: str | None) -> Parsed:
    """`column`: the label's. `split`: which rows. Raises ListError where the columns do not tell which to read."""
    told = (layout for layout in LAYOUTS if set(layout.told_by) <= set(table.keys))
    layout = next(told, None) or _plain(table, column)
    if layout.refused:
        raise ListError(layout.refused)
    label = layout.label if column is None else _key_in(table, column)
    rows, chosen, notes = choose_rows(table.header, table.rows, layout.split, split)
    entries = tuple(_entry(table, layout, label, number, row) for number, row in rows)
    if column is None and label not in ("mos", "dmos", "gt_score", "label", "score"):
        notes = (*notes, f"labels are of the column {table.header[table.place(label)]!r}")
    return Parsed(
        form=layout.form,
        entries=entries,
        lower_better=layout.lower_better if label == layout.label else None,
        task=layout.task if label == layout.label else None,
        usual=label == layout.label and chosen,
        notes=notes,
        label=label,
    )


def _entry(table: Table, layout: Layout, label: str, number: int, row: tuple[Any, ...]) -> Labelled:
    name = row[table.place(layout.name)]
    if layout.suffix and name not in (None, ""):
        name = str(name).strip().removesuffix(".0")  # of numbers that went through a spreadsheet
        name += "" if name.endswith(layout.suffix) else layout.suffix
    entry = labelled(name, row[table.place(label)], f"line {number}")
    if layout.unit is None or unit_of(entry.name) != entry.name or not (unit := row[table.place(layout.unit)]):
        return entry
    return Labelled(entry.name, entry.label, str(unit).strip())


def _key_in(table: Table, column: str) -> str:
    if key_of(column) not in table.keys:
        raise ListError(f"it has no column {column!r}; it has: {listed(table.header)}")
    return key_of(column)


def _plain(table: Table, column: str | None) -> Layout:
    """A table of nobody's layout, or of pyiqa's: its columns are found by usual names."""
    is_pyiqa = table.keys[:1] == ("img_name",) or table.keys[1:2] == ("dist_name",)
    label = _one(table, LABELS, "label", "choose one with column") if column is None else _key_in(table, column)
    return Layout(
        form="pyiqa" if is_pyiqa else "table",
        told_by=(),
        name=_one(table, NAMES, "name", "rename all but one of them"),
        label=label,
        unit=next((key for key in UNITS if table.keys.count(key) == 1), None),
    )


def _one(table: Table, usual: Sequence[str], what: str, hint: str) -> str:
    found = [key for key in table.keys if key in usual]
    if len(found) == 1:
        return found[0]
    has = f"it has: {listed(table.header)}"
    if not found:
        raise ListError(f"no column is called as {what}s usually are ({', '.join(usual)}); {has}")
    names = [name for name, key in zip(table.header, table.keys, strict=True) if key in found]
    raise ListError(f"{len(found)} columns could be the {what}: {listed(names)}; {hint}; {has}")
