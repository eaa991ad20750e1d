"""Values of a manifest's JSON in, the same values out of the right type and range; else TypeError or ValueError."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_REAL = ("eps", "rope_theta")  # the sizes that are not whole numbers
_SHA256 = re.compile(r"[0-9a-f]{64}")


def sizes_of(values: Any) -> dict[str, Any]:
    """A station's sizes, each positive."""
    for name, value in object_of(values).items():
        real = name in _REAL and type(value) is float
        if not (real or type(value) is int) or not 0 < value < 1 << 24:
            raise TypeError(f"{name} is {value!r}, expected a positive number")
    if values["width"] % values["heads"]:
        raise ValueError(f"width {values['width']} does not divide by {values['heads']} heads")
    return dict(values)


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
