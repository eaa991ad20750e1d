"""Fetching by Hub id from a small Hub on this machine: requests, resuming, refusals, and the cache when offline."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from qalign_fast.levels import score_of
from support.fake_hub import Hub, running_hub
from support.goldens import GOLDEN, PICTURES, Golden

SCORE = (
    "import os, shutil, sys\n"
    "if len(sys.argv) > 1: shutil.disk_usage = lambda _: type('Usage', (), {'free': int(sys.argv[1])})\n"
    "from qalign_fast import ArtifactError, Scorer\n"
    f"picture = {str(PICTURES / 'chelsea_small.png')!r}\n"
    "try: print(Scorer.load(os.environ.get('MODEL', 'q-future/one-align')).score(picture).value)\n"
    "except ArtifactError as error: print('error:', error)"
)
NOT_FETCHED = "q-future/one-align: no such directory, and it could not be fetched from the Hub"


@pytest.fixture
def hub(narrow: Golden, tmp_path: Path) -> Iterator[Hub]:
    folder = Path(shutil.copytree(narrow.checkpoint, tmp_path / "repository"))
    (folder / "expected.npz").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"the same once more, in another form")
    with running_hub(folder) as server:
        yield server


def score(hub: Hub, tmp_path: Path, *arguments: str, **environment: str) -> str:
    settings = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
    run = subprocess.run(
        [sys.executable, "-c", SCORE, *arguments],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), **settings, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return run.stdout.strip()


def test_a_model_is_fetched_once_and_found_again_offline(hub: Hub, tmp_path: Path) -> None:
    first = score(hub, tmp_path)
    assert 1 <= float(first) <= 5
    assert {name for name, _ in hub.asked} == {"config.json", "preprocessor_config.json", "model.safetensors"}
    hub.asked.clear()
    assert score(hub, tmp_path) == first
    assert score(hub, tmp_path, HF_HUB_OFFLINE="1") == first
    assert score(hub, tmp_path, HF_ENDPOINT="http://127.0.0.1:9") == first  # nobody there
    assert hub.asked == []


def test_pickled_weights_are_fetched_where_there_are_no_others(hub: Hub, tmp_path: Path) -> None:
    torch.save(load_file(hub.folder / "model.safetensors"), hub.folder / "pytorch_model.bin")
    (hub.folder / "model.safetensors").unlink()
    first = score(hub, tmp_path)
    assert 1 <= float(first) <= 5
    assert score(hub, tmp_path, HF_HUB_OFFLINE="1") == first


def test_an_adapters_tensors_that_no_other_file_has_are_fetched(hub: Hub, tmp_path: Path) -> None:
    """Although they are a pickle beside safetensors."""
    shutil.rmtree(hub.folder)
    shutil.copytree(GOLDEN / "lora-112", hub.folder)
    settings = json.loads((hub.folder / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(GOLDEN / "narrow-112")
    (hub.folder / "adapter_config.json").write_text(json.dumps(settings))
    (hub.folder / "training_args.bin").write_bytes(b"which nobody needs")
    first = float(score(hub, tmp_path))
    logits = np.load(GOLDEN / "lora-112" / "expected.npz")["merged_logits_quality_image"]
    order = list(np.load(GOLDEN / "narrow-112" / "expected.npz")["picture_names"])
    expected = score_of(logits[order.index("chelsea_small.png")], "quality").value
    assert first == pytest.approx(expected, abs=1e-4)
    assert "training_args.bin" not in {name for name, _ in hub.asked}
    assert score(hub, tmp_path, HF_HUB_OFFLINE="1") == str(first)


def test_a_download_that_was_cut_off_goes_on_where_it_was(hub: Hub, tmp_path: Path) -> None:
    large = hub.folder / "tokenizer.model"  # huggingface_hub writes 10 MB at a time
    large.write_bytes(bytes(30 << 20))
    hub.cut = {large.name: 1}
    assert 1 <= float(score(hub, tmp_path)) <= 5
    assert [wanted for name, wanted in hub.asked if name == large.name] == [None, f"bytes={10 << 20}-"]


def test_a_fetch_that_failed_is_one_error_and_the_next_asks_only_for_what_is_missing(hub: Hub, tmp_path: Path) -> None:
    """huggingface_hub keeps whole files only: since its pull request 4306 no later call continues half of one."""
    hub.cut = {"model.safetensors": 100}  # more often than the client tries again
    said = score(hub, tmp_path)
    assert said.startswith(f"error: {NOT_FETCHED} (RemoteProtocolError: ")
    assert "\n" not in said
    assert score(hub, tmp_path, HF_HUB_OFFLINE="1").startswith(f"error: {NOT_FETCHED} (OfflineModeIsEnabled: ")
    hub.cut.clear()
    hub.asked.clear()
    assert 1 <= float(score(hub, tmp_path)) <= 5
    assert hub.asked == [("model.safetensors", None)]


def test_too_little_disk_is_said_before_anything_is_fetched(hub: Hub, tmp_path: Path) -> None:
    needed = sum(path.stat().st_size for path in hub.folder.iterdir() if path.suffix != ".bin")
    said = score(hub, tmp_path, str(needed - 1))
    size = f"{needed / 1e9:.2f} GB"
    assert said == f"error: q-future/one-align: needs {size}, {size} free at {tmp_path}/cache/hub"
    assert hub.asked == []
    assert 1 <= float(score(hub, tmp_path, str(needed))) <= 5
    assert 1 <= float(score(hub, tmp_path, "0")) <= 5  # all there


def test_an_artifact_is_fetched_like_a_checkpoint(hub: Hub, narrow: Golden, tmp_path: Path) -> None:
    shutil.rmtree(hub.folder)
    shutil.copytree(narrow.artifact, hub.folder)
    assert 1 <= float(score(hub, tmp_path)) <= 5


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "OfflineModeIsEnabled"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "ConnectError"),  # nobody there
        ({"HF_ENDPOINT": "example"}, "UnsupportedProtocol"),
        ({"MODEL": "q-future/other"}, "RepositoryNotFoundError"),
        ({"MODEL": "q-future/one--align"}, "HFValidationError"),
    ],
)
def test_an_id_that_cannot_be_fetched_is_one_error(
    hub: Hub, tmp_path: Path, settings: dict[str, str], error: str
) -> None:
    said = score(hub, tmp_path, **settings)
    model = settings.get("MODEL", "q-future/one-align")
    assert said.startswith(f"error: {NOT_FETCHED.replace('q-future/one-align', model)} ({error}: ")
    assert "\n" not in said
