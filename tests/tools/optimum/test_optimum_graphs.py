"""What docs/artifact.md says about Hugging Face optimum, sentence by sentence."""

from __future__ import annotations

import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from optimum.commands.optimum_cli import main
from optimum.onnxruntime import ORTModelForCustomTasks
from transformers import PretrainedConfig

from qalign_export.options import ExportOptions
from qalign_export.writer import export_artifact
from qalign_fast import Scorer
from support.artifacts import seal_files
from support.documents import ROOT

NARROW, MINI = ROOT / "tests/golden/narrow-112", ROOT / "models/mini"
PHOTOS = sorted((ROOT / "samples").glob("*.jpg"))


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights in files of their own, as a full-size model has them."""
    return export_artifact(NARROW, tmp_path_factory.mktemp("narrow") / "a", ExportOptions("fp32", external_from=0))


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_artifact(MINI, tmp_path_factory.mktemp("mini") / "a", ExportOptions("fp32", ("onnx",), ["quality"]))


@pytest.fixture
def copy(artifact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(artifact, tmp_path / "a"))


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.load(NARROW / "expected.npz")["resized_uint8"]


@pytest.fixture(scope="module")
def session(artifact: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(artifact / "onnx/vision_encoder.onnx")


@pytest.fixture(scope="module")
def expected(session: onnxruntime.InferenceSession, pixels: np.ndarray) -> np.ndarray:
    return session.run(None, {"pixels": pixels})[0]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`optimum-cli`, in this process: importing it takes seconds."""

    def run(*arguments: str | Path) -> None:
        monkeypatch.setattr(sys, "argv", ["optimum-cli", *map(str, arguments)])
        main()

    return run


def test_a_session_gives_onnxruntimes_bits(
    session: onnxruntime.InferenceSession, pixels: np.ndarray, expected: np.ndarray
) -> None:
    model = ORTModelForCustomTasks(session=session, config=PretrainedConfig())
    np.testing.assert_array_equal(model(pixels=pixels)["visual_tokens"], expected)


def test_from_pretrained_needs_a_config(copy: Path, pixels: np.ndarray, expected: np.ndarray) -> None:
    which = {"subfolder": "onnx", "file_name": "vision_encoder.onnx", "config": PretrainedConfig()}
    with pytest.raises(ValueError, match="library name could not be automatically inferred"):
        ORTModelForCustomTasks.from_pretrained(copy, **which)
    (copy / "config.json").write_text("{}")
    model = ORTModelForCustomTasks.from_pretrained(copy, **which)
    np.testing.assert_array_equal(model(pixels=pixels)["visual_tokens"], expected)


def test_other_types_are_cast_without_a_word(
    session: onnxruntime.InferenceSession, pixels: np.ndarray, expected: np.ndarray
) -> None:
    model = ORTModelForCustomTasks(session=session, config=PretrainedConfig())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        as_floats = model(pixels=pixels.astype(np.float32))["visual_tokens"]
        black = model(pixels=(pixels / 256).astype(np.float32))["visual_tokens"]
    np.testing.assert_array_equal(as_floats, expected)
    np.testing.assert_array_equal(black, session.run(None, {"pixels": np.zeros_like(pixels)})[0])


def test_export_does_not_know_the_architecture(cli: Callable[..., None], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="model type `mplug_owl2` but Transformers does not recognize"):
        cli("export", "onnx", "-m", NARROW, "--task", "image-classification", tmp_path)


def test_quantize_moves_scores_far_more_than_our_int8(mini: Path, cli: Callable[..., None], tmp_path: Path) -> None:
    """0.53 and 0.003 in the mean, as measured with onnxruntime 1.32 on AVX2."""
    scores = {"fp32": values(Scorer.load(mini)), "ours": values(Scorer.load())}
    cli("onnxruntime", "quantize", "--onnx_model", mini / "onnx", "-o", tmp_path / "q", "--avx2", "--per_channel")
    theirs = Path(shutil.copytree(mini, tmp_path / "theirs"))
    for name in ("vision_encoder", "decoder_model"):
        shutil.copy(tmp_path / f"q/{name}_quantized.onnx", theirs / f"onnx/{name}.onnx")
    seal_files(theirs)
    scores["theirs"] = values(Scorer.load(theirs))
    moved = {name: np.abs(found - scores["fp32"]).mean() for name, found in scores.items()}
    assert moved["theirs"] > 0.2
    assert moved["ours"] < 0.01


def values(scorer: Scorer) -> np.ndarray:
    return np.array([score.value for score in scorer.score(PHOTOS)])


def test_optimize_refuses_an_artifact(copy: Path, cli: Callable[..., None], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not contain the configuration file"):
        cli("onnxruntime", "optimize", "--onnx_model", copy / "onnx", "-o", tmp_path / "o", "-O1")


def test_optimize_deletes_the_weights_of_its_source(copy: Path, cli: Callable[..., None], tmp_path: Path) -> None:
    (copy / "onnx/config.json").write_text('{"model_type": "vit"}')
    cli("onnxruntime", "optimize", "--onnx_model", copy / "onnx", "-o", tmp_path / "o", "-O1")
    assert sorted(path.name for path in (copy / "onnx").iterdir()) == [
        "config.json",
        "decoder_model.onnx",
        "vision_encoder.onnx",
    ]
