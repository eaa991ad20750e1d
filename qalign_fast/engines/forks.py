"""What a forked child must never delete: a runtime's objects, whose threads the child does not have.

Deleting one waits for its threads. The child would wait for ever, be it in the garbage collector or at its end.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any
from weakref import WeakSet

_OBJECTS: WeakSet[Any] = WeakSet()
_HELD: list[Any] = []


def keep_in_forks(*objects: Any) -> None:
    """Children that are forked from now on never delete these objects."""
    for one in objects:
        _OBJECTS.add(one)


def _hold() -> None:
    _HELD.extend(_OBJECTS)


def _never_delete() -> None:
    for one in _HELD:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(one))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_hold, after_in_parent=_HELD.clear, after_in_child=_never_delete)
