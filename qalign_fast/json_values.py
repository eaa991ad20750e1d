"""Checks single values of a manifest's JSON: each function returns its value, typed.

All raise TypeError for a value of another type and ValueError for one that is not allowed. `parse_manifest` turns both
into an ArtifactError.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_SHA256 = re.compile(r"[0-9a-f]{64}")


def numbers(values: Any, length: int) -> tuple[float, ...]:
    """A list of `length` numbers."""
    if not isinstance(values, list) or len(values) != length or not all(type(v) in (int, float) for v in values):
        raise TypeError(f"expected {length} numbers, found {values!r}")
    return tuple(values)


def counts(values: Any) -> tuple[int, ...]:
    """A list of at least one whole number, none negative."""
    if not isinstance(values, list) or not values:
        raise TypeError(f"expected a list of whole numbers, found {values!r}")
    return tuple(map(count, values))


def count(value: Any) -> int:
    """A whole number from 0 to 2**63 - 1."""
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise TypeError(f"expected a whole number, found {value!r}")
    return value


def one_of(allowed: Sequence[str], value: str) -> str:
    """One of the allowed strings."""
    if value not in allowed:
        raise ValueError(f"{value!r}, expected one of: {', '.join(allowed)}")
    return value


def sha256(value: Any) -> str:
    """64 hexadecimal digits, in lower case."""
    if not _SHA256.fullmatch(text(value)):
        raise ValueError(f"{value!r} is not a SHA-256")
    return str(value)


def texts(value: Any) -> dict[str, str]:
    """An object whose values are strings."""
    return {name: text(item) for name, item in object_of(value).items()}


def object_of(value: Any) -> dict[str, Any]:
    """An object."""
    if not isinstance(value, dict):
        raise TypeError(f"expected an object, found {value!r}")
    return value


def text(value: Any) -> str:
    """A string."""
    if not isinstance(value, str):
        raise TypeError(f"expected a string, found {value!r}")
    return value
