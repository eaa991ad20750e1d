"""Where this user's caches lie: kernels that were built, hashes that were checked, models that benches made."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """Our folder below the user's for caches, as the system has it; it need not exist.

    XDG_CACHE_HOME where it is an absolute path, as its specification says; else ~/Library/Caches on macOS,
    %LOCALAPPDATA% on Windows, ~/.cache elsewhere. Raises RuntimeError where there is no home folder.
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
