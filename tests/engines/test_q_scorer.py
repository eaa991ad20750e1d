"""Q-Scorer against its authors' numbers on every engine, and what of it is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qalign_export.fidelity import verify
from qalign_export.options import ExportOptions
from qalign_export.writer import export_artifact
from qalign_fast import ArtifactError, CheckpointError, Scorer, TaskError
from qalign_fast.artifact.manifest import open_artifact, parse_manifest, read_manifest
from qalign_fast.engines.contract import Engine
from qalign_fast.families.family import Decode
from qalign_fast.families.prompt import Prompt
from qalign_fast.families.q_scorer.answer import answer, value_of
from qalign_fast.families.q_scorer.family import FAMILY
from qalign_fast.families.q_scorer.prompts import PROMPTS, SCORE_IDS
from support.artifacts import change_manifest
from support.clips import constant, write_clip
from support.goldens import GOLDEN, Rounded
from support.heads import ENGINES, changed, engine_named, expected_of, pictures_of

FOLDER = "q-scorer-112"
LOGITS, SCORES = 2e-4, 1e-4
EXPECTED = expected_of(FOLDER)
FILES = pictures_of(EXPECTED)
[PROMPT] = PROMPTS


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, rounded: Rounded, library: Path) -> Engine:
    return engine_named(request.param, FOLDER, rounded, library)


def test_the_first_step_has_the_authors_logits_and_token(engine: Engine) -> None:
    logits = engine.decode(engine.encode(EXPECTED["resized_uint8"]), PROMPT)[:, :5]
    np.testing.assert_allclose(logits, EXPECTED["step_1_logits"], rtol=0, atol=LOGITS)
    winners = np.array(SCORE_IDS)[logits.argmax(1)]
    np.testing.assert_array_equal(winners, EXPECTED["step_1_token"])
    assert len(set(winners)) == 4  # so that four parts are asked


def test_the_row_after_the_token_has_the_authors_first_layer(engine: Engine) -> None:
    tokens = engine.encode(EXPECTED["resized_uint8"])
    for i, token in enumerate(EXPECTED["step_1_token"]):
        part = PROMPT.parts[SCORE_IDS.index(token)]
        found = engine.decode(tokens[i : i + 1], part)[0, 5:]
        np.testing.assert_allclose(found, EXPECTED["step_2_first_layer"][i], rtol=0, atol=LOGITS)


def test_scores_are_the_authors(engine: Engine) -> None:
    scores = Scorer(engine).score(FILES)
    np.testing.assert_allclose([s.value for s in scores], EXPECTED["score"], rtol=0, atol=SCORES)
    assert max(EXPECTED["mlp"]) > 5.05 and max(s.value for s in scores) == 5  # one is clamped
    for score, logits in zip(scores, EXPECTED["step_1_logits"], strict=True):
        np.testing.assert_allclose(score.logits, logits, rtol=0, atol=LOGITS)
        exp = np.exp(logits - logits.max())
        np.testing.assert_allclose(list(score.probabilities.values()), exp / exp.sum(), rtol=0, atol=LOGITS)
        assert (score.scale.low, score.scale.high) == (0, 5)


def test_a_score_does_not_depend_on_batch_neighbours(rounded: Rounded, library: Path) -> None:
    for name in ("native", "onnx"):
        scorer = Scorer(engine_named(name, FOLDER, rounded, library, "int8"))
        together = scorer.score([*FILES, *FILES[::-1]])
        assert together == [*(alone := [scorer.score(file) for file in FILES]), *alone[::-1]]


def test_two_decodes_are_asked_of_a_picture(rounded: Rounded, library: Path) -> None:
    engine, asked = engine_named("native", FOLDER, rounded, library), []
    decode = engine.decode

    def counted(tokens: Any, prompt: Prompt) -> Any:
        asked.append((prompt.part, len(tokens)))
        return decode(tokens, prompt)

    engine.decode = counted  # type: ignore[method-assign]
    Scorer(engine).score(FILES)
    assert asked == [(None, 6), ("score5", 1), ("score4", 3), ("score3", 1), ("score1", 1)]


def test_layers_of_equal_widths_add_their_input() -> None:
    first = np.array([-1, 2], np.float32)
    tail = {
        "mlp.1.weight": np.array([[1, 1], [0, -1]], np.float32),
        "mlp.1.bias": np.array([1, 0], np.float32),
        "mlp.2.weight": np.array([[1, 10]], np.float32),
        "mlp.2.bias": np.array([0.5], np.float32),
    }
    assert value_of(first, tail) == (3 + 0) + 10 * (0 + 2) + 0.5  # ReLU (0, 2) -> ReLU (3, -2) + (0, 2) = (3, 2)


def test_scores_below_and_above_the_scale_are_clamped() -> None:
    tail = {"mlp.1.weight": np.ones((1, 1), np.float32), "mlp.1.bias": np.array([-2], np.float32)}
    outputs = np.array([[1, 0, 0, 0, 0, 1], [1, 0, 0, 0, 0, 4], [1, 0, 0, 0, 0, 9]], np.float32)
    decode: Decode = lambda prompt, rows=None: outputs  # noqa: E731
    assert [one.value for one in answer(outputs, PROMPT, decode, tail)] == [0, 2, 5]


def test_int8_reports_its_fidelity(tmp_path: Path, rounded: Rounded) -> None:
    reports = verify(rounded(FOLDER, "int8"), GOLDEN / FOLDER, FILES)
    assert set(reports) == {"onnx", "torch"}
    for report in reports.values():
        assert 0 < report.mean_delta < 0.5 and report.plcc > 0.98  # random weights amplify rounding


def test_a_checkpoint_is_recognized_by_its_score_tokens() -> None:
    scorer = Scorer.load(GOLDEN / FOLDER)
    assert scorer.engine.family is FAMILY
    assert (scorer.tasks(), scorer.tasks("video")) == (("quality",), ())


def test_clips_are_refused(rounded: Rounded, tmp_path: Path) -> None:
    scorer = Scorer.load(rounded(FOLDER, "fp32"))
    clip = write_clip(tmp_path / "c.mkv", constant(50, 25), 25)
    with pytest.raises(TaskError, match="task 'quality' is not in this model; for videos it has: none"):
        scorer.score_video(clip)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"score_token_id": [1, 2, 3, 4, 5]}, r"'score_token_id' is \[1, 2, 3, 4, 5\]; expected \[32004"),
        ({"score_token_id": SCORE_IDS[::-1]}, "'score_token_id' is"),
        ({"score_token_id": None}, "'score_token_id' is None"),
        ({"vocab_size": 32000}, "'vocab_size' is 32000; the score tokens need 32005"),
        ({"deepmlp_hidden_dims": [32, 16]}, "begins with the decoder's width; such a residual layer"),
        ({"deepmlp_hidden_dims": [24, 0]}, "expected widths from 1"),
        ({"deepmlp_hidden_dims": "24"}, "'deepmlp_hidden_dims': expected a list"),
        ({"deepmlp_hidden_dims": [24, 16]}, r"deepmlp\.model\.1\.linear\.bias' has shape \[24\]; expected \[16\]"),
        ({"deepmlp_hidden_dims": None}, "has shape"),  # the authors' default, 2048 and 1024
    ],
)
def test_what_a_config_may_not_say(config: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=says):
        Scorer.load(changed(FOLDER, tmp_path, config))


def test_a_checkpoint_without_its_mlp_is_refused(tmp_path: Path) -> None:
    broken = changed(FOLDER, tmp_path, drop=lambda name: name.startswith("deepmlp."))
    with pytest.raises(CheckpointError, match=r"8 tensors missing: deepmlp\.model.0.linear.bias"):
        Scorer.load(broken)


def test_an_mlp_in_onealigns_checkpoint_is_refused(tmp_path: Path) -> None:
    drop = {"score_token_id": None, "deepmlp_hidden_dims": None}
    with pytest.raises(CheckpointError, match="8 unexpected tensors: deepmlp"):
        Scorer.load(changed(FOLDER, tmp_path, drop))


def test_its_manifest_says_its_parts(rounded: Rounded) -> None:
    manifest = open_artifact(rounded(FOLDER, "fp32")).manifest
    assert manifest.task_prompts == PROMPTS
    assert manifest.levels == tuple(zip(("excellent", "good", "fair", "poor", "bad"), SCORE_IDS, strict=True))
    assert manifest.config.mlp == (24, 24, 16)
    text = manifest.to_json()
    assert parse_manifest(json.loads(text), "it").to_json() == text


def test_a_manifest_without_a_part_or_its_mlp_is_refused(rounded: Rounded, tmp_path: Path) -> None:
    copy = export_artifact(GOLDEN / FOLDER, tmp_path / "a", ExportOptions(engines=("torch",)))
    path = copy / "qalign.json"
    raw = json.loads(path.read_text())
    tasks, sizes = raw["tasks"], raw["sizes"]
    some = {name: part for name, part in tasks["quality"]["image"]["parts"].items() if name != "score2"}
    change_manifest(copy, tasks={"quality": {"image": tasks["quality"]["image"] | {"parts": some}}})
    with pytest.raises(ArtifactError, match="task 'quality' has the parts"):
        read_manifest(path)
    change_manifest(copy, tasks={"quality": {"image": tasks["quality"]["image"] | {"parts": {}}}})
    with pytest.raises(ArtifactError, match="has no parts"):
        read_manifest(path)
    change_manifest(copy, tasks=tasks, sizes={name: part for name, part in sizes.items() if name != "mlp"})
    with pytest.raises(ArtifactError, match="KeyError: 'mlp'"):
        read_manifest(path)
    change_manifest(copy, sizes=sizes | {"mlp": [24, 24, 12]})
    with pytest.raises(ArtifactError, match=r"mlp.2.weight is float32 \(16, 24\); the manifest's sizes ask for"):
        Scorer.load(copy)


def test_prompts_of_ones_own_are_refused(tmp_path: Path) -> None:
    own = replace(PROMPT, task="sharpness", parts=())
    with pytest.raises(TaskError, match="task 'sharpness': q_scorer answers its own prompts alone: quality"):
        export_artifact(GOLDEN / FOLDER, tmp_path / "a", ExportOptions(prompts=(own,)))
    with pytest.raises(TaskError, match="task 'aesthetics' is not known; q_scorer has: quality"):
        export_artifact(GOLDEN / FOLDER, tmp_path / "a", ExportOptions(tasks=("aesthetics",)))
