"""Pictures of a data tool's rows, good and bad ones, and the rows that `Scorer.score` gives for them."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qalign_fast import QAlignError, Scorer
from qalign_fast.errors import ImageError
from qalign_fast.levels import LEVELS
from qalign_fast.records import make_row
from support.goldens import ROOT
from support.pictures import random_picture

SAMPLES = sorted((ROOT / "samples").glob("coffee*.jpg"))
BAD = {"truncated": SAMPLES[0].read_bytes()[:2000], "text": b"no picture at all", "empty": b"", "none": None}


def rows_of_data() -> tuple[list[str], list[bytes | None]]:
    """Names and bytes, good and bad. Of batches of two rows the first is all good, the third all bad."""
    good = {path.stem: path.read_bytes() for path in SAMPLES}
    order = ["coffee", "coffee_blurred", "text", "coffee_jpeg8", "truncated", "empty", "none", "coffee_noisy"]
    order += ["coffee_upscaled"]
    return order, [(good | BAD)[name] for name in order]


def small_jpegs(count: int) -> list[bytes]:
    """Pictures that are all different."""
    rng, found = np.random.default_rng(5), []
    for _ in range(count):
        random_picture(rng, 64, 48).save(file := io.BytesIO(), "JPEG")
        found.append(file.getvalue())
    return found


@cache
def scorer(model: Path | None) -> Scorer:
    return Scorer.load(model)


def expected_row(medium: Any, *tasks: str, model: Path | None = None) -> dict[str, Any]:
    """What `Scorer.score` and `records.make_row` make of one picture, as columns name it."""
    tasks = tasks or ("quality",)
    row: dict[str, Any] = {"status": "ok", "error": None}
    for task in tasks:
        result = _result(medium, task, model)
        made = make_row("", task, result)
        cells = {"score": made["score"], "level": made["level"]} | (made["probabilities"] or dict.fromkeys(LEVELS))
        cells["score01"] = None if isinstance(result, Exception) else round((result.value - 1) / 4, 6)
        if made["error"]:
            row |= {"status": "failed", "error": made["error"]}
        row |= {f"{task}_{name}" if len(tasks) > 1 else name: cell for name, cell in cells.items()}
    return row


def expected_rows(media: Sequence[Any], *tasks: str, model: Path | None = None) -> list[dict[str, Any]]:
    return [expected_row(medium, *tasks, model=model) for medium in media]


def plain_rows(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Columns as rows, with None for all that stands for it."""
    cells = {name: [_plain(cell) for cell in column] for name, column in columns.items()}
    return [dict(zip(cells, row, strict=True)) for row in zip(*cells.values(), strict=True)]


def _plain(cell: Any) -> Any:
    missing = cell is None or type(cell).__name__ == "NAType"
    return None if missing or cell == "" or (isinstance(cell, float) and math.isnan(cell)) else cell


def assert_same(found: Sequence[Mapping[str, Any]], expected: Sequence[Mapping[str, Any]]) -> None:
    """Row by row. Numbers may differ by one in their last digit: a sum's order depends on threads and on batches."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name, cell in other.items():
            last = 1.01e-6 if name.rpartition("_")[2] in LEVELS else 1.01e-4
            assert one[name] == (pytest.approx(cell, rel=0, abs=last) if isinstance(cell, float) else cell), name


def _result(medium: Any, task: str, model: Path | None) -> Any:
    if medium is None:
        return ImageError("no picture")
    return _found(medium, task, model) if isinstance(medium, bytes | Path) else _found.__wrapped__(medium, task, model)


@cache
def _found(medium: Any, task: str, model: Path | None) -> Any:
    try:
        return scorer(model).score(medium, task)
    except QAlignError as error:
        return error
