"""Where rows go: the format that a name asks for, and a stream that takes every name."""

from __future__ import annotations

import codecs
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import IO, TYPE_CHECKING

from qalign_fast.errors import QAlignError
from qalign_fast.jobs.safe_files import write_whole

if TYPE_CHECKING:
    from collections.abc import Sequence

_NAMES = "qalign-names"  # how characters are written that UTF-8 does not have


class Format(StrEnum):
    """How rows are written."""

    table = "table"
    jsonl = "jsonl"
    csv = "csv"


_SUFFIXES = {".csv": Format.csv, ".txt": Format.table}


def choose_format(wanted: Format | None, output: Path | None) -> Format:
    """What is wanted; else what the file's suffix says; else a table on a terminal and JSON lines elsewhere."""
    if wanted:
        return wanted
    if output is None:
        return Format.table if sys.stdout.isatty() else Format.jsonl
    return _SUFFIXES.get(output.suffix.lower(), Format.jsonl)


def choose_mode(output: Path | None, kind: Format, *, overwrite: bool, append: bool) -> str:
    """The mode to open it in: "x" where it must not be there already.

    Raises QAlignError for a file that is there, unless it may be replaced or JSON lines may be added to it.
    """
    if append and (output is None or kind != Format.jsonl):
        raise QAlignError("--append adds JSON lines to a file; give --output and the format jsonl")
    if append or overwrite:
        return "a" if append else "w"
    if output is not None and output.is_file():
        hint = "--overwrite replaces it" + (", --append adds to it" if kind == Format.jsonl else "")
        raise QAlignError(f"{output}: is there already; {hint}")
    return "w" if output is not None and output.exists() else "x"  # a device or a pipe is there


def check_apart(output: Path | None, inputs: Sequence[Path]) -> None:
    """Raises QAlignError where the output is one of the files that are read."""
    if output is not None and any(output.exists() and file.exists() and output.samefile(file) for file in inputs):
        raise QAlignError(f"{output}: the rows are read from there; give another --output")


def write_output(output: Path, text: str) -> None:
    """Writes all of a text, in place of a file that is there, or nothing. Raises QAlignError."""
    if output.exists() and not output.is_file():  # a device or a pipe
        with open_output(output, Format.jsonl, "w") as out:
            out.write(text)
        return
    try:
        write_whole(output.resolve(), lambda aside: _write_text(aside, text))
    except OSError as error:
        raise QAlignError(f"{output}: {error.strerror or error}") from error


@contextmanager
def open_output(output: Path | None, kind: Format, mode: str) -> Iterator[IO[str]]:
    """The file, or stdout for None: UTF-8 in which bytes of names that are not UTF-8 come out as they went in.

    A table on stdout has the terminal's encoding. Raises QAlignError where the file cannot be written.
    """
    if output is None:
        if isinstance(sys.stdout, io.TextIOWrapper) and kind != Format.table:
            sys.stdout.reconfigure(encoding="utf-8", errors=_NAMES)
        elif isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        yield sys.stdout
        return
    try:
        with output.open(mode, encoding="utf-8", errors=_NAMES, newline="") as out:
            yield out
    except OSError as error:
        if error.filename not in (None, str(output)):  # another file's
            raise
        raise QAlignError(f"{output}: {error.strerror or error}") from error


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, "utf-8", _NAMES, newline="")


def _encode_name(error: UnicodeError) -> tuple[str | bytes, int]:
    """A byte of a name that is not UTF-8 comes out as it was; half of a character, as no name has it, escaped."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


codecs.register_error(_NAMES, _encode_name)
