"""What a second reader of these commands broke: each was wrong once. `test_odd_rows.py` has the faults in reading."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from qalign_fast.analysis.rows import read_rows
from qalign_fast.analysis.scales import from_unit, to_unit
from qalign_fast.analysis.summary import find_errors, summarize
from support.command_line import CLI, run
from support.goldens import ROOT
from support.score_rows import JOB, Row, made_rows, scored_row, write_rows


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", made_rows(50))


def one_line(*arguments: object, code: int = 1) -> str:
    done = run(*arguments)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_ranking_of_nothing_says_what_failed(tmp_path: Path) -> None:
    assert "not ranked: missing.jpg" in one_line("rank", "missing.jpg", code=3)


@pytest.mark.parametrize("name", ["a\nb.jpg", None])
def test_a_list_that_cannot_be_written_leaves_the_old_one(name: str | None, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [scored_row("x.jpg", 3.0) | {"source": name}])
    kept = tmp_path / "kept.txt"
    wish = ("threshold", rows, "--min", 1, "--task", "quality", "-o", kept)
    one_line(*wish)
    assert not kept.exists()
    kept.write_text("before")
    one_line(*wish, "--overwrite")
    assert kept.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_halves_of_characters_are_listed_with_escapes(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(scored_row("b\ud800c", 3.0)) + "\n" + json.dumps(scored_row("d\udcffe", 3.0)) + "\n")
    assert run("threshold", rows, "--min", 1, "-o", tmp_path / "kept.txt").returncode == 0
    assert (tmp_path / "kept.txt").read_bytes() == b"b\\ud800c\nd\xffe\n"


@pytest.mark.parametrize("command", [("threshold", "--keep", "10%"), ("report",), ("calibrate", "--model", "mini")])
def test_the_rows_are_never_the_output(command: tuple[str, ...], rows: Path) -> None:
    before = rows.read_bytes()
    name, *more = command
    assert "the rows are read from there" in one_line(name, rows, *more, "-o", rows, "--overwrite")
    assert rows.read_bytes() == before


def test_a_group_may_be_called_anything(tmp_path: Path) -> None:
    given: list[Row] = [
        scored_row(f"{i}.jpg", 3.0 + i / 10) | {"camera": camera} for i, camera in enumerate(["(none)", None, "kept"])
    ]
    rows = write_rows(tmp_path / "rows.jsonl", given)
    wish = ("threshold", rows, "--keep", "100%", "--group", "camera")
    facts = json.loads(run(*wish, "--json").stdout)
    assert (facts["kept"], [cut["group"] for cut in facts["groups"]]) == (3, ["(none)", "kept", None])
    shown = run(*wish).stdout
    assert "kept 1 of 1" in " ".join(shown.split())
    assert "group   kept" in shown


def test_a_task_or_rows_that_one_run_lacks_are_past_a_limit(tmp_path: Path) -> None:
    both = write_rows(tmp_path / "both.jsonl", made_rows(20) + made_rows(20, task="aesthetics"))
    one = write_rows(tmp_path / "one.jsonl", made_rows(20))
    assert run("drift", both, one).returncode == 0
    assert "only in OLD  aesthetics" in run("drift", both, one).stdout
    assert "aesthetics: only in OLD" in one_line("drift", both, one, "--max-ks", 1, code=6)
    few = write_rows(tmp_path / "few.jsonl", made_rows(20)[:15])
    assert run("drift", one, few, "--max-missing", 0.25).returncode == 0
    assert "quality: missing 0.25, limit 0.2" in one_line("drift", one, few, "--max-missing", 0.2, code=6)


def test_drift_tells_models_apart_by_their_hash(tmp_path: Path) -> None:
    other = JOB | {"model": JOB["model"] | {"sha256": "cd" * 32}}  # type: ignore[operator]
    files = [write_rows(tmp_path / f"{n}.parquet", made_rows(5), job) for n, job in enumerate((JOB, other))]
    facts = json.loads(run("drift", *files, "--json").stdout)
    assert facts["old model"] == "tiny int8, sha256 abababababab"
    assert facts["new model"] == "tiny int8, sha256 cdcdcdcdcdcd"


def test_a_score_that_was_found_keeps_its_row_on_both_scales() -> None:
    for score in np.random.default_rng(0).uniform(1, 5, 2000).tolist():
        assert from_unit(repr(to_unit(score, (1, 5))), (1, 5)) <= score


def test_edges_are_of_the_lower_bar_as_of_the_lower_level(tmp_path: Path) -> None:
    scores = [1.8, 1.8, 2.6, 3.4, 4.2, 4.2]
    rows = read_rows(write_rows(tmp_path / "r.jsonl", [scored_row(f"{i}.jpg", s) for i, s in enumerate(scores)]))
    found = summarize(rows, "quality", rows.group("folder"), top=1, most_groups=1)
    bars = np.reshape(found.histogram, (5, 8)).sum(axis=1)
    assert bars.tolist() == list(found.levels)[::-1] == [2, 1, 1, 2, 0]
    assert found.groups[0].histogram == found.histogram


def test_a_name_that_is_part_of_a_word_stays_in_its_message(tmp_path: Path) -> None:
    failed = scored_row("photo", 3.0) | {"score": None, "error": "photo: not a photograph", "status": "failed"}
    [group] = find_errors(read_rows(write_rows(tmp_path / "r.jsonl", [failed])))
    assert group.message == "<source>: not a photograph"


@pytest.mark.parametrize(
    "wish",
    [
        ("--keep", "abc"), ("--keep", "0%"), ("--keep", "1e-99999999%"), ("--min", "nan"), ("--min", "3,2"),
        ("--keep", "10%", "--scale", "0..1"), ("--keep", "10%", "--null"), ("--keep", "10%", "--overwrite"),
        ("--keep", "10%", "-o", "kept.html"),
    ],
)  # fmt: skip
def test_a_wrong_wish_is_a_wrong_option(wish: tuple[str, ...], rows: Path) -> None:
    assert "Invalid value for" in one_line("threshold", rows, *wish, code=2)


def test_rows_are_not_ranked_with_options_of_pictures(rows: Path) -> None:
    assert "rows are not scored again" in " ".join(one_line("rank", "--rows", rows, "--model", "x", code=2).split())


def test_what_a_terminal_obeys_is_escaped(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", made_rows(5, task="\x1b[31mred"))
    for command in (("threshold", rows, "--min", 1), ("drift", rows, rows)):
        assert "\x1b" not in (shown := run(*command).stdout)
        assert "\\x1b[31mred" in shown


def test_a_terminal_without_unicode_gets_escapes(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [scored_row("é.jpg", 3.0)])
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    command = [*CLI, "rank", "--rows", str(rows)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\xe9.jpg" in done.stdout


def test_a_folder_without_a_model_is_none(rows: Path, tmp_path: Path) -> None:
    (tmp_path / "no model").mkdir()
    for model in (tmp_path / "no model", ROOT / "samples"):
        said = one_line("calibrate", rows, "--model", model, "-o", tmp_path / "c.json")
        assert "neither an artifact" in said
    assert "neither an artifact" in one_line(
        "run", ROOT / "samples", "--model", tmp_path / "no model", "-o", tmp_path / "out"
    )
    assert not (tmp_path / "out" / "_job" / "job.json").exists()


def test_an_unfinished_job_is_remarked_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("run", ROOT / "samples", "--shard-size", 2, "--out", out).returncode == 0
    journal = out / "_job/journal.jsonl"
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:-1]))
    said = run("threshold", out, "--keep", "50%").stderr
    assert "shards are finished; the other rows are not there yet" in said


def test_levels_that_one_run_does_not_write_are_those_of_its_scores(tmp_path: Path) -> None:
    old = write_rows(tmp_path / "old.jsonl", made_rows(40))
    new = write_rows(tmp_path / "new.jsonl", [row | {"level": None} for row in made_rows(40)])
    facts = json.loads(run("drift", old, new, "--json").stdout)
    assert facts["tasks"]["quality"]["level_flips"] == 0
