"""An adapter's folder that is not right is refused with the reason; its base is found; its identity is its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from qalign_fast import ArtifactError, CheckpointError, OptionError
from qalign_fast.families.adapters import base_remark, find_base, read_adapter_config
from qalign_fast.families.mplug_owl2.config_json import read_config
from qalign_fast.families.mplug_owl2.model.checkpoint import Checkpoint, load_model
from qalign_fast.identity import hash_model, identify_model, tasks_of
from qalign_fast.references import name_of
from support.adapters import named, random_parts, write_adapter
from support.goldens import GOLDEN, Golden

LORA, BASE = GOLDEN / "lora-112", GOLDEN / "narrow-112"
Q = "model.layers.0.self_attn.q_proj"
A, B = (f"base_model.model.{Q}.lora_{letter}.weight" for letter in "AB")
NORM = "base_model.model.model.norm.weight"
Tensors = dict[str, Tensor]


def adapter(folder: Path, change: Callable[[Tensors], Tensors] = lambda t: t, **settings: Any) -> Path:
    parts = random_parts(read_config(BASE), [Q])
    whole = settings.pop("whole", None)
    defaults = {"base_model_name_or_path": str(BASE), "target_modules": [Q]}
    return write_adapter(folder, change(named(parts)), defaults | settings, whole=whole)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("peft_type", "ADALORA"),
        ("peft_type", "IA3"),
        ("bias", "all"),
        ("bias", "lora_only"),
        ("use_dora", True),
        ("fan_in_fan_out", True),
        ("modules_to_save", ["lm_head"]),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "loftq"),
        ("layer_replication", [[0, 2]]),
        ("trainable_token_indices", [1]),
        ("lora_bias", True),
        ("target_parameters", ["mlp.experts.weight"]),
        ("megatron_config", {"a": 1}),
        ("what_comes_next_year", True),
        ("r", 0),
        ("r", "4"),
        ("r", None),
        ("lora_alpha", None),
        ("lora_alpha", float("nan")),
        ("target_modules", None),
        ("target_modules", []),
        ("target_modules", [1]),
        ("target_modules", "("),
        ("rank_pattern", {"q_proj": -1}),
        ("rank_pattern", {"(": 1}),
        ("alpha_pattern", {"q_proj": "1"}),
        ("alpha_pattern", [1]),
    ],
)
def test_a_setting_that_changes_the_result_is_an_error_that_names_it(key: str, value: Any, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", **{key: value})
    with pytest.raises(CheckpointError, match=f"adapter_config.json: '{key}"):
        load_model(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_dora", False),
        ("init_lora_weights", "gaussian"),
        ("init_lora_weights", False),
        ("layer_replication", None),
        ("lora_bias", False),
        ("peft_version", "0.18.0"),
        ("eva_config", None),
        ("exclude_modules", None),
        ("inference_mode", False),
        ("lora_dropout", 0.5),
    ],
)
def test_settings_of_training_and_those_that_are_off_are_ignored(key: str, value: Any, tmp_path: Path) -> None:
    plain, more = adapter(tmp_path / "a"), adapter(tmp_path / "b", **{key: value})
    assert read_adapter_config(more) == read_adapter_config(plain)


@pytest.mark.parametrize("content", ["", "{", "[]", '"x"', "\0", None])
def test_files_that_are_no_settings(content: str | None, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a")
    (folder / "adapter_config.json").unlink()
    if content is None:
        (folder / "adapter_config.json").mkdir()
        with pytest.raises(CheckpointError):
            read_adapter_config(folder)
    else:
        (folder / "adapter_config.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"adapter_config\.json"):
            load_model(folder)


WRONG: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "no A": (lambda t: {B: t[B]}, f"'{Q}' has no lora_A, only lora_B"),
    "no B": (lambda t: {A: t[A]}, f"'{Q}' has no lora_B, only lora_A"),
    "a module nobody knows": (
        lambda t: t | {A.replace("q_proj", "qq_proj"): t[A]},
        "qq_proj.lora_A.weight' is no A or B of a linear that the base has",
    ),
    "a layer that is not there": (lambda t: t | {A.replace("s.0.", "s.9."): t[A]}, "is no A or B of a linear"),
    "a norm": (lambda t: t | {"base_model.model.model.norm.lora_A.weight": t[A]}, "is no A or B of a linear"),
    "embeddings": (lambda t: t | {"base_model.model.model.embed_tokens.lora_A.weight": t[A]}, "is no A or B"),
    "an embedding's form": (
        lambda t: t | {"base_model.model.model.embed_tokens.lora_embedding_A": t[A]},
        "lora_embedding_A' is no A or B",
    ),
    "another adapter's name": (lambda t: t | {A.replace("A.", "A.other."): t[A]}, "lora_A.other.weight' is no A or B"),
    "DoRA's magnitude": (
        lambda t: t | {f"base_model.model.{Q}.lora_magnitude_vector": t[A][0]},
        "lora_magnitude_vector' is no A or B",
    ),
    "a bias": (lambda t: t | {f"base_model.model.{Q}.bias": t[A][0]}, f"{Q}.bias' is no A or B"),
    "a linear that is no target": (
        lambda t: t | {key.replace("q_proj", "o_proj"): tensor for key, tensor in t.items()},
        "target_modules does not name its module",
    ),
    "A of another width": (lambda t: t | {A: torch.ones(2, 31)}, f"'{A}' has shape [2, 31]; expected [2, 32]"),
    "B of another width": (lambda t: t | {B: torch.ones(31, 2)}, f"'{B}' has shape [31, 2]; expected [32, 2]"),
    "another rank": (
        lambda t: {A: torch.ones(3, 32), B: torch.ones(32, 3)},
        f"'{A}' has shape [3, 32]; expected [2, 32]",
    ),
    "whole numbers": (lambda t: t | {A: torch.ones(2, 32, dtype=torch.int8)}, f"'{A}' is I8"),
    "twice": (lambda t: t | {A.replace("A.w", "A.default.w"): t[A]}, "is there a second time"),
    "A that is not finite": (lambda t: t | {A: torch.full((2, 32), float("inf"))}, f"'{A}' holds values that are not"),
    "B that is not finite": (lambda t: t | {B: torch.full((32, 2), float("nan"))}, f"'{B}' holds values that are not"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_tensors_are_named(kind: str, tmp_path: Path) -> None:
    change, message = WRONG[kind]
    with pytest.raises(CheckpointError) as caught:
        load_model(adapter(tmp_path / "a", change))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("whole", "message"),
    [
        ({"base_model.model.model.extra": torch.ones(2)}, "extra' is no tensor that the base has"),
        ({NORM: torch.ones(31)}, r"has shape \[31\]; expected \[32\]"),
        ({NORM: torch.ones(32, dtype=torch.int64)}, "is int64"),
        ({NORM: torch.ones(32), "model.norm.weight": torch.ones(32)}, "is there a second time"),
        ({NORM: torch.full((32,), float("nan"))}, "holds values that are not finite"),
        ({f"base_model.model.{Q.replace('q_', 'o_')}.base_layer.weight": torch.ones(32, 32)}, "is no tensor that"),
        ({f"base_model.model.{Q}.lora_A.default.weight": torch.ones(2, 32)}, "is no tensor that the base has"),
    ],
)
def test_wrong_whole_tensors_are_named(whole: Tensors, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"non_lora_trainables\.bin.*{message}"):
        load_model(adapter(tmp_path / "a", whole=whole))


def test_patterns_that_versions_of_peft_read_differently_are_refused(tmp_path: Path) -> None:
    patterns = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"self_attn.q_proj": 8}}
    with pytest.raises(CheckpointError, match=f"rank_pattern and alpha_pattern name '{Q}' by different patterns"):
        load_model(adapter(tmp_path / "a", **patterns))
    same = patterns | {"rank_pattern": {"self_attn.q_proj": 2}}
    assert read_adapter_config(adapter(tmp_path / "b", **same)).scaling(Q) == 4


def test_a_target_without_tensors_is_named(tmp_path: Path) -> None:
    for i, targets in enumerate(([Q, "o_proj"], [Q, "model.layers.1.self_attn.q_proj"])):
        with pytest.raises(CheckpointError, match=f"has nothing for 1 of target_modules: {targets[1]}"):
            load_model(adapter(tmp_path / str(i), target_modules=targets))


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    for i, name in enumerate(("adapter_model.bin", "non_lora_trainables.bin")):
        folder = adapter(tmp_path / str(i))
        if i == 0:
            (folder / "adapter_model.safetensors").unlink()
        torch.save({"a": Evil()}, folder / name)
        with pytest.raises(CheckpointError, match=f"{name}: not a readable weight file"):
            load_model(folder)
    assert not (tmp_path / "ran").exists()


def test_a_folder_without_the_adapters_weights_and_one_with_a_whole_model(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a")
    shutil.copy(BASE / "model.safetensors", folder)
    with pytest.raises(CheckpointError, match="holds an adapter and a whole model"):
        load_model(folder)
    (folder / "model.safetensors").unlink()
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no weights of the adapter; expected adapter_model\.safetensors"):
        load_model(folder)


def test_an_abstractor_that_was_trained_has_to_be_there(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(LORA, tmp_path / "a"))
    (folder / "non_lora_trainables.bin").unlink()
    with pytest.raises(CheckpointError, match=r"tune_visual_abstractor.*non_lora_trainables\.bin should have them"):
        load_model(folder, BASE)


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("rms_norm_eps", 1e-5, "decoder eps 1e-05"),
        ("rope_theta", 5e5, "decoder rope_theta 500000.0"),
        ("num_hidden_layers", 2, "decoder layers 2"),
    ],
)
def test_an_adapter_of_other_sizes_than_its_base_is_refused(path: str, value: Any, told: str, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a")
    raw = json.loads((BASE / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {path: value}))
    with pytest.raises(CheckpointError, match=f"was trained with {told}; its base .*narrow-112 has"):
        load_model(folder)


def test_a_base_is_found_as_it_is_recorded(tmp_path: Path, here: Path) -> None:
    shutil.copytree(BASE, tmp_path / "narrow-112")
    shutil.copytree(BASE, tmp_path / "q-future" / "narrow-112")
    expected = {
        str(tmp_path / "narrow-112"): "narrow-112",
        "../narrow-112": "narrow-112",
        "../narrow-112/": "narrow-112",
        "q-future/narrow-112": "q-future/narrow-112",  # looks like a Hub id, but is here
    }
    for i, (recorded, base) in enumerate(expected.items()):
        found = find_base(adapter(tmp_path / f"a{i}", base_model_name_or_path=recorded))
        assert found is not None
        assert found.resolve() == (tmp_path / base).resolve()


@pytest.mark.parametrize(
    ("recorded", "message"),
    [
        ("../ModelZoo/mplug-owl2-llama2-7b/", r"base '\.\./ModelZoo/mplug-owl2-llama2-7b/' was not found.*--base"),
        ("", r"names no base_model_name_or_path; give the base \(--base\)"),
        (None, r"names no base_model_name_or_path; give the base \(--base\)"),
        (str(LORA), r"lora-112: an adapter itself"),
        (str(GOLDEN / "pictures"), r"pictures: no checkpoint \(no config.json\)"),
    ],
)
def test_a_base_that_is_none_is_refused(recorded: str | None, message: str, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", base_model_name_or_path=recorded)
    with pytest.raises(CheckpointError, match=message):
        load_model(folder)
    if recorded in ("", None):
        load_model(folder, BASE)


def test_a_base_of_what_has_none_is_refused(tmp_path: Path, narrow: Golden) -> None:
    with pytest.raises(OptionError, match="is not a LoRA adapter"):
        find_base(BASE, BASE)
    with pytest.raises(ArtifactError, match="no such directory"):
        find_base(LORA, tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        find_base(LORA, narrow.artifact)


def test_a_base_of_another_name_is_remarked_on(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", base_model_name_or_path="q-future/One-Align")
    cached = tmp_path / "models--q-future--one-align" / "snapshots" / "0a1b"
    cached.mkdir(parents=True)
    for same in ("q-future/one-align", "someone/ONE-ALIGN", tmp_path / "one-align", "one-align/", cached):
        assert base_remark(folder, same) is None, same
    assert base_remark(folder, None) is None
    for other in ("MAGAer13/mplug-owl2-llama2-7b", tmp_path / "one-align-2"):
        assert f"was trained on q-future/One-Align, and {other} is used" in str(base_remark(folder, other))
    assert name_of(cached) == "one-align"


def test_the_config_may_be_the_bases(tmp_path: Path) -> None:
    """And the pixels' rule, which a folder without preprocessor_config.json has from its base."""
    base = Path(shutil.copytree(BASE, tmp_path / "narrow-112"))
    file = base / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"image_mean": [0.5, 0.5, 0.5]}))
    for folder in (adapter(tmp_path / "a"), Path(shutil.copytree(LORA, tmp_path / "b"))):
        assert Checkpoint(folder, base).config == read_config(base)
    assert tasks_of(tmp_path / "a") == tasks_of(BASE)


def test_adapters_are_told_apart_by_content_and_by_base(tmp_path: Path) -> None:
    """Of two splits' adapters, all files have one size."""
    first, same = adapter(tmp_path / "a"), adapter(tmp_path / "b")
    second = adapter(tmp_path / "c", lambda t: t | {B: t[B] + 1})
    whole = [adapter(tmp_path / f"w{i}", whole={NORM: torch.full((32,), float(i))}) for i in range(2)]
    scaled = adapter(tmp_path / "d", lora_alpha=5)
    base = Path(shutil.copytree(BASE, tmp_path / "narrow-112"))
    (base / "config.json").write_text((base / "config.json").read_text() + "\n")
    hashes = [hash_model(folder) for folder in (first, second, *whole, scaled, BASE)]
    assert len({*hashes, hash_model(first, base)}) == len(hashes) + 1
    assert hash_model(same) == hashes[0]
    about = identify_model(first, base=BASE)
    assert about == {"name": "a", "sha256": hashes[0], "precision": "fp32", "family": "mplug_owl2"}
