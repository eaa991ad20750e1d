"""The folder of this user's caches: kernels that were built, hashes that were checked, models that benches made."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """Our folder in the user's folder for caches. It need not exist.

    The user's folder is XDG_CACHE_HOME where that is an absolute path, as its specification says. Else it is
    ~/Library/Caches on macOS, %LOCALAPPDATA% on Windows, and ~/.cache elsewhere. Raises RuntimeError where the user has
    no home folder.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():
        base = _system_folder()
    return base / "qalign-fast"


def _system_folder() -> Path:
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local)
    return Path.home() / ".cache"
