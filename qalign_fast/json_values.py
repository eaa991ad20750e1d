"""Values of a manifest's JSON in, the same values out; TypeError or ValueError for a wrong type or range."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_SHA256 = re.compile(r"[0-9a-f]{64}")


def numbers(values: Any, length: int) -> tuple[float, ...]:
    if not isinstance(values, list) or len(values) != length or not all(type(v) in (int, float) for v in values):
        raise TypeError(f"expected {length} numbers, found {values!r}")
    return tuple(values)


def counts(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or not values:
        raise TypeError(f"expected a list of whole numbers, found {values!r}")
    return tuple(map(count, values))


def count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise TypeError(f"expected a whole number, found {value!r}")
    return value


def one_of(allowed: Sequence[str], value: str) -> str:
    if value not in allowed:
        raise ValueError(f"{value!r}, expected one of: {', '.join(allowed)}")
    return value


def sha256(value: Any) -> str:
    if not _SHA256.fullmatch(text(value)):
        raise ValueError(f"{value!r} is not a SHA-256")
    return str(value)


def texts(value: Any) -> dict[str, str]:
    return {name: text(item) for name, item in object_of(value).items()}


def object_of(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"expected an object, found {value!r}")
    return value


def text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a string, found {value!r}")
    return value
