"""The journal: a line for each finished shard, which counts only if the shard's file agrees with it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from qalign_fast import json_values
from qalign_fast.jobs.safe_files import Reached, unwatched

_THREADS = 4  # that hash parts
_TEXTS = ("file", "sha256")  # fields of a line that hold text; the others are whole numbers


@dataclass(frozen=True, slots=True)
class Line:
    """A finished shard: its file, the file's size and SHA-256, and how many inputs had which status."""

    shard: int
    file: str
    bytes: int
    sha256: str
    rows: int
    ok: int
    failed: int
    unavailable: int
    quarantined: int
    changed: int  # inputs that were not as planned

    @property
    def retryable(self) -> int:
        """Inputs that a retry scores again."""
        return self.unavailable + self.quarantined


class Journal:
    """A file of JSON lines. Of several lines of a shard the last one counts."""

    def __init__(self, path: Path, reached: Reached = unwatched) -> None:
        self._path, self._reached = path, reached

    def read(self, *, mend: bool = True) -> dict[int, Line]:
        """The lines by shard. A last line that was not finished does not count; with `mend` it is cut off."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return {}
        whole = data.rfind(b"\n") + 1
        if mend and whole < len(data):
            os.truncate(self._path, whole)
        found = filter(None, map(_parsed, data[:whole].splitlines()))
        return {line.shard: line for line in found}

    def append(self, line: Line) -> None:
        """Adds a line, and has it on the disk when it returns. Raises OSError; nothing is left of the line then."""
        text = json.dumps(asdict(line)).encode() + b"\n"
        handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            before = os.fstat(handle).st_size
            self._reached("before the journal line")
            try:
                half = len(text) // 2
                _write(handle, text[:half])
                self._reached("in the journal line")
                _write(handle, text[half:])
            except OSError:
                os.ftruncate(handle, before)
                raise
            os.fsync(handle)
        finally:
            os.close(handle)
        self._reached("after the journal line")


def agreeing(folder: Path, lines: Mapping[int, Line]) -> tuple[dict[int, Line], list[Line]]:
    """The shards whose files are as their lines say, and the lines of the others."""
    with ThreadPoolExecutor(_THREADS) as threads:
        agree = list(threads.map(lambda line: _agrees(folder / line.file, line), lines.values()))
    good = {line.shard: line for line, right in zip(lines.values(), agree, strict=True) if right}
    return good, [line for line in lines.values() if line.shard not in good]


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def totals(lines: Iterable[Line]) -> dict[str, int]:
    """How many inputs have which status, of all lines together."""
    names = ("rows", "ok", "failed", "unavailable", "quarantined", "changed")
    found = dict.fromkeys(names, 0)
    for line in lines:
        for name in names:
            found[name] += getattr(line, name)
    return found


def _parsed(text: bytes) -> Line | None:
    """A line; None for one that is damaged, whose shard is then scored again."""
    try:
        line = Line(**json.loads(text))
        for field in fields(Line):
            (json_values.text if field.name in _TEXTS else json_values.count)(getattr(line, field.name))
    except (ValueError, TypeError, RecursionError):
        return None
    return line


def _agrees(path: Path, line: Line) -> bool:
    try:
        return path.stat().st_size == line.bytes and hash_file(path) == line.sha256
    except OSError:
        return False


def _write(handle: int, data: bytes) -> None:
    while data:
        data = data[os.write(handle, data) :]
