"""report, threshold, calibrate, drift, compare and rank as a user meets them: stdout, files, exit codes."""

from __future__ import annotations

import csv
import json
import shutil
from math import ceil
from pathlib import Path

import numpy as np
import pytest

from qalign_fast import Scorer
from qalign_fast.identity import identify_model
from qalign_fast.levels import probability_better
from support.command_line import python, run
from support.goldens import PICTURES, Golden
from support.score_rows import JOB, made_rows, scored_row, scores_of, write_rows

COMMANDS = ("report", "threshold", "calibrate", "drift", "compare", "rank")
PAIR = (PICTURES / "chelsea_small.png", PICTURES / "rocket_landscape.jpg")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.parquet", made_rows(200))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_light_until_it_runs(command: str) -> None:
    heavy = ("pyarrow", "torch", "onnxruntime", "scipy", "PIL")
    code = f"import sys, typer; import qalign_fast.cli.{command}; print(*set({heavy!r}) & set(sys.modules))"
    assert python(code).split() == []


def test_report_writes_a_page_and_keeps_one_that_is_there(rows: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    done = run("report", rows, "-o", page, "--by", "camera", "--top", 3, "--title", "Mine & yours")
    assert (done.returncode, done.stdout) == (0, "")
    text = page.read_text("utf-8")
    assert "<h1>Mine &amp; yours</h1>" in text and "<bdi>Nikon</bdi>" in text
    again = run("report", rows, "-o", page)
    assert again.returncode == 1
    assert "is there already; --overwrite replaces it" in again.stderr
    assert page.read_text("utf-8") == text
    assert run("report", rows, "-o", page, "--overwrite").returncode == 0
    assert page.read_text("utf-8") != text


def test_threshold_says_the_score_and_lists_what_it_keeps(rows: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.csv"
    facts = json.loads(run("threshold", rows, "--keep", "30%", "-o", kept, "--json").stdout)
    scores = np.sort(scores_of(made_rows(200)))
    least = scores[-ceil(0.3 * len(scores))]
    assert (facts["score"], facts["score01"]) == (least, pytest.approx((least - 1) / 4))
    assert (facts["kept"], facts["scored"]) == (int(np.sum(scores >= least)), len(scores))
    assert facts["errors"] == 200 - len(scores)
    expected = [row["source"] for row in made_rows(200) if row["score"] is not None and row["score"] >= least]
    with kept.open(newline="") as file:
        assert [row["source"] for row in csv.DictReader(file)] == expected
    assert f"score   {least}, on 0..1 {facts['score01']!r}" in run("threshold", rows, "--keep", "30%").stdout
    listed = run("threshold", rows, "--min", facts["score01"], "--scale", "0..1", "--list")
    assert listed.stdout.splitlines() == expected
    assert run("threshold", rows, "--min", least, "--list", "-0").stdout.split("\0")[:-1] == expected
    assert "is there already" in run("threshold", rows, "--keep", "30%", "-o", kept).stderr


def test_threshold_by_group(rows: Path) -> None:
    facts = json.loads(run("threshold", rows, "--keep", "50%", "--group", "camera", "--json").stdout)
    given = made_rows(200)
    assert [cut["group"] for cut in facts["groups"]] == ["Canon", "Nikon", None]
    for cut in facts["groups"]:
        scores = np.sort(scores_of([row for row in given if row["camera"] == cut["group"]]))
        assert cut["score"] == scores[-ceil(len(scores) / 2)]
    assert facts["kept"] == sum(cut["kept"] for cut in facts["groups"])
    assert "group   Nikon" in run("threshold", rows, "--keep", "50%", "--group", "camera").stdout


def test_drift_is_checked_against_limits(rows: Path, tmp_path: Path) -> None:
    moved = [row | ({"score": min(row["score"] + 0.1, 5.0)} if row["score"] else {}) for row in made_rows(200)]
    other = write_rows(tmp_path / "other.csv", moved)
    facts = json.loads(run("drift", rows, other, "--json").stdout)["tasks"]["quality"]
    assert facts["shift"]["mean"] == pytest.approx(0.1)
    assert (facts["flips"], facts["joined"]) == (0, 200)
    assert run("drift", rows, other, "--max-shift", 0.11, "--max-ks", 1, "--max-flips", 0).returncode == 0
    past = run("drift", rows, other, "--max-shift", 0.09)
    assert past.returncode == 6
    assert "quality: shift 0.1, limit 0.09" in past.stderr
    assert "mean shift" in past.stdout and "200 in both" in past.stdout


def test_a_limit_that_cannot_be_checked_is_not_kept(tmp_path: Path) -> None:
    old, new = (write_rows(tmp_path / f"{name}.csv", [scored_row(name, 3.0)]) for name in "ab")
    done = run("drift", old, new, "--max-flips", 1)
    assert done.returncode == 6
    assert "flips unknown" in done.stderr


def test_a_calibration_gives_scores_their_percentile(narrow: Golden, tmp_path: Path) -> None:
    model = ("--model", narrow.artifact)
    scored, mine = tmp_path / "rows.jsonl", tmp_path / "mine.json"
    assert run("score", PICTURES, "-o", scored, *model).returncode == 0
    assert "--model names it" in run("calibrate", scored, "-o", mine).stderr
    assert not mine.exists()
    assert run("calibrate", scored, "-o", mine, *model).returncode == 0
    assert json.loads(mine.read_text())["model"]["sha256"] == identify_model(narrow.artifact)["sha256"]
    options = (*PAIR, tmp_path / "missing.jpg", "--calibration", mine, *model)
    found = [json.loads(line) for line in run("score", *options).stdout.splitlines()]
    known = sorted(json.loads(line)["score"] for line in scored.read_text().splitlines())
    expected = [round(100 * known.index(row["score"]) / (len(known) - 1), 2) for row in found[:2]]
    assert [row["percentile"] for row in found] == [*expected, None]
    table = list(csv.DictReader(run("score", *options, "--format", "csv").stdout.splitlines()))
    assert [row["percentile"] for row in table] == [*map(str, expected), ""]
    shown = run("score", *options, "--format", "table").stdout
    assert "percentile" in shown and f"{expected[0]:.2f}" in shown


def test_a_calibration_of_another_model_or_task_is_refused(narrow: Golden, rows: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.json"
    assert run("calibrate", rows, "-o", mine).returncode == 0
    done = run("score", PAIR[0], "--calibration", mine, "--model", narrow.artifact)
    assert (done.returncode, done.stdout) == (1, "")
    assert "the calibration is of tiny in int8" in done.stderr
    own = JOB | {"model": identify_model(narrow.artifact)}
    run("calibrate", write_rows(tmp_path / "own.parquet", made_rows(9), own), "-o", mine, "--overwrite")
    other = run("score", PAIR[0], "--calibration", mine, "--model", narrow.artifact, "--task", "aesthetics")
    assert "task 'aesthetics' is not in this calibration; it has: quality" in other.stderr


def test_compare_is_the_librarys_numbers(narrow: Golden) -> None:
    found = json.loads(run("compare", *PAIR, "--model", narrow.artifact, "--task", "all", "--json").stdout)
    with Scorer.load(narrow.artifact) as scorer:
        a, b = scorer.score_tasks(list(PAIR))
    for task in ("quality", "aesthetics"):
        facts = found["tasks"][task]
        assert facts["a"]["score"] == pytest.approx(a[task].value, abs=1e-4)
        assert facts["probability_a_better"] == pytest.approx(probability_better(a[task], b[task]), abs=1e-5)
    same = json.loads(run("compare", PAIR[0], PAIR[0], "--model", narrow.artifact, "--json").stdout)
    assert same["tasks"]["quality"]["probability_a_better"] == 0.5
    assert "A is better with probability 0.500" in run("compare", PAIR[0], PAIR[0], "--model", narrow.artifact).stdout
    missing = run("compare", PAIR[0], "missing.jpg", "--model", narrow.artifact)
    assert (missing.returncode, missing.stdout) == (1, "")
    assert "missing.jpg: No such file" in missing.stderr


def test_rank_of_pictures_is_the_rank_of_their_rows(narrow: Golden, tmp_path: Path) -> None:
    for name, source in (("a.png", PAIR[0]), ("b.png", PAIR[0]), ("c.jpg", PAIR[1])):
        shutil.copy(source, tmp_path / name)
    (tmp_path / "broken.jpg").write_text("no picture")
    done = run("rank", tmp_path, "--model", narrow.artifact, "--json")
    assert done.returncode == 3
    assert "not ranked" in done.stderr and "broken.jpg" in done.stderr
    places = json.loads(done.stdout)
    assert sorted((place["rank"], place["tied"]) for place in places) in (
        [(1, 1), (2, 2), (2, 2)],
        [(1, 2), (1, 2), (3, 1)],
    )
    tie = next(i for i, place in enumerate(places) if place["tied"] == 2)
    assert places[tie]["better_than_next"] == pytest.approx(0.5)
    scored = tmp_path / "rows.jsonl"
    run("score", tmp_path, "-o", scored, "--model", narrow.artifact)
    of_rows = run("rank", "--rows", scored, "--json")
    assert of_rows.returncode == 0
    assert json.loads(of_rows.stdout) == places
    assert "1 row without a score" in of_rows.stderr
    assert "(2 tie)" in run("rank", "--rows", scored).stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("report", "ROWS"), 2, "Missing option '--output'"),
        (("report", "none.parquet", "-o", "x.html"), 1, "none.parquet: no such file or folder; expected rows"),
        (("report", "ROWS", "-o", "x.html", "--by", "lens"), 1, "has no column 'lens' of text"),
        (("threshold", "ROWS"), 2, "give one of the two: --keep 30% or --min 3.2"),
        (("threshold", "ROWS", "--keep", "30%", "--min", "3"), 2, "give one of the two"),
        (("threshold", "ROWS", "--keep", "30"), 2, "'30' is no share; expected a percentage"),
        (("threshold", "ROWS", "--min", "6"), 2, "'6' is no number from 1 to 5"),
        (("threshold", "ROWS", "--min", "3", "--scale", "0..1"), 2, "'3' is no number from 0 to 1"),
        (("threshold", "ROWS", "--min", "3", "--list", "--json"), 2, "stdout holds the list or the facts"),
        (("threshold", "ROWS", "--keep", "3%", "-o", "x.html"), 2, "end in .txt, .jsonl or .csv"),
        (("threshold", "ROWS", "--keep", "3%", "--task", "beauty"), 1, "task 'beauty' is not in"),
        (("calibrate", "ROWS", "-o", "/nowhere/x.json"), 1, "/nowhere/x.json: No such file"),
        (("drift", "ROWS", "none"), 1, "none: no such file or folder"),
        (("rank",), 2, "give pictures, or rows of their scores by --rows"),
        (("rank", "x.jpg", "--rows", "ROWS"), 2, "give pictures, or rows"),
        (("score", "x.jpg", "--calibration", "ROWS"), 1, "not a calibration"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(
    arguments: tuple[str, ...], code: int, said: str, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(rows.parent)
    done = run(*(rows.name if part == "ROWS" else part for part in arguments))
    assert done.returncode == code
    assert done.stdout == ""
    assert said in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr
    assert [path.name for path in rows.parent.iterdir()] == [rows.name]
