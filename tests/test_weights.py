"""Checkpoints in all their forms, and every way one can be wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Golden
from safetensors.torch import load_file, save_file

from qalign_fast import CheckpointError
from qalign_fast.weights import load_model

Tensors = dict[str, torch.Tensor]
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


def write(folder: Path, golden: Golden, tensors: Tensors, kind: str = "safetensors") -> Path:
    """A checkpoint like the golden one with these tensors, in one of four forms."""
    folder.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(golden.checkpoint / name, folder)
    suffix, sharded = kind.removeprefix("sharded "), kind.startswith("sharded")
    stem = {"safetensors": "model", "bin": "pytorch_model"}[suffix]
    names = sorted(tensors)
    shards = [names[: len(names) // 2], names[len(names) // 2 :]] if sharded else [names]
    files = [f"{stem}-{i + 1:05}-of-00002.{suffix}" if sharded else f"{stem}.{suffix}" for i in range(len(shards))]
    for file, shard in zip(files, shards):
        part = {name: tensors[name] for name in shard}
        save_file(part, folder / file) if suffix == "safetensors" else torch.save(part, folder / file)
    if sharded:
        index = {"weight_map": {name: file for file, shard in zip(files, shards) for name in shard}}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module")
def tensors(narrow: Golden) -> Tensors:
    return load_file(narrow.checkpoint / "model.safetensors")


@pytest.mark.parametrize("kind", ["safetensors", "bin", "sharded safetensors", "sharded bin"])
def test_every_form_gives_the_same_model(kind: str, tmp_path: Path, narrow: Golden, tensors: Tensors) -> None:
    expected = load_model(narrow.checkpoint).state_dict()
    found = load_model(write(tmp_path / "c", narrow, tensors, kind)).state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(found[name], tensor), name


def test_bin_files_from_before_torchs_zip_format(tmp_path: Path, narrow: Golden, tensors: Tensors) -> None:
    folder = write(tmp_path / "c", narrow, tensors, "bin")
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert torch.equal(load_model(folder).decoder.norm, load_model(narrow.checkpoint).decoder.norm)


def test_bfloat16_is_read_exactly(tmp_path: Path, narrow: Golden, tensors: Tensors) -> None:
    halved = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    model = load_model(write(tmp_path / "c", narrow, halved))
    assert torch.equal(model.decoder.norm, tensors["model.norm.weight"].bfloat16().float())


def test_old_rotary_buffers_are_ignored(tmp_path: Path, narrow: Golden, tensors: Tensors) -> None:
    load_model(write(tmp_path / "c", narrow, tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}))


def without(tensors: Tensors, name: str) -> Tensors:
    return {key: value for key, value in tensors.items() if key != name}


WRONG: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "a tensor is missing": (lambda t: without(t, Q_PROJ), f"1 tensor missing: {Q_PROJ}"),
    "a tensor nobody knows": (lambda t: t | {"model.extra": torch.ones(2)}, "1 unexpected tensor: model.extra"),
    "a tensor of another shape": (
        lambda t: t | {Q_PROJ: torch.ones(32, 31)},
        f"'{Q_PROJ}' has shape [32, 31]; expected [32, 32]",
    ),
    "integers": (lambda t: t | {Q_PROJ: torch.ones(32, 32, dtype=torch.int8)}, f"'{Q_PROJ}' is I8"),
    "values that are not finite": (
        lambda t: t | {Q_PROJ: torch.full((32, 32), float("nan"))},
        f"'{Q_PROJ}' holds values that are not finite",
    ),
}


@pytest.mark.parametrize("kind", list(WRONG))
def test_wrong_tensors_are_named(kind: str, tmp_path: Path, narrow: Golden, tensors: Tensors) -> None:
    change, message = WRONG[kind]
    with pytest.raises(CheckpointError) as caught:
        load_model(write(tmp_path / "c", narrow, change(tensors)))
    assert message in str(caught.value)


def test_a_missing_shard_is_named(tmp_path: Path, narrow: Golden, tensors: Tensors) -> None:
    folder = write(tmp_path / "c", narrow, tensors, "sharded safetensors")
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002.safetensors: this shard is missing"):
        load_model(folder)


def test_a_shard_outside_the_directory_is_refused(tmp_path: Path, narrow: Golden, tensors: Tensors) -> None:
    folder = write(tmp_path / "c", narrow, tensors, "sharded safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    with pytest.raises(CheckpointError, match="not a file name inside this directory"):
        load_model(folder)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_damaged_weight_files_are_named(kind: str, tmp_path: Path, narrow: Golden, tensors: Tensors) -> None:
    folder = write(tmp_path / "c", narrow, tensors, kind)
    file = next(folder.glob(f"*.{kind}"))
    whole = file.read_bytes()
    for damaged in (b"", b"x" * 100, whole[:50], whole[: len(whole) // 2]):
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=file.name):
            load_model(folder)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, narrow: Golden, tensors: Tensors) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    folder = write(tmp_path / "c", narrow, tensors, "bin")
    torch.save({"a": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="not a readable weight file"):
        load_model(folder)
    assert not (tmp_path / "ran").exists()


def test_a_folder_without_weights(tmp_path: Path, narrow: Golden) -> None:
    shutil.copy(narrow.checkpoint / "config.json", tmp_path)
    with pytest.raises(CheckpointError, match=r"no weights; expected model\.safetensors"):
        load_model(tmp_path)
