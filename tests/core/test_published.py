"""What is known of published checkpoints by their names, and that DeQA-Score's settings load."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from qalign_fast.families.mplug_owl2.config_json import parse_config
from qalign_fast.families.mplug_owl2.prompts import TASKS
from qalign_fast.families.published import inverted_remark, task_remark, trained_for
from support.goldens import GOLDEN, ROOT

RAW = json.loads((GOLDEN / "narrow-112" / "config.json").read_text())

# What the training programs write into config.json beside the sizes, with the values of their scripts.
Q_ALIGN = {
    "image_aspect_ratio": "pad",
    "image_grid_pinpoints": None,
    "tune_visual_abstractor": True,
    "freeze_vision_model": False,
    "visual_abstractor_lr": 2e-5,
}
DEQA = Q_ALIGN | {
    "softkl_loss": True,
    "weight_desp": 1.0,
    "weight_next_token": 0.05,
    "weight_softkl": 1.0,
    "weight_rank": 1.0,
    "weight_in_level": None,
    "continuous_rating_loss": True,
    "binary_rating_loss": "fidelity",
    "closeset_rating_loss": True,
    "use_fix_std": True,
    "detach_pred_std": True,
    "level_prefix": [450, 11029, 310, 278, 1967, 338],
    "level_ids": [15129, 1781, 6534, 6460, 4319],
    "visual_abstractor_lr": None,
}


@pytest.mark.parametrize("settings", [Q_ALIGN, DEQA], ids=["Q-Align", "DeQA-Score"])
def test_settings_that_training_leaves_are_ignored(settings: dict[str, Any]) -> None:
    assert parse_config(RAW | settings, {}) == parse_config(RAW, {})
    for key in settings:
        assert parse_config(RAW | {key: 3}, {}) == parse_config(RAW, {}), key


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("one-align", "quality and aesthetics of images, quality of videos"),
        ("Q-Align-Aesthetic", "aesthetics of images"),
        ("q-align-live-lora-10", "quality of images"),
        ("q-align-maxwell-lora-1", "quality of videos"),
        ("q-align-iqa-lora", "quality of images"),
    ],
)
def test_the_tasks_of_a_name(name: str, expected: str) -> None:
    assert str(trained_for(name)) == expected


@pytest.mark.parametrize("name", ["", "mini", "my-one-align", "one-align-2", "narrow-112", "q-align", "aesthetic"])
def test_other_names_say_nothing(name: str) -> None:
    assert trained_for(name) is None
    assert task_remark(name, TASKS) is None


def test_a_task_that_was_not_trained_is_remarked_on() -> None:
    remark = task_remark("q-align-aesthetic", ("quality", "aesthetics", "aesthetic", "quality-paper", "sharpness"))
    assert remark == (
        "q-align-aesthetic was trained for aesthetics of images; it was not trained for quality, quality-paper"
    )
    assert task_remark("q-align-vqa", ("quality",)) is None  # of videos; which medium is asked is not known here
    assert task_remark("one-align", TASKS) is None


def test_the_documented_table_is_what_is_known() -> None:
    rows = re.findall(
        r"^\| [\w-]+/(\S+) \| (?:whole|LoRA)[^|]*\| ([^|;]+?)(?:;[^|]*)? \|$", family_text(), re.MULTILINE
    )
    assert len(rows) == 14
    for names, trained in rows:
        for name in expand(names):
            assert str(trained_for(name)) == trained, name
            assert (inverted_remark(name) is not None) == ("csiq" in name or "-live-" in name)


def family_text() -> str:
    return (ROOT / "docs" / "family.md").read_text("utf-8")


def expand(names: str) -> list[str]:
    """`q-align-{agi,cgi}-lora-N` as two names."""
    before, brace, rest = names.replace("-N", "-3").partition("{")
    inside, _, after = rest.partition("}")
    return [before + each + after for each in inside.split(",")] if brace else [before]


@pytest.mark.parametrize(
    "name",
    ["q-align-csiq-lora-1", "q-align-live-lora-3", "LIVE", "lora_live_split2", "csiq2010", "my.CSIQ.adapter", "live-1"],
)
def test_inverted_names(name: str) -> None:
    assert f"{name}: its name says" in str(inverted_remark(name))


@pytest.mark.parametrize(
    "name",
    [
        *("q-align-livec-lora-1", "live-c", "live_c_1", "livew", "LIVE-W", "live_challenge", "livechallenge"),
        *("live-in-the-wild", "LIVE-wild", "live-vqc", "live_fb", "olive-lora", "deliver", "liveness", "lively", "agi"),
    ],
)
def test_names_that_are_not_inverted(name: str) -> None:
    assert inverted_remark(name) is None
