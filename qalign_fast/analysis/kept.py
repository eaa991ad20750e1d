"""Rows and which of them are kept in; their list out, as names, JSON lines or CSV."""

from __future__ import annotations

import csv
import json
from enum import StrEnum
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from qalign_fast.analysis.rows import KEY, Rows
from qalign_fast.errors import OptionError, RowsError

if TYPE_CHECKING:
    import numpy.typing as npt


class KeptKind(StrEnum):
    """How a list is written: names alone, or with the key of archives, the task and the score."""

    txt = "txt"
    jsonl = "jsonl"
    csv = "csv"


def kind_of(path: Path) -> KeptKind:
    """By the suffix. Raises OptionError for another one."""
    try:
        return KeptKind(path.suffix.lower().removeprefix("."))
    except ValueError as error:
        raise OptionError(f"{path}: expected a list's name to end in .txt, .jsonl or .csv") from error


def write_kept(rows: Rows, kept: npt.NDArray[np.bool_], kind: KeptKind, out: IO[str], *, null: bool = False) -> None:
    """Writes the kept rows in the order of the rows file.

    Names alone stand on a line each or, with `null`, before a null byte. Raises RowsError for a name with a line's end
    in it that would stand on two lines, and for a row without a name; nothing is written then.
    """
    places = np.flatnonzero(kept)
    if kind == KeptKind.txt:
        _write_names(rows, places, out, "\0" if null else "\n")
        return
    names = ["source", *([KEY] if KEY in rows.texts else []), "task", "score"]
    texts = [rows.texts[name].take(places) for name in names[:-1]]
    table = zip(*texts, rows.score[places].tolist(), strict=True)
    if kind == KeptKind.csv:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerows([names, *table])
    else:
        out.writelines(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in table)


def _write_names(rows: Rows, places: npt.NDArray[Any], out: IO[str], end: str) -> None:
    names = [name or "" for name in rows.texts["source"].take(places)]
    if "" in names:
        raise RowsError(f"{rows.name}: a kept row has no source; .jsonl and .csv hold it")
    if end == "\n" and (broken := next((name for name in names if "\n" in name or "\r" in name), None)):
        raise RowsError(f"the name {broken!r} would stand on two lines; --null or .jsonl lets it be")
    out.writelines(name + end for name in names)
