"""Percentiles against counting, and what a calibration refuses."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from qalign_fast.analysis.calibration import (
    QUANTILES,
    TaskCalibration,
    calibrate,
    model_identity,
    read_calibration,
)
from qalign_fast.analysis.rows import read_rows
from qalign_fast.errors import CalibrationError, RowsError, TaskError
from support.score_rows import MODEL, made_rows, scored_row, scores_of, write_rows


def of(quantiles: list[float]) -> TaskCalibration:
    return TaskCalibration(len(quantiles), 0.0, 0.0, "", tuple(sorted(quantiles)))


def test_the_facts_are_numpys(tmp_path: Path) -> None:
    given = made_rows(5000)
    found = calibrate(read_rows(write_rows(tmp_path / "rows.parquet", given))).of_task("quality")
    scores = np.sort(scores_of(given))
    assert (found.count, found.mean, found.std) == (
        len(scores),
        pytest.approx(scores.mean()),
        pytest.approx(scores.std()),
    )
    np.testing.assert_allclose(found.quantiles, np.percentile(scores, np.linspace(0, 100, QUANTILES)), rtol=1e-14)
    assert found.scores_sha256 == hashlib.sha256(scores.astype("<f8").tobytes()).hexdigest()


def test_percentiles_are_scipys_but_for_a_step(tmp_path: Path) -> None:
    given = made_rows(3000)
    found = calibrate(read_rows(write_rows(tmp_path / "rows.parquet", given))).of_task("quality")
    scores = scores_of(given)
    for score in np.linspace(1, 5, 101):
        assert found.percentile(score) == pytest.approx(stats.percentileofscore(scores, score, "mean"), abs=0.11)


@given(st.lists(st.integers(100, 500), min_size=2, max_size=30), st.integers(90, 510))
def test_a_percentile_lies_on_the_line_through_the_middle_of_ties(values: list[int], score: int) -> None:
    quantiles, last = np.sort(values), len(values) - 1
    unique = np.unique(quantiles)
    middles = [np.mean(np.flatnonzero(quantiles == value)) for value in unique]
    found = of(quantiles.tolist()).percentile(score)
    if score in unique:
        assert found == pytest.approx(100 * middles[int(np.flatnonzero(unique == score)[0])] / last)
    elif not unique[0] < score < unique[-1]:
        assert found == (0 if score < unique[0] else 100)
    else:  # between the last of the ones below and the first of the ones above
        i = int(np.searchsorted(quantiles, score))
        assert found == pytest.approx(100 * np.interp(score, quantiles[i - 1 : i + 1], [i - 1, i]) / last)


def test_one_score_is_the_middle_of_itself() -> None:
    assert [of([3.0]).percentile(score) for score in (2.9, 3.0, 3.1)] == [0.0, 50.0, 100.0]


def test_a_file_gives_the_calibration_back_and_is_the_same_twice(tmp_path: Path) -> None:
    rows = read_rows(write_rows(tmp_path / "rows.parquet", made_rows(50)))
    found = calibrate(rows)
    (tmp_path / "c.json").write_text(found.to_json())
    assert read_calibration(tmp_path / "c.json") == found
    assert calibrate(rows).to_json() == found.to_json()
    about = json.loads(found.to_json())
    assert (about["model"], about["options_sha256"], about["version"]) == (MODEL, "cd" * 32, 1)


def test_rows_without_a_model_need_one_named(tmp_path: Path) -> None:
    rows = read_rows(write_rows(tmp_path / "rows.jsonl", made_rows(5)))
    with pytest.raises(RowsError, match="--model names it"):
        calibrate(rows)
    assert calibrate(rows, MODEL).model == MODEL
    named = read_rows(write_rows(tmp_path / "rows.parquet", made_rows(5)))
    with pytest.raises(RowsError, match="not the model that was named"):
        calibrate(named, MODEL | {"sha256": "00" * 32})


def test_another_model_or_precision_is_refused(tmp_path: Path) -> None:
    found = calibrate(read_rows(write_rows(tmp_path / "rows.parquet", made_rows(5))))
    found.require_model(MODEL)
    for other in ({"sha256": "00" * 32}, {"precision": "int4"}, {"sha256": None}):
        with pytest.raises(CalibrationError, match="the calibration is of tiny in int8"):
            found.require_model(MODEL | other)
    with pytest.raises(TaskError, match="task 'aesthetics' is not in this calibration; it has: quality"):
        found.of_task("aesthetics")
    with pytest.raises(CalibrationError, match="a server does not say"):
        model_identity("http://host:8000")


def test_rows_without_a_score_calibrate_nothing(tmp_path: Path) -> None:
    with pytest.raises(RowsError, match="no row has a score"):
        calibrate(read_rows(write_rows(tmp_path / "rows.parquet", made_rows(5, faults=1))))


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"kind": "something"},
        {"tasks": {"quality": {}}},
        {"tasks": {"quality": {"count": 2, "mean": 1, "std": 0, "scores_sha256": "", "quantiles": [2, 1]}}},
        {"model": None},
        {"scale": [1]},
    ],
)
def test_what_is_no_calibration_is_said(change: dict, tmp_path: Path) -> None:
    rows = read_rows(write_rows(tmp_path / "rows.parquet", [scored_row("a.jpg", 3.0)]))
    (tmp_path / "c.json").write_text(json.dumps(json.loads(calibrate(rows).to_json()) | change))
    with pytest.raises(CalibrationError, match=r"c\.json: not a calibration"):
        read_calibration(tmp_path / "c.json")
    with pytest.raises(CalibrationError, match="No such file"):
        read_calibration(tmp_path / "none.json")


def test_rows_get_their_percentile(tmp_path: Path) -> None:
    given = [scored_row(f"{i}.jpg", 1 + i / 100) for i in range(101)]
    found = calibrate(read_rows(write_rows(tmp_path / "rows.parquet", given)))
    shown = [{"task": "quality", "score": score} for score in (1.0, 1.25, 1.255, 2.0, None)]
    assert [row["percentile"] for row in found.add_to(shown)] == [0.0, 25.0, 25.5, 100.0, None]
