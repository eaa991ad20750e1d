"""Rewards are `Scorer.score`'s values, in process and from a server, and in the calls that trainers make."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from qalign_fast import Scorer
from qalign_fast.adapters.rewards import QualityReward
from qalign_fast.errors import OptionError, ServerError, TaskError
from support.goldens import PICTURES, Golden
from support.servers import running_server

pytestmark = pytest.mark.usefixtures("kernels")
FILES = sorted(PICTURES.iterdir())[:3]


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """As trainers have them: in memory, without a file."""
    return [Image.open(path).convert("RGB") for path in FILES]


@pytest.fixture(scope="module")
def expected(kernels: Path, pictures: list[Image.Image]) -> list[float]:
    return [score.value for score in Scorer.load().score(pictures)]


@pytest.fixture(scope="module")
def address(kernels: Path) -> Iterator[str]:
    with running_server() as server:
        yield server.url


@pytest.fixture(params=["here", "on a server"])
def reward(request: pytest.FixtureRequest) -> QualityReward:
    return QualityReward(None if request.param == "here" else request.getfixturevalue("address"), batch_size=2)


def test_rewards_are_the_scorers_values(
    reward: QualityReward, pictures: list[Image.Image], expected: list[float]
) -> None:
    assert reward(pictures) == pytest.approx(expected, abs=1e-6)
    assert reward(pictures, ["a prompt"] * 3, [{}] * 3) == reward(pictures)
    assert reward([]) == []


def test_a_bad_picture_is_none_and_the_others_are_scored(
    reward: QualityReward, pictures: list[Image.Image], expected: list[float]
) -> None:
    damaged = FILES[0].read_bytes()[:100]
    with pytest.warns(RuntimeWarning, match="1 of 4 pictures have no score; the first: "):
        found = reward([pictures[0], damaged, pictures[1], pictures[2]])
    assert found[1] is None
    assert [found[0], *found[2:]] == pytest.approx(expected, abs=1e-6)


def test_a_tensors_rewards_are_those_of_its_pictures(reward: QualityReward, pictures: list[Image.Image]) -> None:
    """Floats on 0..1, as a VAE's output after clamping, in float32 and in bfloat16; one that is not a number is bad."""
    crops = [picture.crop((0, 0, 96, 64)) for picture in pictures]
    batch = torch.from_numpy(np.stack([np.asarray(crop) for crop in crops])).permute(0, 3, 1, 2) / 255
    assert reward(batch) == reward(crops)
    assert reward(batch.bfloat16()) == reward(list((batch.bfloat16().float() * 255).round().to(torch.uint8)))
    batch[1, 0, 0, 0] = torch.nan
    with pytest.warns(RuntimeWarning, match="1 of 3"):
        assert reward(batch) == [*reward(crops[:1]), None, *reward(crops[2:])]


def test_equal_pictures_are_scored_once(pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch) -> None:
    reward = QualityReward(batch_size=2)
    counted: list[int] = []
    encode = reward.scorer.engine.encode
    monkeypatch.setattr(reward.scorer.engine, "encode", lambda pixels: (counted.append(len(pixels)), encode(pixels))[1])
    first, second = pictures[:2]
    found = reward([first, second, first.copy(), first, np.asarray(second), np.array(second), str(FILES[2]), FILES[2]])
    assert sum(counted) == 4  # two pictures, an array, a file
    assert found[0] == found[2] == found[3]
    assert found[1] == found[4] == found[5]


def test_pictures_that_differ_only_in_their_palette_or_transparency_are_not_equal() -> None:
    grey = Image.fromarray((np.indices((64, 64)).sum(0) * 2).astype(np.uint8))
    turned = grey.convert("P")
    turned.putpalette([255 - i for i in range(256) for _ in range(3)])
    clear = grey.copy()
    clear.info["transparency"] = 3
    three = [grey.convert("P"), turned, clear]
    assert QualityReward()(three) == [score.value for score in Scorer.load().score(three)]


def test_clips(narrow: Golden, pictures: list[Image.Image], address: str) -> None:
    reward = QualityReward(narrow.artifact, medium="video", unit=True)
    frames = [picture.crop((0, 0, 96, 64)) for picture in pictures]
    clip = torch.from_numpy(np.stack([np.asarray(frame) for frame in frames])).permute(0, 3, 1, 2) / 255
    expected = Scorer.load(narrow.artifact).score_video(frames).unit
    assert reward([frames, frames, clip]) == pytest.approx([expected] * 3, abs=1e-6)
    served = QualityReward(address, medium="video")([frames, clip])
    assert served == pytest.approx([Scorer.load().score_video(frames).value] * 2, abs=1e-6)


def test_a_pickled_reward_rewards_alike(pictures: list[Image.Image], expected: list[float]) -> None:
    again = pickle.loads(pickle.dumps(QualityReward(unit=True, missing=0.0)))
    assert again(pictures) == pytest.approx([(value - 1) / 4 for value in expected], abs=1e-6)
    with pytest.warns(RuntimeWarning):
        assert again([b"no picture"]) == [0.0]


def test_a_callers_mistakes_are_errors(pictures: list[Image.Image]) -> None:
    with pytest.raises(TaskError):
        QualityReward(task="sharpness")
    with pytest.raises(OptionError, match="batch_size is 0"):
        QualityReward(batch_size=0)
    with pytest.raises(OptionError, match="expected a list"):
        QualityReward()(pictures[0])  # type: ignore[arg-type]


def test_a_server_that_is_gone_is_an_error_and_no_reward(pictures: list[Image.Image]) -> None:
    with running_server() as server:
        reward = QualityReward(server.url)
    with pytest.raises(ServerError):
        reward(pictures)


def test_flow_grpos_sum_of_weighted_rewards(pictures: list[Image.Image], expected: list[float]) -> None:
    """Not run in the tool, which is no package: its call, and what it does with the answer, by its source."""

    def qalign_score(device: str) -> Any:
        reward = QualityReward(unit=True, missing=0.0)
        return lambda images, prompts, metadata: (reward(images), {})

    scores, details = qalign_score("cpu")([*pictures, b"no picture"], ["a prompt"] * 4, {})
    assert details == {}
    weighted = [0.5 * score for score in scores]
    assert weighted == pytest.approx([0.5 * (value - 1) / 4 for value in expected] + [0.0], abs=1e-6)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_trl_trains_on_the_reward(tmp_path: Path, pictures: list[Image.Image], expected: list[float]) -> None:
    """A policy whose words choose a picture: what GRPO logs is the mean of the scores of what it chose."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    reward, seen = QualityReward(), []

    def quality(completions: list[str], **columns: Any) -> list[float | None]:
        drawn = [pictures[len(text) % 3] for text in completions]
        found = reward([*drawn[:-1], b"no picture"])
        seen.append(([expected[len(text) % 3] for text in completions[:-1]], found))
        return found

    model, tokenizer = _tiny_policy()
    arguments = GRPOConfig(
        str(tmp_path), max_steps=2, per_device_train_batch_size=4, num_generations=4, max_completion_length=6,
        use_cpu=True, report_to=[], logging_steps=1, save_strategy="no", disable_tqdm=True, seed=1,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model, quality, args=arguments, train_dataset=Dataset.from_dict({"prompt": ["a"] * 8}),
        processing_class=tokenizer,
    )  # fmt: skip
    with pytest.warns(RuntimeWarning, match="have no score"):
        trainer.train()
    logged = [entry["rewards/quality/mean"] for entry in trainer.state.log_history if "rewards/quality/mean" in entry]
    assert len(seen) == len(logged) == 2
    for (right, found), mean in zip(seen, logged):
        assert (found[:-1], found[-1]) == (pytest.approx(right, abs=1e-6), None)
        assert mean == pytest.approx(np.mean(right), abs=1e-5)


def _tiny_policy() -> tuple[Any, Any]:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "a", "bb", "ccc", "dddd", "eeeee"]
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config), tokenizer
