"""Gives memory that is free back to the system.

glibc gives back what lies above the last block in use. One small block that is made in a burst of large pictures so
keeps all that lay below it: 1.6 GiB were seen, for as long as the process lived.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress


def give_back() -> None:
    """It takes about 0.1 s for each GiB, in which other threads run but may wait for memory. Nothing without glibc."""
    with suppress(AttributeError, OSError, TypeError):  # TypeError: Windows has no library without a name
        ctypes.CDLL(None).malloc_trim(0)
