"""Write into a temporary sibling folder and rename it at the end; remove what killed runs left."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from qalign_fast.artifact.manifest import PARTIAL
from qalign_fast.errors import ArtifactError


@contextlib.contextmanager
def unfinished(out: Path) -> Iterator[Path]:
    """A new folder beside `out`. It is renamed to `out` when the block ends, or removed when the block raises.

    The folder is locked while this process lives. A folder of the same target whose lock is free was left by a process
    that was killed, and is removed. Where the file system has no such locks, such folders stay. Raises ArtifactError if
    `out` exists at the end.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with _locked(out.parent, wait=True) as alone, contextlib.ExitStack() as locks:
        if alone:  # otherwise another process may have made its folder and not yet locked it
            _remove_left(out)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}{PARTIAL}", dir=out.parent))
        locks.enter_context(_locked(partial, wait=False))
        held = locks.pop_all()
    with held:
        try:
            yield partial
            partial.chmod(0o755)  # mkdtemp made it private
            _rename(partial, out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _rename(partial: Path, out: Path) -> None:
    try:
        partial.rename(out)
    except OSError as error:
        if not out.exists():
            raise
        raise ArtifactError(f"{out}: appeared during the export; choose another name or delete it") from error


def _remove_left(out: Path) -> None:
    for left in out.parent.glob(f".{glob.escape(out.name)}{PARTIAL}*"):
        with _locked(left, wait=False) as dead:
            if dead:
                shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def _locked(directory: Path, *, wait: bool) -> Iterator[bool]:
    """Whether the directory could be locked. The lock is held until the block or the process ends."""
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        yield False
        return
    try:
        handle = os.open(directory, os.O_RDONLY)
    except OSError:
        yield False
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        had = True
    except OSError:
        had = False
    try:
        yield had
    finally:
        os.close(handle)
