"""Files that are whole or not there, whatever ends the process or the machine in between."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

TEMPORARY = ".qalign-tmp-"  # begins the name of a file that is being written

Reached = Callable[[str], None]


def unwatched(_: str) -> None:
    """For callers that do not care how far writing got."""


def write_whole(path: Path, write: Callable[[Path], None], reached: Reached = unwatched) -> None:
    """Has a file written aside, flushed to the disk and renamed. `reached` hears of each step, for tests.

    Raises what `write` raises, and OSError; the file aside is removed then.
    """
    aside = path.with_name(f"{TEMPORARY}{path.name}")
    reached("before writing")
    try:
        write(aside)
        reached("before the flush")
        flush(aside)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    reached("after the rename")
    flush(path.parent)


def flush(path: Path) -> None:
    """Has a file's content, or a folder's names, on the disk when it returns. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_temporary(folder: Path) -> None:
    """Removes what processes left that were ended while they wrote."""
    for path in folder.glob(f"{TEMPORARY}*"):
        if path.is_file():
            path.unlink()
