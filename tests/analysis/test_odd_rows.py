"""Rows as other tools leave them, and files that are damaged or someone else's: read right, or refused in one line."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qalign_fast.analysis.calibration import calibrate, read_calibration
from qalign_fast.analysis.rows import find_files, levels_of, read_rows
from qalign_fast.analysis.summary import summarize
from qalign_fast.errors import CalibrationError, RowsError
from qalign_fast.levels import LEVELS
from support.score_rows import JOB, KINDS, MODEL, made_rows, scored_row, write_rows

DEEP = "[" * 100_000
PLAIN = {"source": "a", "task": "quality", "score": 3.0, "error": None}


def lines_of(path: Path, *rows: Any) -> Path:
    """JSON lines; a text is a line as it is."""
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def table_of(path: Path, **columns: Any) -> Path:
    """Parquet of one row, or of several."""
    found = {"source": ["a"], "task": ["quality"], "score": [3.0], "error": pa.nulls(1)} | columns
    pq.write_table(pa.table(found), path)
    return path


def refusal(path: Path, *wanted: str) -> str:
    """The one line that says why; it begins with the path."""
    with pytest.raises(RowsError) as caught:
        read_rows(path, wanted)
    said = str(caught.value)
    assert said.startswith(str(path))
    assert "\n" not in said
    assert len(said) < 500
    return said


@pytest.mark.parametrize("value", ["", np.nan, False, None])
def test_what_stands_for_no_error_is_none(value: Any, tmp_path: Path) -> None:
    rows = [PLAIN | {"error": value}, PLAIN | {"error": "gone", "score": None}]
    assert read_rows(lines_of(tmp_path / "a.jsonl", *rows)).scored.tolist() == [True, False]


def test_tables_without_errors_have_none(tmp_path: Path) -> None:
    assert read_rows(table_of(tmp_path / "a.parquet", error=[np.nan])).scored.all()
    assert read_rows(table_of(tmp_path / "b.parquet", error=[""])).scored.all()
    words = ("", "nan", "NaN", "None", "null", "gone")
    table = "source,task,score,error\n" + "".join(f"a,quality,3,{word}\n" for word in words)
    (tmp_path / "a.csv").write_text(table)
    assert read_rows(tmp_path / "a.csv").scored.tolist() == [True] * 5 + [False]


def test_nan_in_a_column_of_text_is_null(tmp_path: Path) -> None:
    found = {"source": ["a", "b"], "task": ["quality"] * 2, "score": [3.0, 2.0], "error": pa.nulls(2)}
    table = table_of(tmp_path / "a.parquet", **found, f=[np.nan, 1.5])
    lines = lines_of(tmp_path / "a.jsonl", PLAIN | {"f": np.nan}, PLAIN | {"f": 1.5})
    for path in (table, lines):
        assert read_rows(path, ["f"]).group("f").take(np.arange(2)) == [None, "1.5"]


def test_a_rows_level_is_its_own_word_or_else_its_scores(tmp_path: Path) -> None:
    words = ["bad", " Good ", "", None, "superb", "fair"]
    rows = [PLAIN | {"score": 4.9, "level": word, "probabilities": None} for word in words]
    rows[-1] |= {"error": "gone"}
    for path in (lines_of(tmp_path / "a.jsonl", *rows), write_rows(tmp_path / "a.csv", rows)):
        found = read_rows(path, ["level"])
        levels = levels_of(found, np.arange(6))
        assert [LEVELS[i] for i in levels[:5]] == ["bad", "good", "excellent", "excellent", "excellent"]
        assert levels[5] == -1
        by = found.group("folder")
        assert summarize(found, "quality", by, top=1, most_groups=1).levels == (3, 1, 0, 0, 1)


def test_levels_of_parts_of_which_one_has_no_words(tmp_path: Path) -> None:
    lines_of(tmp_path / "part-0.jsonl", PLAIN | {"level": "bad"})
    lines_of(tmp_path / "part-1.jsonl", PLAIN)
    found = levels_of(read_rows(tmp_path, ["level"]), np.arange(2))
    assert [LEVELS[i] for i in found] == ["bad", "fair"]


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("source,task,score,error,score,,\na,quality,3,,4,,\n")
    names = ["source", "task", "score", "error", "score"]
    pq.write_table(pa.table([["a"], ["quality"], [3.0], pa.nulls(1), [4.0]], names=names), tmp_path / "a.parquet")
    for name in ("a.csv", "a.parquet"):
        assert "two columns 'score'; rename" in refusal(tmp_path / name)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('"source task score error"', "line 2: not a row"),
        ('["source", "task", "score", "error"]', "line 2: not a row"),
        (DEEP, "line 2: not a row"),
        ('{"source": "a", "task": "quality", "error": null, "score": 1' + "0" * 400 + "}", "column 'score' holds 1000"),
        (PLAIN | {"probabilities": [0.2] * 5}, "column 'probabilities' holds [0.2"),
        (PLAIN | {"probabilities": "good"}, "column 'probabilities' holds 'good'"),
        (PLAIN | {"probabilities": {"good": "much"}}, "column 'probabilities' holds [None, 'much', None"),
    ],
)
def test_a_line_that_is_no_row_is_refused(line: Any, said: str, tmp_path: Path) -> None:
    good = PLAIN | {"probabilities": dict.fromkeys(LEVELS, 0.2)}
    assert said in refusal(lines_of(tmp_path / "a.jsonl", good, line), "probabilities")


def test_probabilities_of_parquet_are_all_five_or_none(tmp_path: Path) -> None:
    some = table_of(tmp_path / "a.parquet", probabilities=[{"good": 0.5, "bad": 0.5}])
    assert "lacks excellent, fair, poor" in refusal(some, "probabilities")
    none = table_of(tmp_path / "b.parquet", probabilities=[np.nan])
    assert np.isnan(read_rows(none, ["probabilities"]).numbers["probabilities"]).all()


SCALES = ("[NaN, Infinity]", "[0, Infinity]", f"[0, 1{'0' * 400}]", '"15"', "[-1.7e308, 1.7e308]")


@pytest.mark.parametrize("text", [*(f'{{"scale": {scale}}}' for scale in SCALES), '{"plan": {"shards": -1}}', DEEP])
def test_a_jobs_description_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    table = pa.table({name: pa.array([value]) for name, value in PLAIN.items()})
    pq.write_table(table.replace_schema_metadata({b"qalign.job": text}), tmp_path / "a.parquet")
    assert "not a job's JSON" in refusal(tmp_path / "a.parquet")
    (tmp_path / "_job").mkdir()
    (tmp_path / "_job/job.json").write_text(text)
    with pytest.raises(RowsError, match=r"job\.json: not a job's JSON"):
        read_rows(lines_of(tmp_path / "a.jsonl", PLAIN))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"count": 1', '"count": Infinity'),
        ("    3.0\n", "    1" + "0" * 400),
        ('"quantiles": [\n    3.0\n   ]', '"quantiles": "123"'),
        *(('"scale": [\n  1.0,\n  5.0\n ]', f'"scale": {scale}') for scale in SCALES),
        ("{", DEEP),
    ],
)
def test_a_calibration_with_odd_numbers_is_refused(old: str, new: str, tmp_path: Path) -> None:
    text = calibrate(read_rows(write_rows(tmp_path / "a.parquet", [scored_row("a", 3.0)]))).to_json()
    assert old in text
    (tmp_path / "c.json").write_text(text.replace(old, new, 1))
    with pytest.raises(CalibrationError, match=r"c\.json: not a calibration"):
        read_calibration(tmp_path / "c.json")


def test_a_calibration_on_another_scale_than_the_models_is_refused(tmp_path: Path) -> None:
    rows = read_rows(write_rows(tmp_path / "a.parquet", [scored_row("a", 3.0)], JOB | {"scale": [0, 100]}))
    with pytest.raises(CalibrationError, match="of scores from 0 to 100, the model's are 1 to 5"):
        calibrate(rows).require_model(MODEL | {"family": "mplug_owl2"})


def test_a_column_that_only_late_lines_have_is_found(tmp_path: Path) -> None:
    path = lines_of(tmp_path / "a.jsonl", *[PLAIN] * 5000, PLAIN | {"camera": "Nikon", "milliseconds": 2.0})
    rows = read_rows(path, ["camera", "milliseconds"])
    assert rows.group("camera").take(np.array([0, 4999, 5000])) == [None, None, "Nikon"]
    assert rows.numbers["milliseconds"][[0, 5000]].tolist() == [pytest.approx(np.nan, nan_ok=True), 2.0]


def make_job(folder: Path, files: list[str], shards: int) -> None:
    """Finished shards, one after another, of a job in CSV."""
    (folder / "_job").mkdir()
    about = JOB | {"options": {"format": "csv"}, "plan": {"shards": shards}}
    (folder / "_job/job.json").write_text(json.dumps(about))
    good = {"bytes": 9, "sha256": "0" * 64, "rows": 3, "ok": 3, "failed": 0, "unavailable": 0, "quarantined": 0}
    good["changed"] = 0
    lines = [json.dumps({"shard": i, "file": name} | good) for i, name in enumerate([*files, "not ended.csv"])]
    wrong = [{"file": 3}, {"rows": "3"}, {"more": 1}]
    damaged = ['{"shard": 7', "[1]", '"file"', DEEP, *(json.dumps(json.loads(lines[-1]) | each) for each in wrong)]
    (folder / "_job/journal.jsonl").write_text("\n".join([*lines[:-1], *damaged, lines[0], lines[-1]]))
    for name in files:
        write_rows(folder / name, made_rows(3))


def test_a_users_file_in_a_jobs_folder_is_not_the_jobs(tmp_path: Path) -> None:
    make_job(tmp_path, ["part-00000.csv", "_birds.csv"], 2)
    (tmp_path / "kept.csv").write_text("path\nsomething else\n")
    (tmp_path / "part-00001.csv").write_text("half a fi")
    assert [file.name for file in find_files(tmp_path)] == ["_birds.csv", "part-00000.csv"]
    (tmp_path / "_birds.csv").unlink()
    assert len(read_rows(tmp_path)) == 3
    (tmp_path / "part-00000.csv").unlink()
    assert "no file of the job" in refusal(tmp_path)


def test_rows_say_whether_their_job_is_unfinished(tmp_path: Path) -> None:
    for name, shards in (("half", 3), ("whole", 2)):
        (tmp_path / name).mkdir()
        make_job(tmp_path / name, ["part-00000.csv", "part-00001.csv"], shards)
    assert read_rows(tmp_path / "half").unfinished == "2 of 3 shards are finished"
    assert read_rows(tmp_path / "half/part-00000.csv").unfinished is None
    assert read_rows(tmp_path / "whole").unfinished is None


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes with names")
def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.jsonl")
    assert "from a file, not from a pipe" in refusal(tmp_path / "rows.jsonl")
    code = (
        "from qalign_fast.analysis.rows import read_rows\ntry: read_rows('/dev/stdin')\nexcept Exception as e: print(e)"
    )
    done = subprocess.run([sys.executable, "-c", code], input="{}", capture_output=True, text=True, check=True)
    assert "from a file, not from a pipe" in done.stdout


@pytest.mark.parametrize(("mark", "name"), [(";", "semicolons"), ("\t", "tabs")])
def test_columns_that_are_not_separated_by_commas(mark: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("source,task,score,error\na,quality,3,\n".replace(",", mark))
    assert f"separated by {name}; expected commas" in refusal(tmp_path / "a.csv")


@pytest.mark.parametrize("kind", KINDS[1:])
def test_the_row_of_probabilities_that_is_wrong_is_quoted(kind: str, tmp_path: Path) -> None:
    good, bad = dict.fromkeys(LEVELS, 0.2), dict.fromkeys(LEVELS, 0.2) | {"fair": "some"}
    rows = [scored_row("a", 3.0, probabilities=good), scored_row("b", 3.0, probabilities=bad)]
    said = refusal(write_rows(tmp_path / f"a.{kind}", rows), "probabilities")
    assert "'some'" in said
    assert "expected 5 numbers, or nothing" in said


def test_long_names_in_csv_are_read(tmp_path: Path) -> None:
    before, name = csv.field_size_limit(), "n" * 200_000
    rows = read_rows(write_rows(tmp_path / "a.csv", [scored_row(name, 3.0)]))
    assert rows.texts["source"][0] == name
    assert csv.field_size_limit() == before
