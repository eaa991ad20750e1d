"""A table in, entries out: CSV, TSV, JSON lines, Parquet or Arrow, with a column of paths, URLs or bytes."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import IO, TYPE_CHECKING, Any

from qalign_fast.errors import OptionError, one_line
from qalign_fast.jobs.entries import Entry
from qalign_fast.jobs.inputs.columns import Arrow, Parquet, open_columns
from qalign_fast.jobs.inputs.lists import entry_of_name
from qalign_fast.jobs.inputs.stores import is_url, open_input, suffix_of
from qalign_fast.records import long_fields
from qalign_fast.sources import is_video

if TYPE_CHECKING:
    from qalign_fast.jobs.inputs.taking import InputOptions

_LINES = frozenset([".jsonl", ".ndjson"])
SUFFIXES = _LINES.union([".csv", ".tsv", ".parquet", ".arrow"])
# the names that are tried where none is given
_COLUMNS = "image bytes jpg png path file filename file_name filepath image_path url image_url uri".split()
_ROWS = 4096  # of a table that are looked at at a time


def entries_of_table(name: str, options: InputOptions, protocols: tuple[str, ...]) -> Iterator[Entry]:
    """An entry for each row, in order. Raises OptionError for a table or a column that cannot be read."""
    try:
        if suffix_of(name) in (".parquet", ".arrow"):
            yield from _columnar(name, options, protocols)
        else:
            yield from _textual(name, options, protocols)
    except OptionError:
        raise
    except OSError as error:
        raise OptionError(f"{name}: {error.strerror or one_line(error)}") from error
    except (ValueError, csv.Error) as error:
        raise OptionError(f"{name}: cannot be read as a table ({one_line(error)})") from error


def column_of(name: str, options: InputOptions, has: Sequence[str]) -> str:
    """The column to score. Raises OptionError, which lists what there is."""
    for column in (options.column, *options.keep):
        if column is not None and has.count(column) != 1:
            problem = "no column" if column not in has else "more than one column"
            raise OptionError(f"{name}: {problem} {column!r}; it has: {', '.join(has)}")
    found = options.column or next((column for column in _COLUMNS if column in has), None)
    if found is not None and has.count(found) != 1:
        raise OptionError(f"{name}: more than one column {found!r}; it has: {', '.join(has)}")
    if found is None:
        raise OptionError(f"{name}: which column has the pictures? --column says so; it has: {', '.join(has)}")
    return found


def _textual(name: str, options: InputOptions, protocols: tuple[str, ...]) -> Iterator[Entry]:
    root, lines = _root(name, options), suffix_of(name) in _LINES
    with open_input(name, protocols) as file:
        column = None
        for number, row in enumerate(_rows(name, file)):
            if column is None:
                has = [key for key in row if key is not None]  # None: of more cells than the head has
                column = column_of(name, replace(options, keep=()) if lines else options, has)
            value = row.get(column)
            kept = {key: row.get(key) for key in options.keep}
            if isinstance(value, str) and value:
                entry = entry_of_name(value, value, root, protocols)
                entry.keep = kept
            else:
                entry = Entry(f"{name}#{number}", os.fsencode(name), keep=kept, problem=_no_name(name, number, column))
            yield entry


def _root(name: str, options: InputOptions) -> str:
    """Where relative paths of a table start: its folder, which may be a URL."""
    return options.root or (name.rpartition("/")[0] if is_url(name) else os.path.dirname(name))  # noqa: PTH120


def _rows(name: str, file: IO[bytes]) -> Iterator[Mapping[str, Any]]:
    lines = (line.decode("utf-8-sig" if first == 0 else "utf-8") for first, line in enumerate(file))
    suffix = suffix_of(name)
    if suffix in (".csv", ".tsv"):
        with long_fields():
            reader = csv.DictReader(lines, delimiter="\t" if suffix == ".tsv" else ",", strict=True)
            yield from _told(reader, name)
        return
    for number, line in enumerate(lines):
        if line.strip():
            try:
                row = json.loads(line)
            except RecursionError as error:
                raise OptionError(f"{name}: line {number + 1} is nested too deeply") from error
            if not isinstance(row, dict):
                raise OptionError(f"{name}: line {number + 1} is no JSON object")
            yield row


def _told(reader: csv.DictReader[str], name: str) -> Iterator[Mapping[str, Any]]:
    """The rows. A quote that is not closed would take the rows below it along: raises OptionError instead."""
    try:
        yield from reader
    except csv.Error as error:
        where = f"in the row below line {reader.line_num}"
        raise OptionError(f"{name}: {one_line(error)}, {where}; is a quote not closed, or not doubled?") from error


def _columnar(name: str, options: InputOptions, protocols: tuple[str, ...]) -> Iterator[Entry]:
    import pyarrow as pa

    with open_columns(name, protocols) as table:
        column = column_of(name, options, table.schema.names)
        kind = table.schema.field(column).type
        for kept in options.keep:
            _check_kept(name, kept, table.schema.field(kept).type)
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            yield from _of_paths(name, table, column, options, protocols)
        elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            yield from _of_bytes(name, table, None, options)
        elif pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            yield from _of_bytes(name, table, column if kind.get_field_index("path") >= 0 else None, options)
        else:
            raise OptionError(
                f"{name}: column {column!r} is of {kind}; expected paths, URLs, bytes, or bytes and a path"
            )


def _of_paths(
    name: str, table: Parquet | Arrow, column: str, options: InputOptions, protocols: tuple[str, ...]
) -> Iterator[Entry]:
    root = _root(name, options)
    number = 0
    for batch in table.batches([column, *options.keep], _ROWS):
        kept = _kept(batch, options.keep)
        for value, keep in zip(batch.column(column).to_pylist(), kept, strict=True):
            if value:
                entry = entry_of_name(value, value, root, protocols)
            else:
                entry = Entry(f"{name}#{number}", os.fsencode(name), problem=_no_name(name, number, column))
            entry.keep = keep
            yield entry
            number += 1


def _of_bytes(name: str, table: Parquet | Arrow, named: str | None, options: InputOptions) -> Iterator[Entry]:
    """Rows whose bytes lie in the table: their places alone are planned. `named`: the column, if it has paths too."""
    place, number = name.encode("utf-8", "surrogateescape"), 0
    changed = -1 if is_url(name) else os.stat(name).st_mtime_ns  # noqa: PTH116
    for batch in table.batches(options.keep, _ROWS, paths_of=named):
        paths = batch.column(named).to_pylist() if named else [None] * batch.num_rows
        for path, keep in zip(paths, _kept(batch, options.keep), strict=True):
            medium: Any = "video" if path and is_video(path) else "image"
            yield Entry(path or f"{name}#{number}", place, "row", number, -1, changed, medium, None, keep)
            number += 1


def _kept(batch: Any, keep: tuple[str, ...]) -> list[dict[str, Any]]:
    """The kept columns' values of each row."""
    columns = [batch.column(name).to_pylist() for name in keep]
    return (
        [dict(zip(keep, values, strict=True)) for values in zip(*columns, strict=True)] if keep else [{}] * len(batch)
    )


def _check_kept(name: str, column: str, kind: Any) -> None:
    import pyarrow as pa

    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_struct(kind):
        raise OptionError(f"{name}: column {column!r} is of {kind}, which rows do not keep")


def _no_name(name: str, number: int, column: str) -> str:
    return f"{name}: row {number} has no name in column {column!r}"
