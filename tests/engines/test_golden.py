"""The engines against upstream's own numbers, at every station."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qalign_fast import Scorer
from qalign_fast.engines.contract import Engine
from qalign_fast.families.mplug_owl2.model.checkpoint import load_model
from qalign_fast.families.mplug_owl2.prompts import prompt
from qalign_fast.levels import score_of
from qalign_fast.pixels.picture import load_pixels
from qalign_kernels.contract.norm import rms_norm
from support.goldens import PICTURES, Golden

STATION = 2e-5  # of the array's largest magnitude
LOGITS = 2e-4
SCORES = 1e-4
TASKS = ("quality", "aesthetics", "aesthetic", "quality-paper", "aesthetics-paper")


def assert_station(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(found - expected).max() <= STATION * np.abs(expected).max()


def test_pixels_are_upstreams_to_the_bit(golden: Golden) -> None:
    rule = load_model(golden.checkpoint).config.pixels
    for path, expected in zip(golden.pictures, golden.expected["resized_uint8"]):
        np.testing.assert_array_equal(load_pixels(path, rule), expected)


def test_normalization_is_upstreams(golden: Golden) -> None:
    rule = load_model(golden.checkpoint).config.pixels
    pixels = golden.expected["resized_uint8"].astype(np.float64)
    values = (pixels / 255 - rule.mean) / rule.std
    sums = golden.expected["pixel_values_sum"]
    np.testing.assert_allclose(values.sum(axis=(1, 2, 3)), sums, atol=1e-5 * pixels[0].size)
    corner = values[0, :8, :8].transpose(2, 0, 1)
    np.testing.assert_allclose(corner, golden.expected["pixel_values_0_corner"], atol=1e-5)


def test_vision_features(golden: Golden) -> None:
    model = load_model(golden.checkpoint)
    features = model.vision(torch.from_numpy(golden.expected["resized_uint8"][:2]))
    assert_station(features.numpy(), golden.expected["vision_tower_first2"])


def test_visual_tokens(golden: Golden, engine: Engine) -> None:
    tokens = engine.encode(golden.expected["resized_uint8"])
    assert_station(np.asarray(tokens), golden.expected["visual_tokens"])


def test_last_row_between_all_layers(golden: Golden) -> None:
    decoder = load_model(golden.checkpoint).decoder
    p = prompt("quality")
    tokens = torch.from_numpy(golden.expected["visual_tokens"])
    rows = decoder.last_rows(tokens, decoder.prefix(p.prefix), decoder.suffix(p.suffix))
    rows[-1] = rms_norm(rows[-1], decoder.norm, decoder.norm, 0, decoder.config.eps)
    expected = golden.expected["hidden_last_token_by_layer_quality"]
    for layer, row in enumerate(rows):
        assert_station(row.numpy(), expected[:, layer])


@pytest.mark.parametrize("task", TASKS)
def test_logits_and_scores_of_pictures(golden: Golden, engine: Engine, task: str) -> None:
    logits = engine.decode(engine.encode(golden.expected["resized_uint8"]), prompt(task))
    np.testing.assert_allclose(logits, golden.expected[f"logits_{task}_image"], rtol=0, atol=LOGITS)
    scores = [score_of(row, task).value for row in logits]
    np.testing.assert_allclose(scores, golden.expected[f"score_{task}_image"], rtol=0, atol=SCORES)


@pytest.mark.parametrize("task", ["quality", "aesthetics"])
def test_logits_and_scores_of_clips(golden: Golden, engine: Engine, task: str) -> None:
    scorer = Scorer(engine)
    frames = [PICTURES / name for name in golden.expected["picture_names"][:3]]
    scores = [scorer.score_video(frames, task), scorer.score_video(frames[2:], task)]
    logits = np.array([score.logits for score in scores])
    np.testing.assert_allclose(logits, golden.expected[f"logits_{task}_video"], rtol=0, atol=LOGITS)
    values = [score.value for score in scores]
    np.testing.assert_allclose(values, golden.expected[f"score_{task}_video"], rtol=0, atol=SCORES)


def test_from_file_to_score(golden: Golden, engine: Engine) -> None:
    scores = Scorer(engine).score(list(golden.pictures))
    values = [score.value for score in scores]
    np.testing.assert_allclose(values, golden.expected["score_quality_image"], rtol=0, atol=SCORES)
