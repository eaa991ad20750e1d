"""Settings that would change the result are errors; settings of training and storage are not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qalign_fast import CheckpointError
from qalign_fast.families.mplug_owl2.config_json import parse_config, read_config
from support.goldens import GOLDEN

RAW = json.loads((GOLDEN / "narrow-448" / "config.json").read_text())


def changed(path: str, value: Any) -> dict[str, Any]:
    raw = json.loads(json.dumps(RAW))
    *parents, last = path.split("/")
    section = raw
    for key in parents:
        section = section[key]
    section[last] = value
    return raw


def test_sizes_are_read() -> None:
    config = read_config(GOLDEN / "narrow-448")
    assert (config.vision.tokens, config.abstractor.tokens) == (1025, 65)
    assert (config.vision.side, config.vision.patch, config.decoder.layers) == (448, 14, 2)
    assert config.pixels.pad == (122, 116, 104)
    assert config.max_frames(15 + 12) == 31  # what 2048 positions hold
    assert config.max_frames(18 + 15) == 31


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("rope_scaling", {"type": "linear", "factor": 2}),
        ("attention_bias", True),
        ("hidden_act", "gelu"),
        ("num_key_value_heads", 1),
        ("tie_word_embeddings", True),
        ("sliding_window", 512),
        ("quantization_config", {"bits": 4}),
        ("head_dim", 8),
        ("hidden_size", None),
        ("hidden_size", "32"),
        ("hidden_size", -32),
        ("num_attention_heads", 3),
        ("rms_norm_eps", 0),
        ("visual_config/visual_model/hidden_act", "gelu"),
        ("visual_config/visual_model/patch_size", 15),
        ("visual_config/visual_model/num_channels", 1),
        ("visual_config/visual_abstractor/grid_size", 16),
        ("visual_config/visual_abstractor/encoder_hidden_size", 64),
        ("visual_config/visual_abstractor/some_norm_kind", "rms"),
        ("visual_config", None),
    ],
)
def test_a_setting_that_changes_the_result_is_an_error_that_names_it(path: str, value: Any) -> None:
    with pytest.raises(CheckpointError) as caught:
        parse_config(changed(path, value), {})
    assert path.rsplit("/", maxsplit=1)[-1].split("_", maxsplit=1)[0] in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("softkl_loss", True),
        ("weight_rank", 1.0),
        ("level_prefix", [1, 2]),
        ("tune_visual_abstractor", True),
        ("attention_dropout", 0.1),
        ("use_cache", False),
        ("visual_config/visual_model/use_flash_attn", True),
        ("num_key_value_heads", None),
    ],
)
def test_settings_of_training_and_storage_are_ignored(path: str, value: Any) -> None:
    assert parse_config(changed(path, value), {}) == parse_config(RAW, {})


@pytest.mark.parametrize(
    "preprocessor", [{"resample": 2}, {"size": 224}, {"crop_size": {"height": 336}}, {"image_mean": [0.5]}]
)
def test_another_pixel_rule_is_an_error(preprocessor: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json"):
        parse_config(RAW, preprocessor)


def test_files_that_are_no_config(tmp_path) -> None:
    for content in ("", "{", "[]", '"x"', "\0"):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(CheckpointError):
            read_config(tmp_path)
