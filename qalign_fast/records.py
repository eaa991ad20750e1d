"""Scores and errors in, rows of output out: the same fields as JSON lines, CSV or a table."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any, Protocol, TypeAlias

from qalign_fast.feed.items import Scored
from qalign_fast.levels import FIVE_LEVELS, Scale, Score

Row: TypeAlias = dict[str, Any]

# what a job adds: the names of all fields of its rows, and where it says which model and options they are of
JOB_FIELDS = frozenset(
    "source __key__ task score score01 probabilities level frames sha256 status error warnings milliseconds".split()
)
JOB_METADATA = b"qalign.job"  # the key in a Parquet file's schema
JOB_FOLDER = "_job"  # beside the files of rows; readers of data sets leave out what begins with _


@contextmanager
def long_fields() -> Iterator[None]:
    """CSV's fields may be long where they are read: its limit of 131,072 characters is the whole process's."""
    before = csv.field_size_limit(1 << 30)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def make_row(source: str, task: str, result: Score | Exception) -> Row:
    """One row: a source in one task; with an error, score, level and probabilities are None. Only clips have frames."""
    if isinstance(result, Exception):
        message = " ".join(str(result).split())
        return {"source": source, "task": task, "score": None, "level": None, "probabilities": None, "error": message}
    row: Row = {
        "source": source,
        "task": task,
        "score": round(result.value, 4),
        "level": result.level,
        "probabilities": {level: round(p, 6) for level, p in result.probabilities.items()},
        "error": None,
    }
    if result.frames is not None:
        row["frames"] = result.frames
    if result.warnings:
        row["warnings"] = list(result.warnings)
    return row


def make_rows(scored: Iterable[Scored[str]], tasks: Sequence[str]) -> Iterator[Row]:
    """A row for each item and task, in order; an item's key is its source."""
    for each in scored:
        for task in tasks:
            yield make_row(each.key, task, each.error or each.get()[task])


def write_rows(rows: Iterable[Row], writer: Writer, seen: Callable[[Row], None]) -> tuple[int, int]:
    """Writes rows as they come. `seen` hears of each one that was written.

    Returns how many rows there were, and how many of them hold an error. Raises what making a row raises.
    """
    done = failed = 0
    for row in rows:
        writer.write(row)
        done += 1
        failed += row["error"] is not None
        seen(row)
    return done, failed


def printable(text: str) -> str:
    """The text with escapes for what a terminal obeys, or what no encoding has: control characters, broken UTF-8."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text)


def in_utf8(text: str) -> str:
    """The text with escapes for bytes of a file's name that are no UTF-8, as files of rows hold it."""
    return text.encode("utf-8", "backslashreplace").decode()


class Writer(Protocol):
    """Takes rows one by one; `close` writes what is left and leaves the stream open."""

    def write(self, row: Row) -> None: ...

    def close(self) -> None: ...


def make_writer(kind: str, out: IO[str], scale: Scale = FIVE_LEVELS, *, percentile: bool = False) -> Writer:
    """A writer of "table", "jsonl" or "csv", for scores on a scale, and for percentiles where rows have them.

    JSON lines and CSV appear row by row; a table when it is closed.
    """
    if kind == "csv":
        return Csv(out, scale, percentile=percentile)
    return JsonLines(out) if kind == "jsonl" else Table(out, scale, percentile=percentile)


class JsonLines:
    """A name that is not UTF-8 comes back by `os.fsencode` of the string."""

    def __init__(self, out: IO[str]) -> None:
        self._out = out

    def write(self, row: Row) -> None:
        self._out.write(json.dumps(row) + "\n")  # ASCII: whatever a name holds, and whatever the locale is
        self._out.flush()

    def close(self) -> None:
        pass


class Csv:
    """Each level's probability is a column of its name. Warnings are one text."""

    def __init__(self, out: IO[str], scale: Scale = FIVE_LEVELS, *, percentile: bool = False) -> None:
        self._out = out
        fields = ("source", "task", "score", "level", *scale.words, "frames", "error", "warnings")
        fields += ("percentile",) * percentile
        self._writer = csv.DictWriter(out, fields, extrasaction="ignore", lineterminator="\n")
        self._writer.writeheader()

    def write(self, row: Row) -> None:
        self._writer.writerow(row | (row["probabilities"] or {}) | {"warnings": "; ".join(row.get("warnings", ()))})
        self._out.flush()

    def close(self) -> None:
        pass


class Table:
    """For people: as wide as it must be where no terminal sets a width."""

    def __init__(self, out: IO[str], scale: Scale = FIVE_LEVELS, *, percentile: bool = False) -> None:
        self._out, self._scale, self._percentile = out, scale, percentile
        self._rows: list[Row] = []

    def write(self, row: Row) -> None:
        self._rows.append(row)

    def close(self) -> None:
        from rich import box
        from rich.console import Console
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("source", overflow="fold")
        table.add_column("task")
        table.add_column(f"score {self._scale.low:g}..{self._scale.high:g}", justify="right")
        table.add_column("level", overflow="fold")
        if self._percentile:
            table.add_column("percentile", justify="right")
        for row in self._rows:
            frames = f" ({row['frames']} frame{'' if row['frames'] == 1 else 's'})" if "frames" in row else ""
            if row["error"] is None:
                shown = (f"{row['score']:.3f}", Text(row["level"]))
            else:
                shown = ("-", Text(printable(row["error"]), style="red"))
            last = [_percentile(row)] if self._percentile else []
            table.add_row(Text(printable(row["source"]) + frames), row["task"], *shown, *last)
        console = Console(file=self._out, width=None if self._out.isatty() else 200, highlight=False)
        console.print(table)
        for row in self._rows:
            for warning in row.get("warnings", ()):
                console.print(Text(printable(f"{row['source']}: {warning}")))


def _percentile(row: Row) -> str:
    return "-" if row["percentile"] is None else f"{row['percentile']:.2f}"
