"""Which rows a threshold keeps, against sorting by hand."""

from __future__ import annotations

import csv
import io
import json
from fractions import Fraction
from math import ceil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qalign_fast.analysis.columns import TextsBuilder
from qalign_fast.analysis.job import Job
from qalign_fast.analysis.kept import KeptKind, kind_of, write_kept
from qalign_fast.analysis.rows import Rows, read_rows
from qalign_fast.analysis.threshold import find_threshold
from qalign_fast.errors import OptionError, RowsError, TaskError
from support.score_rows import made_rows, scored_row, write_rows


def rows_of(scores: list[float | None], cameras: list[str | None] | None = None) -> Rows:
    columns = {
        "source": [f"{i}.jpg" for i in range(len(scores))],
        "task": ["quality"] * len(scores),
        "error": [None if score is not None else "broken" for score in scores],
        "camera": cameras or [None] * len(scores),
    }
    texts = {}
    for name, values in columns.items():
        (builder := TextsBuilder()).add(values)
        texts[name] = builder.build()
    return Rows("rows", Job(), texts, {"score": np.array(scores, float)}, tuple(columns))


tied = st.lists(st.sampled_from([None, 1.0, 2.0, 2.5, 3.0, 4.0]), min_size=1, max_size=30)


@given(tied, st.integers(1, 100))
def test_a_share_keeps_the_best_and_what_ties_with_the_last(scores: list[float | None], percent: int) -> None:
    known = sorted((score for score in scores if score is not None), reverse=True)
    if not known:
        with pytest.raises(RowsError, match="no row of task 'quality' has a score"):
            find_threshold(rows_of(scores), "quality", Fraction(percent, 100))
        return
    last = known[-(-percent * len(known) // 100) - 1]
    found = find_threshold(rows_of(scores), "quality", Fraction(percent, 100))
    assert found.kept.tolist() == [score is not None and score >= last for score in scores]
    cut = found.cuts[None]
    assert (cut.value, cut.tied, cut.errors) == (last, known.count(last), scores.count(None))
    assert cut.more_by_ties == sum(score >= last for score in known) - ceil(Fraction(percent, 100) * len(known))


def test_a_score_keeps_what_is_not_below_it() -> None:
    found = find_threshold(rows_of([3.2, 3.1999, None, 5.0]), "quality", 3.2)
    assert found.kept.tolist() == [True, False, False, True]
    assert (found.cuts[None].unit, found.cuts[None].tied, found.total) == (0.55, 1, (2, 3, 1))


def test_a_share_is_taken_within_each_group() -> None:
    scores = [1.0, 2.0, 3.0, 4.0, 1.5, 1.6, None, 2.2]
    cameras = ["a", "a", "a", "a", "b", "b", "b", None]
    found = find_threshold(rows_of(scores, cameras), "quality", Fraction(1, 2), "camera")
    assert found.kept.tolist() == [False, False, True, True, False, True, False, True]
    assert {name: (cut.value, cut.kept, cut.errors) for name, cut in found.cuts.items()} == {
        "a": (3.0, 2, 0),
        "b": (1.6, 1, 1),
        None: (2.2, 1, 0),
    }


def test_groups_by_folder_agree_with_each_folder_alone(tmp_path: Path) -> None:
    given = made_rows(300)
    rows = read_rows(write_rows(tmp_path / "rows.parquet", given))
    found = find_threshold(rows, "quality", Fraction(1, 4), "folder")
    for folder, cut in found.cuts.items():
        known = sorted(row["score"] for row in given if row["source"].startswith(folder) and row["error"] is None)
        assert cut.value == known[-ceil(len(known) / 4)]
    assert sorted(found.cuts) == ["set0", "set1", "set2"]


def test_one_of_several_tasks_has_to_be_named(tmp_path: Path) -> None:
    both = [scored_row("a.jpg", 3.0), scored_row("a.jpg", 4.0, task="aesthetics")]
    rows = read_rows(write_rows(tmp_path / "rows.jsonl", both))
    with pytest.raises(TaskError, match="has the tasks: quality, aesthetics; --task"):
        rows.one_task(None)
    with pytest.raises(TaskError, match="task 'sharpness' is not in"):
        rows.one_task("sharpness")
    assert find_threshold(rows, rows.one_task("aesthetics"), Fraction(1)).kept.tolist() == [False, True]


def test_the_list_is_in_the_rows_order_in_every_form(tmp_path: Path) -> None:
    given = [scored_row(name, score) for name, score in [("b.jpg", 3.5), ('q",.jpg', 1.0), ("a\n.jpg", 4.25)]]
    rows = read_rows(write_rows(tmp_path / "rows.jsonl", given))
    kept = np.array([True, False, True])

    def written(kind: KeptKind, **options: bool) -> str:
        write_kept(rows, kept, kind, out := io.StringIO(newline=""), **options)
        return out.getvalue()

    assert written(KeptKind.txt, null=True) == "b.jpg\0a\n.jpg\0"
    with pytest.raises(RowsError, match="two lines"):
        written(KeptKind.txt)
    expected = [("b.jpg", "quality", 3.5), ("a\n.jpg", "quality", 4.25)]
    assert [tuple(json.loads(line).values()) for line in written(KeptKind.jsonl).splitlines()] == expected
    table = list(csv.reader(io.StringIO(written(KeptKind.csv), newline="")))
    assert table == [["source", "task", "score"], *([s, t, str(n)] for s, t, n in expected)]
    with pytest.raises(OptionError, match=r"end in \.txt, \.jsonl or \.csv"):
        kind_of(Path("kept.html"))
