"""A second family, `support.tiny_family`, is a folder and a line in the registry. No other file is changed for it."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from qalign_fast import ArtifactError, CheckpointError, DeviceError, Scorer, TaskError, VideoError
from qalign_fast.artifact.manifest import MANIFEST, Manifest, PromptEntry, hash_file, read_manifest
from qalign_fast.artifact.manifest import PROMPTS as PROMPT_FILE
from qalign_fast.cli.app import make_app
from qalign_fast.families import registry
from support.clips import constant, write_clip
from support.goldens import PICTURES, Golden
from support.tiny_family.family import FAMILY, PROMPTS
from support.tiny_family.models import load_model, random_checkpoint
from support.tiny_family.sizes import TinySizes

SIZES = TinySizes(width=24, patch=4, longest=48)
FILES = sorted(PICTURES.iterdir())


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.FAMILIES, "tiny", "support.tiny_family.family")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "config.json").write_text(json.dumps({"model_type": "tiny", **dataclasses.asdict(SIZES)}))
    save_file(random_checkpoint(SIZES), folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def artifact(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, model = tmp_path_factory.mktemp("tiny-artifact"), load_model(checkpoint)
    (folder / "torch").mkdir()
    save_file({name: x for name, x in model.tensors.items() if name != "words"}, folder / "torch/model.safetensors")
    constants = {p.name: model.constants(p) for p in PROMPTS}
    parts = {f"{name}.{i}": x.contiguous() for name, found in constants.items() for i, x in enumerate(found)}
    save_file(parts, folder / PROMPT_FILE)
    files = {name: hash_file(folder / name) for name in (PROMPT_FILE, "torch/model.safetensors")}
    manifest = Manifest(
        name="tiny",
        source={"name": "tiny", "sha256": "0" * 64},
        license="none",
        family=FAMILY,
        config=SIZES,
        levels=tuple(zip(FAMILY.scale.words, FAMILY.level_ids)),
        prompts=tuple(PromptEntry(p, f"{p.name}.0", f"{p.name}.1") for p in PROMPTS),
        precision="fp32",
        quantization=None,
        engines={"torch": {"weights": "torch/model.safetensors"}},
        files=files,
        fidelity=None,
        made_with={"qalign-fast": "0.1.0"},
    )
    (folder / MANIFEST).write_text(manifest.to_json())
    return folder


def directly(checkpoint: Path, picture: Path) -> float:
    """The score, computed by the family's own code alone."""
    model = load_model(checkpoint)
    pixels = SIZES.pixels.apply(Image.open(picture).convert("RGB"), None)
    logits = model.decode(model.encode(torch.from_numpy(pixels.copy())[None]), *model.constants(PROMPTS[0]))
    return float(logits[0].softmax(-1) @ torch.tensor([10.0, 5.0, 0.0]))


def test_a_checkpoint_is_recognized_and_its_pictures_keep_their_sizes(checkpoint: Path) -> None:
    scorer = Scorer.load(checkpoint)
    assert scorer.tasks() == ("sharpness",)
    shapes = {SIZES.pixels.apply(Image.open(file).convert("RGB"), None).shape for file in FILES}
    assert len(shapes) > 2  # of several sizes in one batch
    scores = scorer.score(FILES, task="sharpness")
    for file, score in zip(FILES, scores, strict=True):
        assert score.value == pytest.approx(directly(checkpoint, file), abs=1e-5)
        assert score.unit == pytest.approx(score.value / 10)
        assert list(score.probabilities) == ["sharp", "soft", "blurred"]
        assert score.level == ("sharp" if score.value > 20 / 3 else "soft" if score.value > 10 / 3 else "blurred")
    assert len({round(score.value, 3) for score in scores}) == len(FILES)


def test_an_artifact_gives_its_checkpoints_scores(checkpoint: Path, artifact: Path) -> None:
    expected = Scorer.load(checkpoint).score(FILES, task="sharpness")
    assert Scorer.load(artifact).score(FILES, task="sharpness") == expected
    assert Scorer.load(artifact).warm().score(FILES[0], task="sharpness") == expected[0]
    assert read_manifest(artifact / MANIFEST).family is FAMILY


def test_clips_too(artifact: Path, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "c.mkv", constant(75, 25), 25)
    score = Scorer.load(artifact).score_video(clip, "sharpness")
    assert score.frames == 3
    with pytest.raises(TaskError, match="for videos it has: sharpness"):
        Scorer.load(artifact).score_video(clip, "quality", max_frames=8)


def test_the_command_line_shows_its_levels_and_range(artifact: Path, checkpoint: Path) -> None:
    options = ["score", str(FILES[0]), "--model", str(artifact), "--task", "sharpness"]
    run = CliRunner().invoke(make_app([]), [*options, "--format", "csv"])
    assert run.exit_code == 0, run.output
    [row] = csv.DictReader(io.StringIO(run.stdout))
    assert float(row["score"]) == pytest.approx(directly(checkpoint, FILES[0]), abs=1e-4)
    assert sum(float(row[word]) for word in ("sharp", "soft", "blurred")) == pytest.approx(1, abs=1e-5)
    assert "score 0..10" in CliRunner().invoke(make_app([]), [*options, "--format", "table"]).stdout
    assert "48 on the longer side" in CliRunner().invoke(make_app([]), ["info", str(artifact)]).stdout


def test_what_the_family_lacks_is_said(artifact: Path, narrow: Golden) -> None:
    with pytest.raises(DeviceError, match="has no weights for engine 'onnx'; available: torch"):
        Scorer.load(artifact, engine="onnx")
    manifest = artifact / MANIFEST
    whole = manifest.read_text()
    with pytest.raises(ArtifactError, match="levels"):
        try:
            other = dataclasses.replace(read_manifest(manifest), levels=(("good", 1), ("bad", 2)))
            manifest.write_text(other.to_json())
            Scorer.load(artifact)
        finally:
            manifest.write_text(whole)
    assert Scorer.load(narrow.artifact).tasks()[0] == "quality"  # the first family is as it was


def test_a_checkpoint_that_no_family_recognizes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "other"}')
    with pytest.raises(CheckpointError, match="not a checkpoint of the Q-Align family"):
        Scorer.load(tmp_path)


def test_batch_neighbours_of_other_sizes_change_nothing(checkpoint: Path) -> None:
    scorer = Scorer.load(checkpoint)
    alone = [scorer.score(file, "sharpness").value for file in FILES]
    together = [score.value for score in scorer.score_iter([*FILES, *FILES], "sharpness", batch_size=5)]
    np.testing.assert_allclose(together, [*alone, *alone], rtol=0, atol=1e-5)


def test_a_checkpoint_has_the_precisions_that_its_family_has(checkpoint: Path) -> None:
    with pytest.raises(DeviceError, match="has no precision 'bnb-int8'; available: fp32"):
        Scorer.load(checkpoint, precision="bnb-int8")


def test_frames_of_several_sizes_are_no_clip(checkpoint: Path) -> None:
    frames = [np.zeros((40, 80, 3), np.uint8), np.zeros((80, 40, 3), np.uint8)]
    with pytest.raises(VideoError, match="its frames have several sizes"):
        Scorer.load(checkpoint).score_video(frames, "sharpness")


def test_all_tasks_are_the_familys_where_it_has_neither_quality_nor_aesthetics(checkpoint: Path) -> None:
    options = ["score", str(FILES[0]), "--model", str(checkpoint), "--task", "all", "--format", "jsonl"]
    [line] = CliRunner().invoke(make_app([]), options).stdout.splitlines()
    assert json.loads(line)["task"] == "sharpness"
