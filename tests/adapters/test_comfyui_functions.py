"""What ComfyUI's nodes do with tensors, without ComfyUI: pixels as in its files, scores, gates, files with scores."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from qalign_fast import Scorer
from qalign_fast.adapters import comfyui
from qalign_fast.errors import ArtifactError, OptionError, TaskError
from support.clips import FILM, film
from support.goldens import ROOT, Golden


@pytest.fixture(scope="module")
def scorer(goldens: dict[str, Golden]) -> Scorer:
    return Scorer.load(goldens["narrow-112"].artifact)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(3, 40, 60, 3, generator=torch.Generator().manual_seed(0))


def test_pixels_are_those_of_the_files_that_comfyui_saves() -> None:
    """Its rule for files: numpy.clip(255 * values, 0, 255) as uint8. A file's 256 levels come back as they were."""
    values = torch.linspace(-0.5, 1.5, 3 * 37 * 41).reshape(1, 37, 41, 3)
    [found] = comfyui.pictures(values)
    assert np.array_equal(found, np.clip(255.0 * values[0].numpy(), 0, 255).astype(np.uint8))
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    [found] = comfyui.pictures(torch.from_numpy(levels.astype(np.float32) / 255.0))
    assert np.array_equal(found, levels[0])


def test_what_is_not_a_number_is_black_as_in_comfyuis_files() -> None:
    values = torch.tensor([math.nan, math.inf, -math.inf]).expand(1, 2, 2, 3)
    assert comfyui.pictures(values)[0].tolist() == [[[0, 255, 0]] * 2] * 2


@pytest.mark.parametrize("task", comfyui.TASKS)
def test_scores_are_those_of_the_saved_files(scorer: Scorer, images: torch.Tensor, task: str, tmp_path: Path) -> None:
    scores, mean, text = comfyui.score(scorer, images, task)
    names = comfyui.save(images, scores, tmp_path, "QAlign", 7, texts={"prompt": "{}"})
    assert names == [f"QAlign_{7 + i:05}_{score.value:.2f}.png" for i, score in enumerate(scores)]
    assert scores == scorer.score([tmp_path / name for name in names], task)
    assert mean == pytest.approx(sum(score.value for score in scores) / 3)
    assert text.splitlines() == [f"{score.value:.4f} {score.level}" for score in scores]
    texts = Image.open(tmp_path / names[0]).info
    told = json.loads(texts[comfyui.PNG_TEXT])
    assert (told["task"], told["score"], told["level"]) == (task, round(scores[0].value, 4), scores[0].level)
    assert texts["prompt"] == "{}"


def test_one_picture_a_grey_one_and_one_with_alpha_are_scored_as_their_files(scorer: Scorer, tmp_path: Path) -> None:
    for channels in (1, 3, 4):
        image = torch.rand(1, 20, 30, channels, generator=torch.Generator().manual_seed(channels))
        scores, *_ = comfyui.score(scorer, image)
        [name] = comfyui.save(image, scores, tmp_path, f"c{channels}", 1, score_in_name=False)
        assert name == f"c{channels}_00001_.png"
        assert [scorer.score(tmp_path / name)] == scores


def test_a_gate_keeps_the_threshold_itself_and_loses_no_picture(scorer: Scorer, images: torch.Tensor) -> None:
    scores, *_ = comfyui.score(scorer, images)
    ranked = sorted(range(3), key=lambda i: -scores[i].value)
    kept, rejected, kept_scores, rejected_scores = comfyui.gate(images, scores, scores[ranked[1]].value)
    above = sorted(ranked[:2])
    assert kept is not None and rejected is not None
    assert torch.equal(kept, images[above])
    assert torch.equal(rejected, images[ranked[2:]])
    assert kept_scores == [scores[i] for i in above]
    assert rejected_scores == [scores[ranked[2]]]
    assert comfyui.gate(images, scores, 5.1)[0] is None
    assert comfyui.gate(images, scores, 0.9)[1] is None


def test_the_best_come_first(scorer: Scorer, images: torch.Tensor) -> None:
    scores, *_ = comfyui.score(scorer, images)
    ranked = sorted(range(3), key=lambda i: -scores[i].value)
    found, found_scores = comfyui.best(images, scores, 2)
    assert torch.equal(found, images[ranked[:2]])
    assert found_scores == [scores[i] for i in ranked[:2]]
    assert len(comfyui.best(images, scores, 9)[1]) == 3
    with pytest.raises(OptionError, match="count is 0"):
        comfyui.best(images, scores, 0)


def test_scores_of_other_pictures_are_refused(scorer: Scorer, images: torch.Tensor, tmp_path: Path) -> None:
    scores, *_ = comfyui.score(scorer, images[:2])
    for refuse in (
        lambda: comfyui.gate(images, scores, 3),
        lambda: comfyui.best(images, scores, 1),
        lambda: comfyui.save(images, scores, tmp_path, "a", 1),
    ):
        with pytest.raises(OptionError, match="3 pictures and 2 scores"):
            refuse()
    assert not list(tmp_path.iterdir())


def test_frames_with_their_rate_score_as_the_video_file(scorer: Scorer) -> None:
    """A film of 3 s, 10 frames a second, in a file without loss."""
    frames = torch.from_numpy(np.stack(FILM).astype(np.float32) / 255.0)
    assert comfyui.score_frames(scorer, frames, frame_rate=10) == scorer.score_video(film("png", ".mov"))
    every = comfyui.score_frames(scorer, frames[:5])
    assert every == scorer.score_video(FILM[:5])
    assert every.frames == 5


def test_frames_that_were_left_out_are_told(scorer: Scorer) -> None:
    score = comfyui.score_frames(scorer, torch.zeros(40, 8, 8, 3))
    assert comfyui.text_of(score).startswith(f"{score.value:.4f} {score.level}; ")
    assert "of 40 frames" in comfyui.text_of(score)


def test_the_last_model_stays_loaded(goldens: dict[str, Golden]) -> None:
    path = goldens["narrow-112"].artifact
    first = comfyui.load(f' "{path}" ')
    assert comfyui.load(str(path)) is first
    other = comfyui.load(str(path), "cpu")
    assert other is not first
    assert list(comfyui._LOADED.values()) == [other]


def test_a_model_or_task_that_is_not_there_is_told(scorer: Scorer, images: torch.Tensor, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="none"):
        comfyui.load(str(tmp_path / "none"))
    with pytest.raises(TaskError, match="sharpness"):
        comfyui.score(scorer, images, "sharpness")


def import_folder(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The folder of nodes as ComfyUI imports it: by its path."""
    path = ROOT / "integrations/comfyui/__init__.py"
    spec = importlib.util.spec_from_file_location("folder_of_nodes", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_comfyui_without_the_new_interface_gets_the_nodes_by_the_old_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """No comfy_api is installed here, as in ComfyUI of before August 2025."""
    folder = import_folder(monkeypatch)
    assert len(folder.NODE_CLASS_MAPPINGS) == 7
    assert list(folder.NODE_CLASS_MAPPINGS) == list(folder.NODE_DISPLAY_NAME_MAPPINGS)
    assert not hasattr(folder, "comfy_entrypoint")


def test_a_comfyui_without_our_package_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "qalign_fast.adapters", None)
    with pytest.raises(ImportError, match=r"pip install 'qalign-fast\[video\]'"):
        import_folder(monkeypatch)
