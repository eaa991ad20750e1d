"""The embedded model on photographs it never saw: it must rank damage, and know what is undamaged."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from qalign_export.mini_eval import FAMILIES, Result, evaluate, family_means
from qalign_fast import Scorer
from qalign_fast.artifact import EMBEDDED, open_artifact


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
