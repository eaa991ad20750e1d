"""Packages of the extra `evaluate`, imported where they are needed: what is missing is told in one line."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from qalign_fast.errors import MissingExtraError


def load_optional(module: str, who: str) -> Any:
    """The module. `who`: "spreadsheets need". Raises MissingExtraError that says the command that installs it."""
    package = module.partition(".")[0]
    try:
        return import_module(module)
    except ModuleNotFoundError as missing:
        raise MissingExtraError(f"{who} {package}: pip install 'qalign-fast[evaluate]' ({missing})") from missing
