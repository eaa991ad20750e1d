"""An .xlsx file in, a parsed list out: SPAQ's scores, csiq.DMOS.xlsx, and tables on the first sheet."""

from __future__ import annotations

import zlib
from io import BytesIO
from typing import Any, TypeAlias
from zipfile import BadZipFile

from qalign_fast.errors import ListError, one_line
from qalign_fast.evaluation.lists.checks import labelled
from qalign_fast.evaluation.lists.csiq import picture_of
from qalign_fast.evaluation.lists.entries import Parsed
from qalign_fast.evaluation.lists.optional import load_optional
from qalign_fast.evaluation.lists.tables import make_table, parse_table

Rows: TypeAlias = list[tuple[int, tuple[Any, ...]]]

# what openpyxl and zipfile raise: SyntaxError for broken XML, RuntimeError for a password
_DAMAGED = (BadZipFile, KeyError, ValueError, TypeError, SyntaxError, OSError, EOFError, RuntimeError, zlib.error)
_CSIQ_SHEET = "all_by_image"
_CSIQ_COLUMNS = ("image", "dst_type", "dst_lev", "dmos")


def parse_xlsx(data: bytes, column: str | None, split: str | None) -> Parsed:
    """Raises ListError, and MissingExtraError without openpyxl."""
    sheets = _read(data)
    if _CSIQ_SHEET in sheets:
        if column is not None or split is not None:
            raise ListError("csiq.DMOS.xlsx has one label and no splits; leave column and split out")
        return _csiq(sheets[_CSIQ_SHEET])
    return parse_table(make_table(next(iter(sheets.values()), [])), column, split)


def _read(data: bytes) -> dict[str, Rows]:
    """The sheets' rows that are not empty, with their numbers."""
    openpyxl = load_optional("openpyxl", "spreadsheets need")
    try:
        book = openpyxl.load_workbook(BytesIO(data), read_only=True, data_only=True)
        sheets = {}
        for sheet in book.worksheets:
            rows = enumerate(sheet.iter_rows(values_only=True), 1)
            sheets[sheet.title] = [(number, row) for number, row in rows if any(cell is not None for cell in row)]
    except _DAMAGED as error:
        raise ListError(f"no spreadsheet that can be read ({one_line(error)}); expected .xlsx") from error
    return sheets


def _csiq(rows: Rows) -> Parsed:
    """The sheet has titles above its header, and empty rows below its last entry."""
    top = next((i for i, (_, row) in enumerate(rows) if set(_CSIQ_COLUMNS) <= set(row)), None)
    if top is None:
        raise ListError(f"the sheet {_CSIQ_SHEET} has no row with {', '.join(_CSIQ_COLUMNS)}")
    places = [rows[top][1].index(name) for name in _CSIQ_COLUMNS]
    entries = []
    for number, row in rows[top + 1 :]:
        picture, kind, level, dmos = (row[place] if place < len(row) else None for place in places)
        if picture is not None:
            entries.append(labelled(picture_of(picture, kind, level, f"line {number}"), dmos, f"line {number}"))
    return Parsed("csiq", tuple(entries), None, "quality", label="dmos")
