"""Rows that a command was given, read; what the user should know of them is said on stderr."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qalign_fast.cli.console import remark

if TYPE_CHECKING:
    from qalign_fast.analysis.rows import Rows


def read_told(path: Path, wanted: Sequence[str] = ()) -> Rows:
    """As `read_rows`; a job that has not ended is remarked on. Raises RowsError."""
    from qalign_fast.analysis.rows import read_rows

    rows = read_rows(path, wanted)
    if rows.unfinished:
        remark(f"{path}: {rows.unfinished}; the other rows are not there yet")
    return rows
