"""What was scored in, rows of output out, and back: the schema of a job's files, in Parquet, JSON lines or CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from qalign_fast.jobs.entries import Answers, Entry
from qalign_fast.jobs.options import Format
from qalign_fast.jobs.packages import pa, pq
from qalign_fast.jobs.safe_files import Reached, unwatched
from qalign_fast.levels import Scale, Score
from qalign_fast.records import JOB_METADATA, Row, in_utf8, long_fields, make_row

CHANGED = "the file was changed after the plan was made"
_NONE = dict.fromkeys(("score", "score01", "probabilities", "level", "frames"))  # of an input without a score
_TYPES = {"bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(), "string": pa.string()}


def answer_of(score: Score) -> dict[str, Any]:
    """What rows hold of a score. An equal picture's rows hold the same."""
    row = make_row("", score.task, score)
    found = {name: row.get(name) for name in (*_NONE, "warnings")}
    return found | {"score01": round(score.unit, 6)}


def answers_in(rows: Sequence[Row]) -> Answers:
    """The same, of one input's rows that were written."""
    found = {row["task"]: {name: row[name] for name in _NONE} for row in rows}
    for row in rows:
        found[row["task"]]["warnings"] = [text for text in row["warnings"] or () if text != CHANGED] or None
    return found


@dataclass(frozen=True)
class Layout:
    """The columns of a job's files.

    kept: the kept columns' types, as `Summary.kept`. keyed: whether rows have a WebDataset's `__key__`.
    about: the model, the options and more, which every Parquet file repeats.
    """

    format: Format
    scale: Scale
    tasks: tuple[str, ...]
    kept: Mapping[str, str]
    keyed: bool
    about: Mapping[str, Any]
    timing: bool = True

    @property
    def schema(self) -> pa.Schema:
        """The Parquet schema."""
        levels = pa.struct([(word, pa.float64()) for word in self.scale.words])
        fields = [
            ("source", pa.string()),
            *([("__key__", pa.string())] if self.keyed else []),
            *((name, _TYPES[kind]) for name, kind in self.kept.items()),
            ("task", pa.string()),
            ("score", pa.float64()),
            ("score01", pa.float64()),
            ("probabilities", levels),
            ("level", pa.string()),
            ("frames", pa.int32()),
            ("sha256", pa.string()),
            ("status", pa.string()),
            ("error", pa.string()),
            ("warnings", pa.list_(pa.string())),
            ("milliseconds", pa.float64()),
        ]
        return pa.schema(fields, {JOB_METADATA: json.dumps(self.about, sort_keys=True).encode()})

    def rows(self, entry: Entry) -> Iterator[Row]:
        """A row for each task of an entry that was scored or has an error."""
        reading = entry.reading
        assert reading is not None
        message = None if reading.error is None else " ".join(str(reading.error).split())
        for task in self.tasks:
            answer = {**_NONE, "warnings": None} if entry.answers is None else entry.answers[task]
            row: Row = {"source": entry.source}
            if self.keyed:
                row["__key__"] = entry.key
            row |= {name: _as(kind, entry.keep.get(name)) for name, kind in self.kept.items()}
            row |= {"task": task, **{name: answer[name] for name in _NONE}}
            row |= {"sha256": reading.sha256, "status": reading.status, "error": message}
            row["warnings"] = [*(answer["warnings"] or ()), *[CHANGED] * entry.changed] or None
            row["milliseconds"] = round(1e3 * reading.seconds, 3) if self.timing and reading.seconds else None
            yield row

    def write(self, rows: Sequence[Row], path: Path, reached: Reached = unwatched) -> None:
        """Writes a shard's file. `reached` hears when half of it is written. Raises OSError."""
        if self.format == "parquet":
            table = pa.Table.from_pylist([_in_utf8(row) for row in rows], self.schema)
            data = pa.BufferOutputStream()
            pq.write_table(table, data, compression="zstd")
            view = memoryview(data.getvalue())
            with path.open("wb") as file:
                file.write(view[: len(view) // 2])
                file.flush()
                reached("in the middle")
                file.write(view[len(view) // 2 :])
            return
        with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as out:
            if self.format == "jsonl":
                out.writelines(json.dumps(row) + "\n" for row in rows)
            else:
                self._write_csv(rows, out)

    def read(self, path: Path) -> list[Row]:
        """The rows of a shard's file, as they were written. Raises OSError."""
        if self.format == "parquet":
            return list(pq.read_table(path).to_pylist())
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            if self.format == "jsonl":
                return [json.loads(line) for line in file]
            with long_fields():
                return [self._of_csv(row) for row in csv.DictReader(file)]

    def _columns(self) -> list[str]:
        """CSV's: each level's probability is a column of its name."""
        names: list[str] = self.schema.names
        at = names.index("probabilities")
        return [*names[:at], *self.scale.words, *names[at + 1 :]]

    def _write_csv(self, rows: Sequence[Row], out: Any) -> None:
        how: Any = {"extrasaction": "ignore", "lineterminator": "\n"}
        plain = csv.DictWriter(out, self._columns(), **how)
        quoting = csv.DictWriter(out, self._columns(), quoting=csv.QUOTE_NONNUMERIC, **how)
        plain.writeheader()
        for row in rows:
            flat = row | (row["probabilities"] or {}) | {"warnings": "; ".join(row["warnings"] or ())}
            flat = {name: _encodable(value) for name, value in flat.items()}
            bare = any(isinstance(value, str) and "\r" in value for value in flat.values())  # not quoted otherwise
            (quoting if bare else plain).writerow(flat)

    def _of_csv(self, texts: Mapping[str, str]) -> Row:
        row: Row = {}
        for field in self.schema:
            if field.name == "probabilities":
                has = texts[self.scale.words[0]] != ""
                row[field.name] = {word: float(texts[word]) for word in self.scale.words} if has else None
            elif field.name == "warnings":
                row[field.name] = texts[field.name].split("; ") if texts[field.name] else None
            else:
                row[field.name] = _of_text(field.type, texts[field.name])
        return row


def _as(kind: str, value: Any) -> Any:
    """A kept value in its column's type; None for a number that is not finite, which JSON does not have."""
    if value is None or kind in ("bool", "int"):
        return value
    if kind == "float":
        return float(value) if isfinite(value) else None
    return value if isinstance(value, str) else json.dumps(value)


def _of_text(kind: pa.DataType, text: str) -> Any:
    if text == "" and not pa.types.is_string(kind):
        return None
    if pa.types.is_boolean(kind):
        return text == "True"
    if pa.types.is_integer(kind):
        return int(text)
    return float(text) if pa.types.is_floating(kind) else text or None


def _encodable(value: Any) -> Any:
    """A text as it is, unless it has halves of characters, which no encoding has: then with escapes."""
    if not isinstance(value, str):
        return value
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return in_utf8(value)
    return value


def _in_utf8(row: Row) -> Row:
    """Parquet's texts are UTF-8: a byte of a name that is not becomes an escape such as \\udcff."""
    return {k: in_utf8(v) if isinstance(v, str) else v for k, v in row.items()}
