"""The report is right, and shows if an artifact was not made from the model that it is compared with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from qalign_export.fidelity import compare, verify
from qalign_export.options import ExportOptions
from qalign_export.writer import export_artifact
from qalign_fast import ArtifactError
from qalign_fast.artifact.manifest import open_artifact
from qalign_fast.families.mplug_owl2.prompts import TASKS
from qalign_fast.levels import score_of
from support.command_line import run
from support.goldens import Golden


def test_a_report_counts_what_changed() -> None:
    logits = np.array([[4, 0, 0, 0, 0], [0, 4, 0, 0, 0], [0, 0, 0, 0, 4]], np.float32)
    expected = [score_of(row, "quality") for row in logits]
    moved = [expected[1], expected[0], expected[2]]
    report = compare({"quality": moved}, {"quality": expected}, against="source", pictures="three")
    assert report.changed_ranks == report.level_flips == pytest.approx(2 / 3)
    assert report.srcc == pytest.approx(0.5)
    assert report.max_logit_delta == 4
    assert report.max_delta == pytest.approx(expected[0].value - expected[1].value)
    assert report.mean_delta == pytest.approx(2 / 3 * report.max_delta)
    assert report.mean_shift == pytest.approx(0)
    assert report.rank_flips == pytest.approx(1 / 3)
    assert report.scenes == 3


def test_versions_of_one_scene_are_drawn_together() -> None:
    dice = np.random.default_rng(0)
    logits = dice.normal(0, 1, (40, 5)).astype(np.float32)
    per_scene = np.repeat(dice.normal(0, 0.1, (4, 5)), 10, axis=0).astype(np.float32)
    old, new = ([score_of(row, "quality") for row in rows] for rows in (logits, logits + per_scene))
    alone = compare({"quality": new}, {"quality": old}, against="source", pictures="40")
    together = compare(
        {"quality": new}, {"quality": old}, against="source", pictures="40", scenes=[str(i // 10) for i in range(40)]
    )
    assert (alone.scenes, together.scenes) == (40, 4)
    assert alone.mean_shift == together.mean_shift
    assert np.ptp(together.mean_shift_interval) > 2 * np.ptp(alone.mean_shift_interval)


def test_models_that_give_every_picture_one_score_agree_only_where_it_is_the_same() -> None:
    ones, twos = ([score_of(np.array(row, np.float32), "quality")] * 3 for row in ([4, 0, 0, 0, 0], [0, 4, 0, 0, 0]))
    assert compare({"q": ones}, {"q": ones}, against="source", pictures="three").srcc == 1
    assert compare({"q": ones}, {"q": twos}, against="source", pictures="three").srcc == 0


def test_an_export_is_its_source_to_float32_rounding(narrow: Golden, copy: Path) -> None:
    report = verify(copy, narrow.checkpoint, narrow.pictures)["onnx"]
    assert report.scores == 6 * len(TASKS)
    assert report.max_delta < 1e-5
    assert report.srcc == 1
    assert open_artifact(copy).manifest.fidelity["onnx"]["max_delta"] == report.max_delta


def test_each_engine_and_precision_has_its_report(narrow: Golden, tmp_path: Path) -> None:
    out = export_artifact(narrow.checkpoint, tmp_path / "o", ExportOptions("fp16", ("onnx", "torch")))
    reports = verify(out, narrow.checkpoint, narrow.pictures)
    assert reports.keys() == open_artifact(out).manifest.fidelity.keys() == {"onnx", "torch"}
    assert all(0 < report.max_delta < 1e-2 for report in reports.values())


def test_another_model_is_noticed(goldens: dict[str, Golden], copy: Path) -> None:
    report = verify(copy, goldens["outlier-112"].checkpoint, count=13)["onnx"]
    assert report.max_delta > 0.1
    assert report.srcc < 0.99


def test_one_picture_is_no_comparison(narrow: Golden, copy: Path) -> None:
    with pytest.raises(ArtifactError, match="two pictures or more"):
        verify(copy, narrow.checkpoint, narrow.pictures[:1])


def test_the_command_prints_writes_and_exits_6(narrow: Golden, goldens: dict[str, Golden], copy: Path) -> None:
    assert "match the manifest" in run("verify", copy).stderr
    good = run("verify", copy, *narrow.pictures, "--against", narrow.checkpoint, "--max-delta", 1e-4, "--json")
    assert good.returncode == 0
    assert json.loads(good.stdout)["onnx"]["pictures"] == "6 given"
    far = run("verify", copy, "--against", goldens["outlier-112"].checkpoint, "--count", 4, "--max-delta", 0.01)
    assert far.returncode == 6
    assert run("verify", copy, "--max-delta", 1).returncode == 2
    (copy / "onnx/decoder_model.onnx").write_bytes(b"x")
    damaged = run("verify", copy)
    assert damaged.returncode == 1
    assert "decoder_model.onnx" in damaged.stderr
