"""Values of a column in, batch by batch; the column as numpy holds it out: text with each value once, or numbers."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qalign_fast.errors import RowsError

if TYPE_CHECKING:
    import numpy.typing as npt


_SHOWN = 160  # characters of a value in a message


@dataclass(frozen=True)
class Texts:
    """A column of text. `codes` int32 [R] is the place of each row's text in `values`, -1 for null.

    `values` holds each text once, in the order in which they first appear.
    """

    codes: npt.NDArray[np.int32]
    values: tuple[str, ...]

    def __getitem__(self, row: int) -> str | None:
        code = int(self.codes[row])
        return None if code < 0 else self.values[code]

    def take(self, rows: npt.NDArray[Any]) -> list[str | None]:
        """The texts of some rows."""
        return [None if code < 0 else self.values[code] for code in self.codes[rows].tolist()]

    def without(self, nulls: Collection[str]) -> Texts:
        """The same column in which these texts are null."""
        builder = TextsBuilder()
        builder.add_encoded(self.codes, [None if value in nulls else value for value in self.values])
        return builder.build()


class TextsBuilder:
    """Collects a column of text."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}
        self._codes: list[npt.NDArray[np.int32]] = []

    def add(self, values: Iterable[Any]) -> None:
        """A batch of values: None and NaN are null, and what is no text becomes one."""
        places = self._places
        codes = [
            places.setdefault(value, len(places)) if type(value) is str else self._code_of(value) for value in values
        ]
        self._codes.append(np.array(codes, np.int32))

    def add_encoded(self, codes: npt.NDArray[np.int32], values: Sequence[str | None]) -> None:
        """A batch that is dictionary-encoded already: -1 is null."""
        places = self._places
        own = [-1 if value is None else places.setdefault(value, len(places)) for value in values]
        self._codes.append(np.array([*own, -1], np.int32)[codes])  # -1 finds the last one

    def add_nulls(self, count: int) -> None:
        """A batch of a file that does not have the column."""
        self._codes.append(np.full(count, -1, np.int32))

    def build(self) -> Texts:
        return Texts(np.concatenate([np.empty(0, np.int32), *self._codes]), tuple(self._places))

    def _code_of(self, value: Any) -> int:
        return -1 if is_null(value) else self._places.setdefault(as_text(value), len(self._places))


class NumbersBuilder:
    """Collects a column of numbers, or of several numbers a row: float64 [R] or [R, width]; NaN is null."""

    def __init__(self, width: int | None = None) -> None:
        self._width = width
        self._parts: list[npt.NDArray[np.float64]] = []

    def add(self, values: Any, name: str) -> None:
        """A batch: an array, or a list in which None is null. Raises RowsError for what is no number."""
        try:
            self._parts.append(np.array(values, np.float64).reshape(self._shape(len(values))))
        except (ValueError, TypeError, OverflowError) as error:
            wrong = next((value for value in values if not self._fits(value)), values)
            expected = "a number, or nothing" if self._width is None else f"{self._width} numbers, or nothing"
            raise RowsError(f"column {name!r} holds {shown(wrong)}; expected {expected}") from error

    def add_nulls(self, count: int) -> None:
        self._parts.append(np.full(self._shape(count), np.nan))

    def build(self) -> npt.NDArray[np.float64]:
        return np.concatenate([np.empty(self._shape(0)), *self._parts])

    def _shape(self, count: int) -> tuple[int, ...]:
        return (count,) if self._width is None else (count, self._width)

    def _fits(self, value: Any) -> bool:
        try:
            np.array([value], np.float64).reshape(self._shape(1))
        except (ValueError, TypeError, OverflowError):
            return False
        return True


def as_text(value: Any) -> str:
    """What a kept column holds, as text: a list or an object as JSON."""
    if isinstance(value, str):
        return value
    return json.dumps(value, default=str) if isinstance(value, list | dict | bool) else str(value)


def is_null(value: Any) -> bool:
    """Whether a value is None or NaN."""
    return value is None or bool(value != value)  # noqa: PLR0124


def shown(value: Any) -> str:
    """A value in a message: its beginning, where it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
