"""A JSON array of entries in, a parsed list out: lists of Q-Align and of those who follow it, and metas of DeQA-Score.

An entry has its name under `image` or `img_path`, and its label under `gt_score`, as a number or as text, or after the
last `->` of its `id`. It may have a source unit under `unit`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from typing import Any

from qalign_fast.errors import ListError, one_line
from qalign_fast.evaluation.lists.checks import labelled, listed, shown
from qalign_fast.evaluation.lists.entries import Parsed
from qalign_fast.levels import LEVELS

LABEL = "gt_score"
_NAMES = ("image", "img_path")
_UNIT = "unit"
_DEQA = frozenset("level_probs level_probs_org gt_score_norm std_norm".split())
_WORD = re.compile(rf"\b({'|'.join(LEVELS)})\b")


def parse_json(text: str, column: str | None) -> Parsed:
    """`column`: the key of the label, if it is not `gt_score`. Raises ListError that names the entry."""
    rows = _rows(text)
    keys = Counter(key for row in rows for key in row)
    if column is not None and not keys[column]:
        raise ListError(f"no entry has {column!r}; entries have: {listed(keys)}")
    entries, sources, words = [], Counter[str](), []
    for number, row in enumerate(rows, 1):
        label, source = _label(row, column or LABEL, f"entry {number}")
        entry = labelled(_name(row, f"entry {number}"), label, f"entry {number}")
        if (unit := row.get(_UNIT)) not in (None, ""):
            entry = replace(entry, unit=str(unit))
        entries.append(entry)
        sources[source] += 1
        if word := _word(row):
            words.append((word, entry.label))
    is_deqa = bool(_DEQA & keys.keys()) or ("std" in keys and "id" in keys)
    return Parsed(
        form="deqa" if is_deqa else "qalign",
        entries=tuple(entries),
        usual=column in (None, LABEL),
        notes=tuple(f"{sources[source]} labels {source}" for source in (_TEXT, _BLANKS, _ID) if sources[source]),
        words=tuple(words),
    )


_PLAIN, _TEXT, _BLANKS, _ID = "plain", "are strings", "are strings with blanks around", "are read from the id, after ->"


def _rows(text: str) -> list[dict[str, Any]]:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ListError(f"no JSON ({one_line(error)}); expected an array of entries") from error
    if not isinstance(rows, list):
        raise ListError(f"its JSON is no array but {type(rows).__name__}; expected an array of entries")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ListError(f"entry {number} is {shown(row)}; expected an object with image and {LABEL}")
    return rows


def _name(row: dict[str, Any], place: str) -> Any:
    names = [row[key] for key in _NAMES if key in row]
    if not names:
        raise ListError(f"{place} has no {' or '.join(_NAMES)}; it has: {listed(row)}")
    if len(names) == 2 and names[0] != names[1]:
        raise ListError(f"{place}: image is {shown(names[0])} and img_path {shown(names[1])}; expected one name")
    return names[0]


def _label(row: dict[str, Any], key: str, place: str) -> tuple[Any, str]:
    """The label, and what it was."""
    if key in row:
        label = row[key]
        if not isinstance(label, str):
            return label, _PLAIN
        return label, _TEXT if label == label.strip() else _BLANKS
    _, arrow, label = str(row.get("id", "")).rpartition("->")
    if key != LABEL or not arrow:
        raise ListError(f"{place} has no {key}" + (", and no -> in its id" if key == LABEL else ""))
    return label, _ID


def _word(row: dict[str, Any]) -> str | None:
    """The level word of the answer that a model is trained to give."""
    turns = row.get("conversations")
    if not isinstance(turns, list) or not turns or not isinstance(turns[-1], dict):
        return None
    match = _WORD.search(str(turns[-1].get("value", "")))
    return match[1] if match else None
