"""The embedded model on photographs that it never saw: it ranks damage and recognizes undamaged pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qalign_export.fidelity import compare
from qalign_export.options import ExportOptions
from qalign_export.pictures import generate_pictures
from qalign_export.writer import export_artifact
from qalign_fast import Score, Scorer
from qalign_fast.artifact.manifest import open_artifact
from qalign_fast.references import EMBEDDED
from qalign_train.evaluate import FAMILIES, Result, distorted, evaluate, family_means
from support.goldens import ROOT

MINI = ROOT / "models/mini"


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer.load()


@pytest.fixture(scope="module")
def results(scorer: Scorer) -> list[Result]:
    return evaluate(scorer)


def test_scores_fall_with_severity(results: list[Result]) -> None:
    correlations = [r.spearman(family) for r in results for family in FAMILIES]
    assert len(correlations) == 28
    assert np.mean(correlations) <= -0.9


@pytest.mark.parametrize("family", FAMILIES)
def test_no_family_is_left_behind(results: list[Result], family: str) -> None:
    assert family_means(results)[family] <= -0.75


def test_every_pristine_picture_stands_a_level_above_its_worst_version(results: list[Result]) -> None:
    assert {r.name: r.margin for r in results if r.margin < 1} == {}


@pytest.fixture(scope="module")
def judged() -> tuple[list[Image.Image], list[Score]]:
    """More than 500 damaged pictures that were never trained on, and their scores in float32."""
    pictures = distorted(18)
    assert len(pictures) >= 500
    return pictures, Scorer.load(MINI).score(pictures)


@pytest.mark.parametrize("engine", ["onnx", "torch"])
@pytest.mark.parametrize(
    ("precision", "mean", "most", "srcc"), [("int8", 0.01, 0.05, 0.0015), ("int4", 0.03, 0.15, 0.005)]
)
def test_what_rounding_costs(
    precision: str, mean: float, most: float, srcc: float, engine: str, rounded_mini: Path, judged: tuple
) -> None:
    pictures, exact = judged
    found = Scorer.load(rounded_mini / precision, engine=engine).score(pictures)
    report = compare({"quality": found}, {"quality": exact}, against="mini", pictures="held out")
    assert report.mean_delta <= mean
    assert report.max_delta <= most
    assert 1 - report.srcc <= srcc


@pytest.mark.parametrize(("precision", "engine"), [("int8", "torch"), ("int8", "openvino"), ("int4", "torch")])
def test_engines_round_alike(precision: str, engine: str, rounded_mini: Path, judged: tuple) -> None:
    """But for float32's sums in another order: they round some values differently, and later layers see that."""
    some = judged[0][:: len(judged[0]) // 60]
    engines = [Scorer.load(rounded_mini / precision, engine=engine) for engine in ("onnx", engine)]
    found, expected = (np.array([score.value for score in scorer.score(some)]) for scorer in engines)
    assert np.abs(found - expected).max() <= 0.01
    assert np.abs(found - expected).mean() <= 0.003


@pytest.fixture(scope="module")
def rounded_mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mini model in 8 and 4 bits, as `qalign-fast export` makes it."""
    out = tmp_path_factory.mktemp("mini")
    for precision in ("int8", "int4"):
        options = ExportOptions(precision, ("onnx", "torch"), ["quality"], calibration=generate_pictures(16))
        export_artifact(MINI, out / precision, options)
    return out


def test_a_clip_of_worse_frames_scores_lower(scorer: Scorer) -> None:
    picture = Image.open(ROOT / "samples/coffee.jpg").convert("RGB")
    small = picture.resize((75, 50)).resize(picture.size)
    good, mixed, bad = (scorer.score_video(frames).value for frames in ([picture] * 3, [picture, small], [small] * 3))
    assert good > mixed > bad


def test_it_is_small_and_says_what_it_is() -> None:
    manifest = open_artifact(EMBEDDED).manifest
    assert sum(file.bytes for file in manifest.files.values()) <= 12e6
    assert (manifest.name, manifest.license) == ("mini", "Apache-2.0")
    card = (EMBEDDED.parent / "MODEL_CARD.md").read_text()
    assert "not OneAlign" in card
