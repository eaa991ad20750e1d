"""Checkpoints in all their forms, and every way one can be wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qalign_fast import CheckpointError
from qalign_fast.families.mplug_owl2.model.checkpoint import load_model
from support.checkpoints import WRONG, Tensors, write
from support.goldens import Golden


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
