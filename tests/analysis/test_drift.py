"""Two runs' rows joined and compared, against scipy and against dictionaries."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from qalign_fast.analysis.drift import TaskDrift, find_drift
from qalign_fast.analysis.rows import read_rows
from qalign_fast.errors import RowsError
from support.score_rows import JOB, Row, made_rows, scored_row, scores_of, write_rows


def drift(folder: Path, old: list[Row], new: list[Row], by: str = "source", kind: str = "parquet") -> TaskDrift:
    runs = (write_rows(folder / f"{name}.{kind}", rows) for name, rows in (("old", old), ("new", new)))
    found = find_drift(*(read_rows(run, ["level", "sha256"]) for run in runs), by)
    assert list(found) == ["quality"]
    return found["quality"]


def moved(rows: list[Row], seed: int, by: float) -> list[Row]:
    draw = np.random.default_rng(seed)
    return [
        row | scored_row(row["source"], float(np.clip(round(row["score"] + draw.normal(0.05, by), 4), 1, 5)))
        if row["error"] is None
        else row
        for row in rows
    ]


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_the_numbers_are_scipys(kind: str, tmp_path: Path) -> None:
    old = made_rows(400)
    new = moved(old, 1, 0.1)[::-1]  # the order of rows does not matter
    found = drift(tmp_path, old, new, kind=kind)
    a = scores_of(old)
    b = scores_of(new[::-1])
    assert found.ks == pytest.approx(stats.ks_2samp(a, b).statistic, abs=1e-15)
    assert found.spearman == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
    pairs = np.subtract.outer(a, a) * np.subtract.outer(b, b)
    assert found.flips == pytest.approx(np.sum(pairs < 0) / (len(a) * (len(a) - 1)), abs=1e-15)
    assert found.shift.mean == pytest.approx(np.mean(b - a))
    assert found.shift_of_all.mean == pytest.approx(b.mean() - a.mean())
    assert found.largest == pytest.approx(np.max(np.abs(b - a)))
    levels = [[row["level"] for row in rows if row["error"] is None] for rows in (old, new[::-1])]
    assert found.level_flips == pytest.approx(np.mean([x != y for x, y in zip(*levels)]))
    assert (found.joined, found.paired) == (400, len(a))


def test_the_same_rows_have_not_moved(tmp_path: Path) -> None:
    found = drift(tmp_path, made_rows(100), made_rows(100))
    assert (found.ks, found.flips, found.level_flips, found.largest) == (0, 0, 0, 0)
    assert (found.shift.mean, found.shift.low, found.shift.high) == (0, 0, 0)
    assert found.spearman == pytest.approx(1)


def test_rows_that_are_in_one_run_alone_and_errors_are_counted(tmp_path: Path) -> None:
    error = {"score": None, "level": None, "error": "gone", "status": "failed"}
    old = [scored_row("a", 3.0), scored_row("b", 4.0), scored_row("c", 2.0), scored_row("d", 2.0) | error]
    new = [scored_row("b", 4.0) | error, scored_row("c", 2.5), scored_row("d", 3.0), *map(scored_row, "ef", (1.0, 2.0))]
    found = drift(tmp_path, old, new)
    assert (found.joined, found.paired, found.only_old, found.only_new) == (3, 1, 1, 2)
    assert (found.became_errors, found.became_scores) == (1, 1)
    assert (found.old_scored, found.new_scored) == (3, 4)
    assert (found.shift.mean, found.shift.count, found.shift.low, found.flips) == (0.5, 1, None, None)


def test_of_rows_of_one_name_the_last_counts(tmp_path: Path) -> None:
    old = [scored_row(name, score) for name, score in [("a", 1.0), ("b", 2.0), ("a", 3.0), ("c", 4.0)]]
    new = [scored_row(name, score) for name, score in [("a", 3.75), ("b", 2.0), ("c", 4.0)]]
    found = drift(tmp_path, old, new)
    assert (found.repeated, found.joined, found.shift.mean) == (1, 3, 0.25)


def test_content_joins_what_was_renamed(tmp_path: Path) -> None:
    old = [scored_row("a.jpg", 3.0, sha256="1" * 64), scored_row("x.jpg", 3.0, sha256=None)]
    new = [scored_row("b.jpg", 3.25, sha256="1" * 64)]
    assert drift(tmp_path, old, new).joined == 0
    found = drift(tmp_path, old, new, by="sha256")
    assert (found.joined, found.shift.mean, found.without_hash) == (1, 0.25, 1)


def test_keys_tell_samples_of_one_archive_apart(tmp_path: Path) -> None:
    for name, scores in (("old", (2.0, 3.0)), ("new", (2.5, 4.0))):
        lines = [scored_row("a.tar", score) | {"__key__": key} for key, score in zip("xy", scores)]
        write_rows(tmp_path / f"{name}.jsonl", lines)
    old, new = (read_rows(tmp_path / f"{name}.jsonl", ["__key__"]) for name in ("old", "new"))
    found = find_drift(old, new)["quality"]
    assert (found.joined, found.repeated, found.shift.mean) == (2, 0, 0.75)


def test_a_name_that_is_no_utf8_joins_its_escape_in_parquet(tmp_path: Path) -> None:
    name = os.fsdecode(b"latin\xe9.jpg")
    escaped = name.encode("utf-8", "backslashreplace").decode()
    old = read_rows(write_rows(tmp_path / "old.jsonl", [scored_row(name, 3.0)]))
    new = read_rows(write_rows(tmp_path / "new.parquet", [scored_row(escaped, 3.5)]))
    assert find_drift(old, new)["quality"].shift.mean == 0.5


def test_levels_are_computed_where_rows_have_none(tmp_path: Path) -> None:
    old, new = [scored_row("a", 1.79), scored_row("b", 3.0)], [scored_row("a", 1.81), scored_row("b", 3.1)]
    runs = [read_rows(write_rows(tmp_path / f"{i}.parquet", rows)) for i, rows in enumerate((old, new))]
    assert "level" not in runs[0].texts
    assert find_drift(*runs)["quality"].level_flips == 0.5


def test_runs_that_have_nothing_in_common_are_refused(tmp_path: Path) -> None:
    quality = read_rows(write_rows(tmp_path / "q.parquet", made_rows(3)))
    aesthetics = read_rows(write_rows(tmp_path / "a.parquet", made_rows(3, task="aesthetics")))
    with pytest.raises(RowsError, match="no task is in both"):
        find_drift(quality, aesthetics)
    with pytest.raises(RowsError, match="no column 'sha256' to join by"):
        find_drift(quality, quality, "sha256")
    other = read_rows(write_rows(tmp_path / "o.parquet", made_rows(3), JOB | {"scale": [0.0, 10.0]}))
    with pytest.raises(RowsError, match="other scales"):
        find_drift(quality, other)
