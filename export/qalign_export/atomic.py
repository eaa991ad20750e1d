"""A target in, a folder beside it to write into out; what a killed process left is removed by the next to that name."""

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
    """A new folder beside `out`, which becomes `out` where the block ends well, and is removed where it does not.

    It is locked while this process lives, so that folders of the same target whose lock is free are known to be a
    killed one's, and go. Where the file system has no such locks, they stay. Raises ArtifactError where `out` exists.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with _locked(out.parent, wait=True) as alone, contextlib.ExitStack() as locks:
        if alone:  # else another process may be between the next two lines
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
    """Whether the directory's lock was had, until the block ends or the process does."""
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
