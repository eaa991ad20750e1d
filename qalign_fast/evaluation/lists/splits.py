"""Rows of a table in, those of one split out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from qalign_fast.errors import ListError
from qalign_fast.evaluation.lists.checks import listed
from qalign_fast.evaluation.lists.layouts import key_of

Rows: TypeAlias = Sequence[tuple[int, tuple[Any, ...]]]

_OFFICIAL = ("official_split", "split")  # pyiqa's, where a data set has one split
_SAME = (  # what columns of splits hold
    frozenset("test true 2".split()),
    frozenset("train training false 0".split()),
    frozenset("val validation 1".split()),
)
ALL, TEST = "all", "test"


def choose_rows(
    header: Sequence[str], rows: Rows, column: str | None, split: str | None
) -> tuple[Rows, bool, tuple[str, ...]]:
    """The rows, whether they are those that one gets without a wish, and notes.

    column: the layout's column of splits. split: None, "all", a value ("test"), a column, or both ("COLUMN=VALUE").
    Without a wish it is the test part of an official split, and else every row. Raises ListError.
    """
    keys = list(map(key_of, header))
    splits = [key for key in keys if key == column or "split" in key]
    official = next((key for key in (column, *_OFFICIAL) if key in splits), None)
    if split == ALL or (split is None and official is None):
        other = f"{len(splits)} columns of splits are not used; split chooses one" if splits and split is None else ""
        return rows, split is None, (other,) if other else ()
    key, value = _wish(split, splits, official)
    names = next((names for names in _SAME if value in names), frozenset([value]))
    place = keys.index(key)
    chosen = [row for row in rows if _value(row[1][place]) in names]
    if not chosen:
        has = listed(sorted({_value(row[place]) for _, row in rows}))
        raise ListError(f"no row has {value!r} in the column {header[place]!r}; it has: {has}")
    note = f"{len(chosen)} of {len(rows)} entries: {header[place]!r} is {value}"
    return chosen, key == official and value == TEST, (note,)


def _wish(split: str | None, splits: Sequence[str], official: str | None) -> tuple[str, str]:
    """The column and the value that are meant."""
    has = f"columns of splits: {listed(splits)}"
    column, is_both, value = (split or TEST).partition("=")
    if is_both or key_of(column) in splits:
        if key_of(column) not in splits:
            raise ListError(f"split {split!r}: no column {column!r} of splits; {has}")
        return key_of(column), value.strip().casefold() or TEST
    key = official or (splits[0] if len(splits) == 1 else None)
    if key is None:
        raise ListError(f"split {split!r}: expected one column of splits, or COLUMN=VALUE; {has}")
    return key, column.strip().casefold()


def _value(cell: Any) -> str:
    return str(cell).strip().casefold()
