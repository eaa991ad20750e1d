"""The recipe of the embedded model, in small: its samples, its training steps and the checkpoint that it writes."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from qalign_export.distortions import DISTORTIONS
from qalign_export.pictures import dead_leaves
from qalign_fast.families.mplug_owl2.config_json import parse_config, read_config
from qalign_fast.families.mplug_owl2.model.checkpoint import load_model, origins
from qalign_fast.families.mplug_owl2.model.reference import Model
from qalign_fast.families.mplug_owl2.prompts import prompt
from qalign_fast.families.mplug_owl2.sizes import pixel_rule
from qalign_train.data import Pool, make_sample, rating
from qalign_train.initial import initialize, whiten_filters
from qalign_train.train import SIZES, Trained, parameter_groups, train_step
from qalign_train.write_checkpoint import write_checkpoint
from support.goldens import ROOT

CONFIG = parse_config(SIZES, {})


@pytest.fixture(scope="module")
def samples() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    pixels, severities = zip(*(make_sample(dead_leaves(rng), CONFIG.pixels, rng) for _ in range(12)), strict=True)
    return np.stack(pixels), np.stack(severities)


@pytest.fixture
def model(samples: tuple[np.ndarray, np.ndarray]) -> Model:
    model = initialize(CONFIG, torch.Generator().manual_seed(0))
    whiten_filters(model, samples[0])
    return model


@pytest.mark.parametrize("family", list(DISTORTIONS))
def test_severity_grows_the_distance_from_the_picture(family: str) -> None:
    picture = dead_leaves(np.random.default_rng(1))
    far = [
        np.abs(
            np.asarray(DISTORTIONS[family](picture, s, np.random.default_rng(2)), float) - np.asarray(picture)
        ).mean()
        for s in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    assert far == sorted(far)
    assert far[-1] > 2 * far[0] + 3


def test_a_rating_is_what_is_left_of_the_quality() -> None:
    severities = np.array([[0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0], [0.5, 0.5, 0, 0, 0, 0]], np.float32)
    np.testing.assert_allclose(rating(severities), [5, 1, 2])


def test_training_lowers_the_loss_of_a_fixed_batch(model: Model, samples: tuple[np.ndarray, np.ndarray]) -> None:
    trained = Trained(model)
    groups = parameter_groups(trained)
    assert sum(len(group["params"]) for group in groups) == len(list(trained.parameters()))
    optimizer = torch.optim.AdamW(groups, lr=3e-4)
    losses = [train_step(trained, optimizer, *samples) for _ in range(12)]
    for first, last in zip(np.mean(losses[:3], axis=0), np.mean(losses[-3:], axis=0)):
        assert last < 0.8 * first


def test_a_checkpoint_is_read_back_to_float16_rounding(
    model: Model, samples: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    write_checkpoint(model, SIZES, tmp_path)
    again = load_model(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor.half().float()), name
    with torch.inference_mode():
        pixels = torch.from_numpy(samples[0][:2])
        logits = [m.decode(m.encode(pixels), *m.constants(prompt("quality"))) for m in (model, again)]
    torch.testing.assert_close(*logits, rtol=0, atol=0.05)


def test_the_pool_gives_whole_samples_and_its_worker_ends(tmp_path: Path) -> None:
    path = tmp_path / "photograph.png"
    dead_leaves(np.random.default_rng(3), 1600, 1200).save(path)
    pool = Pool([path], pixel_rule(64), slots=16, tiles=2, seed=0)
    try:
        deadline = time.monotonic() + 60
        while pool.filled() < 16 and time.monotonic() < deadline:
            time.sleep(0.05)
        pixels, severities = pool.draw(8, np.random.default_rng(0))
        assert pixels.shape[1:] == (64, 64, 3)
        assert len(pixels) == len(severities)
        assert pixels.any(axis=(1, 2, 3)).all()
        assert ((severities >= 0) & (severities <= 1)).all()
        worker = pool._worker.pid
    finally:
        pool.close()
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def test_the_committed_checkpoint_has_the_recipes_sizes() -> None:
    committed = ROOT / "models/mini"
    assert json.loads((committed / "config.json").read_text()) == SIZES
    assert read_config(committed) == CONFIG
    assert load_model(committed).state_dict().keys() == origins(CONFIG).keys()
