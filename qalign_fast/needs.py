"""The name of another package's module in, the module out, or an error that says in one line what to install."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from qalign_fast.errors import MissingExtraError


def need(module: str, install: str) -> Any:
    """The module. `install`: what follows `pip install`. Raises MissingExtraError where it cannot be imported."""
    try:
        return import_module(module)
    except ImportError as missing:
        raise MissingExtraError(f"this needs {module}: pip install {install} ({missing})") from missing
