"""The families on OneAlign's trunk as a user meets them: rows, jobs, reports, info, a server."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from qalign_fast import Scorer, level_of
from qalign_fast.families.registry import FAMILIES, find_family
from qalign_fast.identity import identify_model, tasks_of
from qalign_fast.jobs.row_scorer import RowScorer
from qalign_fast.levels import LEVELS
from support.clips import constant, write_clip
from support.command_line import run
from support.goldens import GOLDEN
from support.heads import expected_of, pictures_of
from support.servers import running_server

HEADS = {"q-scorer-112": ("q_scorer", 5, 1e-4), "compare2score-112": ("compare2score", 100, 0.36)}


class Head:
    """A family's golden checkpoint, and its artifact in float32."""

    def __init__(self, folder: str, artifact: Path) -> None:
        self.family, self.high, self.near = HEADS[folder]
        self.checkpoint, self.artifact = GOLDEN / folder, artifact
        expected = expected_of(folder)
        self.files, self.scores = pictures_of(expected), expected["score"]


@pytest.fixture(scope="module", params=HEADS)
def head(request: pytest.FixtureRequest, rounded: Callable[[str, str], Path]) -> Head:
    return Head(request.param, rounded(request.param, "fp32"))


def test_rows_have_the_columns_of_every_model(head: Head) -> None:
    lines = [json.loads(x) for x in run("score", *head.files, "--model", head.artifact).stdout.splitlines()]
    text = run("score", *head.files, "--model", head.checkpoint, "--format", "csv").stdout
    rows = list(csv.DictReader(io.StringIO(text)))
    assert list(rows[0]) == ["source", "task", "score", "level", *LEVELS, "frames", "error", "warnings"]
    for line, row, score in zip(lines, rows, head.scores, strict=True):
        assert line["error"] is None and line["task"] == "quality"
        assert line["score"] == pytest.approx(score, abs=head.near)
        assert float(row["score"]) == pytest.approx(line["score"], abs=3e-4)
        assert line["level"] == row["level"] == level_of(line["score"], 0, head.high)
        found = [float(row[level]) for level in LEVELS]
        np.testing.assert_allclose(found, [line["probabilities"][level] for level in LEVELS], atol=1e-4)
        assert sum(found) == pytest.approx(1, abs=1e-5)


def test_a_table_says_the_scale(head: Head) -> None:
    shown = run("score", head.files[0], "--model", head.artifact, "--format", "table").stdout
    assert f"score 0..{head.high}" in shown


def test_a_job_and_its_report(head: Head, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for file in head.files[:2]:
        shutil.copy(file, pictures)
    for form in ("parquet", "csv"):
        done = run("run", pictures, "-o", tmp_path / form, "--model", head.artifact, "--format", form)
        assert done.returncode == 0, done.stderr
        page = tmp_path / f"{form}.html"
        assert run("report", tmp_path / form, "-o", page).returncode == 0
        assert f"Scores are on 0 (bad) to {head.high} (excellent)." in page.read_text("utf-8")
    [shard] = (tmp_path / "parquet").glob("*.parquet")
    by_name = {Path(row["source"]).name: row for row in pq.read_table(shard).to_pylist()}
    for file, score in zip(head.files[:2], head.scores, strict=False):
        row = by_name[file.name]
        assert row["score"] == pytest.approx(score, abs=head.near)
        assert row["score01"] == pytest.approx(row["score"] / head.high, abs=1e-5)
        assert row["level"] == level_of(row["score"], 0, head.high)
        assert list(row["probabilities"]) == list(LEVELS)
    kept = json.loads(run("threshold", tmp_path / "parquet", "--keep", "50%", "--json").stdout)
    assert kept["kept"] == 1 and kept["score01"] == pytest.approx(kept["score"] / head.high, abs=1e-5)


def test_a_clip_is_an_error_in_its_row(head: Head, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "c.mkv", constant(50, 25), 25)
    done = run("score", clip, head.files[0], "--model", head.artifact)
    assert "for videos it has: none" in done.stdout + done.stderr
    assert done.returncode != 0


def test_info_says_what_it_is(head: Head) -> None:
    for model in (head.artifact, head.checkpoint):
        facts = json.loads(run("info", model, "--json").stdout)
        assert (facts["family"], facts["tasks"]) == (head.family, "quality")
    assert json.loads(run("info", head.artifact, "--json").stdout)["video tasks"] == "none"


def test_it_is_identified_without_being_loaded(head: Head) -> None:
    for model in (head.artifact, head.checkpoint):
        assert identify_model(model)["family"] == head.family
        assert tasks_of(model) == ("quality",)
    assert identify_model(head.artifact)["sha256"] != identify_model(head.checkpoint)["sha256"]


def test_data_frames_get_the_columns_of_every_model(head: Head) -> None:
    columns = RowScorer(head.artifact, engine="native").score([str(head.files[0]), None])
    assert columns["score"][0] == pytest.approx(head.scores[0], abs=head.near)
    assert columns["score01"][0] == pytest.approx(columns["score"][0] / head.high, abs=1e-5)
    assert sum(columns[level][0] for level in LEVELS) == pytest.approx(1, abs=1e-5)
    assert list(columns["status"]) == ["ok", "failed"]


def test_a_server_gives_its_scores(head: Head) -> None:
    here = Scorer.load(head.artifact).score(head.files)
    with running_server("--name", f"it={head.artifact}") as server, Scorer.load(server.url) as scorer:
        for found, expected in zip(scorer.score(head.files), here, strict=True):
            assert found.value == pytest.approx(expected.value, abs=5.1e-5)  # the server's score has four digits
            assert found.scale == expected.scale and found.level == expected.level
            np.testing.assert_allclose(found.logits, expected.logits, rtol=0, atol=1e-4)
            probabilities = [list(score.probabilities.values()) for score in (found, expected)]
            np.testing.assert_allclose(*probabilities, rtol=0, atol=1e-5)


def test_every_family_of_the_registry_answers_with_five_levels() -> None:
    for name in FAMILIES:
        family = find_family(name)
        assert family.name == name and family.scale.words == LEVELS
