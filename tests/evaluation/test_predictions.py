"""Scores are found for a list's entries in every form of file, in the list's order, or the file is refused."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qalign_fast.errors import RowsError, TaskError
from qalign_fast.evaluation.lists.read import read_list
from qalign_fast.evaluation.predictions import Predictions, ensemble, read_predictions
from qalign_fast.records import in_utf8
from support.score_rows import scored_row, write_rows

NAMES = ("set/a.jpg", "set/b.jpg", "deep/set/c.jpg")
LEVELS = ("excellent", "good", "fair", "poor", "bad")


@pytest.fixture
def labels(tmp_path: Path):
    path = tmp_path / "labels.json"
    path.write_text(json.dumps([{"image": name, "gt_score": i} for i, name in enumerate(NAMES)]))
    return read_list(path)


def scores(found: Predictions) -> list[float | None]:
    return [None if np.isnan(score) else score for score in found.scores.tolist()]


def rows_of(values: dict[str, float | None], task: str = "quality") -> list[dict[str, Any]]:
    failed = {"score": None, "level": None, "status": "unavailable", "error": "no such file"}
    return [
        scored_row(name, 3.0 if value is None else value, task=task) | (failed if value is None else {})
        for name, value in values.items()
    ]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_rows_are_joined_by_name_in_the_lists_order(tmp_path: Path, labels, kind: str) -> None:
    path = write_rows(
        tmp_path / f"rows.{kind}", rows_of({NAMES[2]: 2.0, NAMES[0]: 4.5, "other.jpg": 1.0, NAMES[1]: None})
    )
    found = read_predictions(path, labels)
    assert scores(found) == [4.5, None, 2.0]
    assert found.errors == (None, "no such file", None)
    assert found.levels.tolist() == [0, -1, 3]
    assert (found.task, found.scale) == ("quality", (1.0, 5.0))


@pytest.mark.parametrize("before", ["", "/data/", "./x/../", "C:\\data\\"])
def test_rows_of_full_paths_are_found_by_how_they_end(tmp_path: Path, labels, before: str) -> None:
    path = write_rows(tmp_path / "rows.jsonl", rows_of({before + name: i + 1.0 for i, name in enumerate(NAMES)}))
    assert scores(read_predictions(path, labels)) == [1, 2, 3]


def test_a_root_decides_between_two_that_end_alike(tmp_path: Path, labels) -> None:
    both = {"/x/set/a.jpg": 1.0, "/y/set/a.jpg": 2.0}
    path = write_rows(tmp_path / "rows.jsonl", rows_of(both))
    with pytest.raises(RowsError, match=r"'set/a.jpg' may be '/x/set/a.jpg' or '/y/set/a.jpg'; --root"):
        read_predictions(path, labels)
    assert scores(read_predictions(path, labels, root="/y"))[0] == 2.0


def test_rows_of_another_list_are_refused(tmp_path: Path, labels) -> None:
    path = write_rows(tmp_path / "rows.jsonl", rows_of({"z.jpg": 3.0}))
    with pytest.raises(RowsError, match=r"none of the list's names, such as 'set/a.jpg'; it has 'z.jpg'"):
        read_predictions(path, labels)


def test_rows_of_two_tasks_need_the_task(tmp_path: Path, labels) -> None:
    rows = rows_of(dict.fromkeys(NAMES, 2.0)) + rows_of(dict.fromkeys(NAMES, 4.0), "aesthetics")
    path = write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(TaskError, match="quality, aesthetics"):
        read_predictions(path, labels)
    assert scores(read_predictions(path, labels, task="aesthetics")) == [4, 4, 4]


def results(separator: str, opened: str = "", closed: str = "") -> str:
    each = [
        {
            "image": name,
            "logits": {"high": 9.0, **{word: float(j == i) * 3 for j, word in enumerate(LEVELS)}},
            "id": name,
        }
        for i, name in enumerate(NAMES)
    ]
    return opened + separator.join(map(json.dumps, each)) + closed


@pytest.mark.parametrize(
    "text", [results("\n"), results(""), results(",", "[", "]"), "\ufeff" + results("\n", closed="\n\n")]
)
def test_result_files_of_evaluation_scripts_are_read(tmp_path: Path, labels, text: str) -> None:
    """Q-Align's writes objects with nothing between them, DeQA-Score's one a line."""
    path = tmp_path / "results.json"
    path.write_text(text)
    shares = np.exp([3, 0, 0, 0, 0]) / np.exp([3, 0, 0, 0, 0]).sum()
    found = read_predictions(path, labels)
    expected = [np.roll(shares, i) @ [5, 4, 3, 2, 1] for i in range(3)]
    assert scores(found) == pytest.approx(expected, abs=1e-12)
    assert found.scale == (1, 5)
    assert found.task is None


def test_a_result_file_may_hold_scores(tmp_path: Path, labels) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text("\n".join(json.dumps({"img_path": name, "score": i / 4}) for i, name in enumerate(NAMES)))
    found = read_predictions(path, labels)
    assert scores(found) == [0, 0.25, 0.5]
    assert found.scale is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"score": 1}', "object 1 names no picture"),
        ('{"image": "set/a.jpg", "logits": {"good": 1}}', "'logits' of excellent, good, fair, poor, bad"),
        ('{"image": "set/a.jpg"}', "or a 'score'"),
        ("[1]", "object 1 is a int"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_wrong_result_file_is_told(tmp_path: Path, labels, text: str, message: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(RowsError, match=message):
        read_predictions(path, labels)


def test_a_table_of_names_and_scores(tmp_path: Path, labels) -> None:
    path = tmp_path / "dover.csv"
    path.write_text("path,score\n" + "".join(f"{name},{i}\n" for i, name in enumerate(reversed(NAMES))))
    assert scores(read_predictions(path, labels)) == [2, 1, 0]


def test_lines_of_scores_are_in_the_lists_order(tmp_path: Path, labels) -> None:
    path = tmp_path / "fastvqa.txt"
    path.write_text("0.5\n-1.25\nnan")
    found = read_predictions(path, labels)
    assert scores(found) == [0.5, -1.25, None]
    assert found.errors == (None, None, "not a number")
    path.write_text("0.5\n1\n")
    with pytest.raises(RowsError, match=r"2 scores; .* has 3 entries"):
        read_predictions(path, labels)
    path.write_text("0.5\nx\n1\n")
    with pytest.raises(RowsError, match="a score a line"):
        read_predictions(path, labels)


def test_a_name_with_two_scores_is_refused_and_an_error_gives_way_to_a_score(tmp_path: Path, labels) -> None:
    """A file to which a second run was added: its last rows were taken in silence."""
    once = rows_of({NAMES[0]: 4.0, NAMES[1]: None})
    for kind in ("jsonl", "csv", "parquet"):
        path = write_rows(tmp_path / f"rows.{kind}", [*once, *rows_of({NAMES[0]: None, NAMES[1]: 2.0})])
        assert scores(read_predictions(path, labels)) == [4, 2, None]
        assert read_predictions(path, labels).levels.tolist() == [1, 3, -1]
        path = write_rows(tmp_path / f"rows.{kind}", [*once, *rows_of({NAMES[0]: 4.5})])
        with pytest.raises(RowsError, match=r"'set/a.jpg' has two scores: 4 and 4.5"):
            read_predictions(path, labels)
    same = [{"image": name, "score": score} for name, score in ((NAMES[0], 1), (NAMES[0], 1))]
    (tmp_path / "same.json").write_text(json.dumps(same))
    assert scores(read_predictions(tmp_path / "same.json", labels)) == [1, None, None]
    (tmp_path / "other.json").write_text(json.dumps([*same, {"image": NAMES[0], "score": 2}]))
    (tmp_path / "other.csv").write_text(f"path,score\n{NAMES[0]},1\n{NAMES[0]},2\n")
    for name in ("other.json", "other.csv"):
        with pytest.raises(RowsError, match="has two scores: 1 and 2"):
            read_predictions(tmp_path / name, labels)


def test_a_score_that_no_sum_can_be_made_of_is_an_error_in_its_place(tmp_path: Path, labels) -> None:
    (tmp_path / "a.txt").write_text("1e308\n1\ninf\n")
    (tmp_path / "a.json").write_text(
        json.dumps([{"image": NAMES[0], "score": -1e308}, {"image": NAMES[1], "score": 1}])
    )
    for name in ("a.txt", "a.json"):
        found = read_predictions(tmp_path / name, labels)
        assert scores(found) == [None, 1, None]
        assert "too large for a score" in (found.errors[0] or "")


def test_names_that_are_no_utf8_are_found_in_rows_that_were_written_of_them(tmp_path: Path) -> None:
    name = os.fsdecode(b"set/n\xff.jpg")
    (tmp_path / "labels.json").write_text(json.dumps([{"image": name, "gt_score": 1}]))
    path = write_rows(tmp_path / "rows.parquet", rows_of({in_utf8(name): 2.0}))
    assert scores(read_predictions(path, read_list(tmp_path / "labels.json"))) == [2]


@pytest.mark.parametrize("protocol", range(3, pickle.HIGHEST_PROTOCOL + 1))
def test_fast_vqas_pickle_is_the_sum_of_its_branches(tmp_path: Path, labels, protocol: int) -> None:
    path = tmp_path / "val-ltest.pkl"
    branches = {"resize": np.array([1, 3, 2], np.float32), "fragments": np.array([10.0, 20, 60])}
    path.write_bytes(pickle.dumps(branches, protocol))
    found = scores(read_predictions(path, labels))
    summed = sum((b - b.mean()) / b.std() for b in branches.values())
    assert found == pytest.approx((summed / 2).tolist(), abs=1e-6)
    path.write_bytes(pickle.dumps(branches["fragments"], protocol))
    assert scores(read_predictions(path, labels)) == [10, 20, 60]


def test_a_pickle_of_numpy_1_is_read(tmp_path: Path, labels) -> None:
    path = tmp_path / "old.pkl"
    text = pickle.dumps({"fragments": np.array([1.0, 2.0, 3.0])}, 3).replace(b"numpy._core", b"numpy.core")
    path.write_bytes(text)
    assert scores(read_predictions(path, labels)) == [1, 2, 3]


class Nasty:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("touched"),)


@pytest.mark.parametrize("content", [Nasty(), {"fragments": [Nasty()]}, {"fragments": np.array([Nasty()], object)}])
def test_a_pickle_that_names_anything_else_runs_nothing(
    tmp_path: Path, labels, content: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(RowsError, match="which is not run"):
        read_predictions(path, labels)
    assert not Path("touched").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"fragments": np.zeros(2)}, "2 scores of the branch 'fragments'; .* has 3 entries"),
        ({"fragments": np.zeros((3, 1))}, "of shape"),
        ({"fragments": ["a", "b", "c"]}, "<U1"),
        ({}, "0 scores"),
        ("text", "<U4"),
    ],
)
def test_a_pickle_of_other_things_is_told(tmp_path: Path, labels, content: Any, message: str) -> None:
    path = tmp_path / "other.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(RowsError, match=message):
        read_predictions(path, labels)


def test_a_damaged_pickle_is_told(tmp_path: Path, labels) -> None:
    whole = pickle.dumps({"fragments": np.arange(3.0)})
    path, dice = tmp_path / "damaged.pkl", np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(whole[: dice.integers(1, len(whole) + 1)])
        damaged[dice.integers(len(damaged))] = dice.integers(256)
        path.write_bytes(bytes(damaged))
        with contextlib.suppress(RowsError):
            assert len(read_predictions(path, labels).scores) == 3


@pytest.mark.parametrize("name", ["missing.jsonl", "missing.txt", "missing.json", "missing.parquet", "missing"])
def test_a_missing_file_is_named(tmp_path: Path, labels, name: str) -> None:
    with pytest.raises(RowsError, match=name):
        read_predictions(tmp_path / name, labels)


def test_an_ensemble_says_what_it_is_of(tmp_path: Path, labels) -> None:
    rows = read_predictions(write_rows(tmp_path / "a.jsonl", rows_of(dict(zip(NAMES, (1.0, 2.0, None))))), labels)
    (tmp_path / "fastvqa.txt").write_text("10\n30\n20\n")
    both = ensemble([rows, read_predictions(tmp_path / "fastvqa.txt", labels)])
    assert scores(both) == [-1, 1, None]
    assert both.errors[2] == "no such file"
    assert both.task == "quality"
    assert both.scale is None
