"""Checks a file before it is read: its place, its kind and its SHA-256.

A large file that matched its SHA-256 is remembered in the user's cache folder, with its size, inode, device and times.
It is not hashed again while these stay the same. That notices every ordinary way to write or replace a file, even one
that sets the modification time back. It does not notice a disk that fails after the check, a system clock set back, or
someone who may write to the cache folder: `qalign-fast verify` always reads every byte.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
import time
from io import BufferedReader
from pathlib import Path
from typing import Any

from qalign_kernels.cache_folder import cache_folder

LARGE = 64 << 20  # bytes, which take 0.05 s to hash; smaller files are never remembered
_ENTRIES = 256
_MEMORY_BYTES = 1 << 20
# A file is remembered if its last change is at least this old. Two changes that are closer than the ticks of the file
# system's clock (2 s on FAT) may carry the same time, as in git's "racy" index entries.
_SETTLED_NS = 2_000_000_000


def open_regular(path: Path) -> BufferedReader:
    """Opens a regular file. Raises OSError, also for a pipe or a device, which may block or never end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return path.open("rb")


def lies_inside(path: Path, directory: Path) -> bool:
    """Whether a path is in the directory once links are followed.

    A snapshot in the Hub's cache may also lead to the blobs of that cache: models--OWNER--NAME/snapshots/REVISION/FILE
    is a link to models--OWNER--NAME/blobs/. Since huggingface_hub 2, large files in there are links to the blobs/ that
    all models share. Raises OSError.
    """
    home = real_path(directory)
    model = home.parent.parent
    roots = [home]
    if home.parent.name == "snapshots" and model.name.startswith("models--"):
        roots += [real_path(model / "blobs"), real_path(model.parent / "blobs")]
    real = real_path(path, strict=True)
    return any(real.is_relative_to(root) for root in roots)


def real_path(path: Path, *, strict: bool = False) -> Path:
    """The path with its links followed. Path.resolve does the same, but before Python 3.13 a loop is a RuntimeError."""
    return Path(os.path.realpath(path, strict=strict))


def matches(path: Path, sha256: str, *, remembered: bool = False) -> bool:
    """Whether a file has that SHA-256. With `remembered`, a large file that had it and is unchanged is not read.

    Raises OSError.
    """
    path = real_path(path)
    with open_regular(path) as file:
        identity, changed = _identity(file)
        large = identity[0] >= LARGE
        if remembered and large and _recall().get(str(path)) == [*identity, sha256]:
            return True
        settled = time.time_ns() - changed >= _SETTLED_NS
        found = hashlib.file_digest(file, "sha256").hexdigest()
        if found == sha256 and large and settled and _identity(file)[0] == identity:
            _remember(str(path), [*identity, sha256])
    return found == sha256


def _identity(file: BufferedReader) -> tuple[list[int], int]:
    """The facts that change when a file does, and the time of its last change in ns. `touch` cannot set ctime back."""
    s = os.fstat(file.fileno())
    return [s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino, s.st_dev], max(s.st_mtime_ns, s.st_ctime_ns)


def _memory() -> Path:
    return cache_folder() / "verified.json"


def _recall() -> dict[str, Any]:
    """What is remembered, by path. Empty if the memory cannot be read."""
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        with open_regular(_memory()) as file:
            entries = json.loads(file.read(_MEMORY_BYTES))
        if isinstance(entries, dict):
            return entries
    return {}


def _remember(path: str, facts: list[Any]) -> None:
    """Adds or replaces an entry, in one step. If that fails, nothing is remembered."""
    import tempfile  # here, because a process that only reads starts sooner without it

    entries = {other: value for other, value in _recall().items() if other != path} | {path: facts}
    text = json.dumps(dict(list(entries.items())[-_ENTRIES:]), indent=0)
    with contextlib.suppress(OSError, RuntimeError):
        memory = _memory()
        memory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".verified-", dir=memory.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as out:
                out.write(text)
            Path(name).replace(memory)
        finally:
            Path(name).unlink(missing_ok=True)
