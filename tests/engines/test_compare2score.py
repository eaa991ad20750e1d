"""Compare2Score against its authors' numbers on every engine, and what of it is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qalign_export.fidelity import verify
from qalign_export.options import ExportOptions
from qalign_export.writer import export_artifact
from qalign_fast import ArtifactError, CheckpointError, Scorer, TaskError
from qalign_fast.artifact.manifest import open_artifact, parse_manifest, read_manifest
from qalign_fast.artifact.prompt_tensors import load_constants
from qalign_fast.engines.contract import Engine
from qalign_fast.families.compare2score.answer import most_probable_scores, score_of_preferences
from qalign_fast.families.compare2score.family import FAMILY
from qalign_fast.families.compare2score.prompts import PROMPTS, WORD_IDS
from qalign_fast.families.mplug_owl2.prompts import prompt
from qalign_fast.families.prompt import Prompt, with_parts
from qalign_fast.identity import hash_model
from support.artifacts import change_manifest
from support.clips import constant, write_clip
from support.goldens import GOLDEN, Rounded
from support.heads import ENGINES, changed, engine_named, expected_of, pictures_of

FOLDER = "compare2score-112"
LOGITS = 2e-4
PREFERENCES = 1e-6
OPTIMUM = 1e-4  # of a score on 0..100 from the best one for the authors' preferences
ADAM = 0.36  # on 0..100: how far the authors' 100 steps of Adam, from their start on a CPU, end from the optimum
EXPECTED = expected_of(FOLDER)
FILES = pictures_of(EXPECTED)
WORTH = np.array([1, 0.75, 0.5, 0.25, 0])


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, rounded: Rounded, library: Path) -> Engine:
    return engine_named(request.param, FOLDER, rounded, library)


def test_logits_against_each_anchor_are_the_authors(engine: Engine) -> None:
    tokens = engine.encode(EXPECTED["resized_uint8"])
    for anchor, shown in enumerate(with_parts(PROMPTS)):
        found = engine.decode(tokens, shown)
        np.testing.assert_allclose(found, EXPECTED["anchor_logits"][:, anchor], rtol=0, atol=LOGITS)
    assert EXPECTED["anchor_logits"].std(axis=1).min() > 0.1  # the anchors matter
    assert EXPECTED["anchor_logits"].std(axis=0).min() > 0.1  # and the pictures do


def test_scores_are_the_best_for_the_authors_preferences(engine: Engine) -> None:
    found = [score.value for score in Scorer(engine).score(FILES)]
    best = [score_of_preferences(preferences) for preferences in EXPECTED["preferences"]]
    np.testing.assert_allclose(found, best, rtol=0, atol=OPTIMUM)
    np.testing.assert_allclose(found, EXPECTED["score"], rtol=0, atol=ADAM)
    assert np.ptp(found) > 1


def test_what_a_score_holds_is_the_mean_over_the_anchors() -> None:
    logits = EXPECTED["anchor_logits"].astype(np.float64)
    exp = np.exp(logits / 100)
    probabilities = exp / exp.sum(-1, keepdims=True)  # [picture, anchor, word]
    np.testing.assert_allclose(probabilities @ WORTH, EXPECTED["preferences"], rtol=0, atol=PREFERENCES)
    for i, score in enumerate(Scorer.load(GOLDEN / FOLDER).score(FILES)):
        np.testing.assert_allclose(score.logits, logits[i].mean(0), rtol=0, atol=LOGITS)
        found = list(score.probabilities.values())
        np.testing.assert_allclose(found, probabilities[i].mean(0), rtol=0, atol=PREFERENCES)
        assert (score.scale.low, score.scale.high) == (0, 100)


def test_the_authors_steps_end_near_the_optimum() -> None:
    """For preferences of every kind, by their own code."""
    best = np.array([score_of_preferences(p) for p in EXPECTED["map_preferences"]])
    off = np.abs(best - EXPECTED["map_score"])
    assert len(off) == 84
    assert 0.3 < off.max() < ADAM and 0.05 < off.mean() < 0.1
    assert np.ptp(best) > 99


def test_the_optimum_is_one() -> None:
    """The gradient is zero, and no neighbour explains the preferences better."""
    dice = np.random.default_rng(0)
    for _ in range(50):
        among = dice.uniform(0, 1, (6, 6)).round(dice.integers(0, 3))
        scores = most_probable_scores(among)

        def gain(s: np.ndarray, among: np.ndarray = among) -> float:
            return float((among * -np.log1p(np.exp(s[None, :] - s[:, None]))).sum() - (s**2).sum() / 2)

        for move in dice.normal(0, 1e-3, (20, 6)):
            assert gain(scores + move) < gain(scores)
        slopes = [(gain(scores + h) - gain(scores - h)) / 2e-5 for h in 1e-5 * np.eye(6)]
        np.testing.assert_allclose(slopes, 0, atol=1e-8)


def test_better_than_all_anchors_is_100_and_worse_than_all_0() -> None:
    assert score_of_preferences(np.ones(5)) == 100
    assert score_of_preferences(np.zeros(5)) == 0
    rising = [score_of_preferences(np.full(5, p)) for p in (0.3, 0.4, 0.5, 0.6, 0.7)]
    assert sorted(set(rising)) == rising


def test_a_score_does_not_depend_on_batch_neighbours(rounded: Rounded, library: Path) -> None:
    for name in ("native", "onnx"):
        scorer = Scorer(engine_named(name, FOLDER, rounded, library, "int8"))
        together = scorer.score([*FILES, *FILES[::-1]])
        assert together == [*(alone := [scorer.score(file) for file in FILES]), *alone[::-1]]


def test_one_vision_pass_and_five_decodes_are_asked_of_a_picture(rounded: Rounded, library: Path) -> None:
    engine, asked = engine_named("native", FOLDER, rounded, library), []
    encode, decode = engine.encode, engine.decode

    def counted(tokens: Any, prompt: Prompt) -> Any:
        asked.append((prompt.part, tokens.shape))
        return decode(tokens, prompt)

    def counted_pictures(pixels: Any) -> Any:
        asked.append(("vision", pixels.shape[:1]))
        return encode(pixels)

    engine.encode, engine.decode = counted_pictures, counted  # type: ignore[method-assign]
    Scorer(engine).score(FILES[0])
    parts = [None, "anchor2", "anchor3", "anchor4", "anchor5"]
    assert (len(PROMPTS[0].suffix), len(prompt("quality").suffix)) == (30, 12)  # of 95 and 77 rows at 65 visual tokens
    assert asked == [("vision", (1,)), *((part, (1, 9, 32)) for part in parts)]  # an anchor's tokens are in the prefix


def test_int8_reports_its_fidelity(rounded: Rounded) -> None:
    reports = verify(rounded(FOLDER, "int8"), GOLDEN / FOLDER, FILES)
    assert set(reports) == {"onnx", "torch"}
    for report in reports.values():
        assert 0 < report.mean_delta < 0.5 and report.plcc > 0.9  # random weights amplify rounding


def test_a_checkpoint_is_recognized_by_its_anchors(tmp_path: Path) -> None:
    scorer = Scorer.load(GOLDEN / FOLDER)
    assert scorer.engine.family is FAMILY
    assert (scorer.tasks(), scorer.tasks("video")) == (("quality",), ())
    other = changed(FOLDER, tmp_path)
    shutil.rmtree(other / "anchors")
    assert Scorer.load(other).engine.family.name == "mplug_owl2"  # its config.json says no more


def test_clips_are_refused(rounded: Rounded, tmp_path: Path) -> None:
    scorer = Scorer.load(rounded(FOLDER, "fp32"))
    clip = write_clip(tmp_path / "c.mkv", constant(50, 25), 25)
    with pytest.raises(TaskError, match="task 'quality' is not in this model; for videos it has: none"):
        scorer.score_video(clip)


def test_another_number_of_anchors_is_refused(tmp_path: Path) -> None:
    copy = changed(FOLDER, tmp_path)
    (copy / "anchors/3.png").unlink()
    (copy / "anchors/.hidden").touch()
    for use in (Scorer.load, lambda path: export_artifact(path, tmp_path / "a")):
        with pytest.raises(CheckpointError, match="4 files; expected 5 pictures, the worst first"):
            use(copy)
    for file in (copy / "anchors").iterdir():
        file.unlink()
    with pytest.raises(CheckpointError, match="0 files; expected 5 pictures"):
        Scorer.load(copy)


def test_an_anchor_that_is_no_picture_is_refused(tmp_path: Path) -> None:
    copy = changed(FOLDER, tmp_path)
    (copy / "anchors/3.png").write_text("no picture")
    with pytest.raises(CheckpointError, match=r"3\.png: not readable as an anchor"):
        Scorer.load(copy)


def test_anchors_are_taken_in_order_of_their_names_and_are_of_the_model(tmp_path: Path) -> None:
    copy, before = changed(FOLDER, tmp_path), Scorer.load(GOLDEN / FOLDER).score(FILES[0]).value
    assert hash_model(copy) != hash_model(GOLDEN / FOLDER)  # config.json is written anew
    same = hash_model(copy)
    (copy / "anchors/1.png").rename(copy / "anchors/6.png")
    assert hash_model(copy) != same
    assert abs(Scorer.load(copy).score(FILES[0]).value - before) > 1e-3


def test_its_manifest_says_its_anchors(rounded: Rounded) -> None:
    manifest = open_artifact(rounded(FOLDER, "fp32")).manifest
    assert manifest.task_prompts == PROMPTS
    assert [prompt.anchor.number for prompt in with_parts(manifest.task_prompts) if prompt.anchor] == [0, 1, 2, 3, 4]
    assert tuple(token for _, token in manifest.levels) == WORD_IDS
    text = manifest.to_json()
    assert parse_manifest(json.loads(text), "it").to_json() == text


def test_a_manifest_with_other_parts_is_refused(tmp_path: Path) -> None:
    copy = export_artifact(GOLDEN / FOLDER, tmp_path / "a", ExportOptions(engines=("torch",)))
    entry = json.loads((copy / "qalign.json").read_text())["tasks"]["quality"]["image"]
    change_manifest(copy, tasks={"quality": {"image": {k: v for k, v in entry.items() if k != "parts"}}})
    with pytest.raises(ArtifactError, match=r"task 'quality' has the parts \(\), expected"):
        read_manifest(copy / "qalign.json")
    for anchor in ({"number": -1, "ids": [259]}, {"number": 0}, [], {"number": 0, "ids": []}):
        change_manifest(copy, tasks={"quality": {"image": entry | {"anchor": anchor}}})
        with pytest.raises(ArtifactError, match="a field is missing or malformed"):
            read_manifest(copy / "qalign.json")
    change_manifest(copy, tasks={"quality": {"image": {k: v for k, v in entry.items() if k != "anchor"}}})
    with pytest.raises(ArtifactError, match=r"quality\.image\.prefix is float32 .*; the manifest's sizes ask for"):
        Scorer.load(copy)  # such a prefix would be shorter


def test_what_rounding_moves_is_moved_in_the_anchors_rows_too(rounded: Rounded) -> None:
    """A channel of values is divided by one number in every row: text, an anchor's visual tokens, text."""
    exact, moved = (load_constants(open_artifact(rounded(FOLDER, precision))) for precision in ("fp32", "int8"))
    for shown in with_parts(PROMPTS):
        before, after = (found[shown.name][0] for found in (exact, moved))  # [L, 2, P, H, Dh]
        assert before.shape[2] == 5 + 9 + 1
        np.testing.assert_array_equal(before[:, 0], after[:, 0])  # keys
        factors = (after[:, 1] / before[:, 1]).reshape(len(before), 15, -1)
        np.testing.assert_allclose(factors, np.broadcast_to(factors[:, :1], factors.shape), rtol=1e-5)
    assert np.ptp(factors) > 0.1  # something was moved
