"""The lines that users of one-align's remote code have today, on our class: the same scores as `Scorer.score`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from qalign_fast import Scorer
from qalign_fast.adapters.auto_model import AutoModel, AutoModelForCausalLM, QAlignModel
from qalign_fast.adapters.pretrained_options import read_options
from qalign_fast.errors import DeviceError, OptionError, TaskError
from support.goldens import GOLDEN, ROOT, Golden
from support.heads import expected_of, pictures_of

SAMPLES = sorted((ROOT / "samples").glob("coffee*.jpg"))

# What public programs give to from_pretrained for one-align.
LINES: list[dict[str, Any]] = [
    {},
    {"trust_remote_code": True, "attn_implementation": "eager", "torch_dtype": torch.float16, "device_map": "auto"},
    {"trust_remote_code": True, "torch_dtype": "auto", "device_map": "auto", "use_cache": False},
    {"trust_remote_code": True, "dtype": torch.bfloat16, "device_map": torch.device("cpu"), "local_files_only": True},
    {"trust_remote_code": True, "torch_dtype": torch.float16, "device_map": {"": "cpu"}, "low_cpu_mem_usage": True},
    {"device_map": "cpu", "revision": None, "quantization_config": None, "load_in_8bit": False, "_from_auto": True},
]


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return [Image.open(path) for path in SAMPLES]


@pytest.fixture(scope="module")
def scorer(goldens: dict[str, Golden]) -> Scorer:
    return Scorer.load(goldens["narrow-112"].artifact)


@pytest.fixture(scope="module")
def model(goldens: dict[str, Golden]) -> QAlignModel:
    return AutoModelForCausalLM.from_pretrained(goldens["narrow-112"].artifact)


@pytest.mark.parametrize("keywords", LINES)
def test_users_lines_give_the_scorers_scores(
    keywords: dict[str, Any], narrow: Golden, scorer: Scorer, pictures: list[Image.Image]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(str(narrow.artifact), **keywords)
    found = model.eval().requires_grad_(False).score(pictures, task_="quality", input_="image")
    assert torch.equal(found, torch.tensor([score.value for score in scorer.score(SAMPLES)]))
    assert found.shape == (len(pictures),) and found.dtype == torch.float32


@pytest.mark.parametrize("task", ["quality", "aesthetics"])
def test_clips_are_lists_of_frames(task: str, model: QAlignModel, scorer: Scorer, pictures: list[Image.Image]) -> None:
    clips = [pictures[:3], pictures[2:]]
    found = model.score(clips, task_=task, input_="video")
    assert torch.equal(found, torch.tensor([scorer.score_video(clip, task).value for clip in clips]))


def test_frames_that_are_left_out_are_told(model: QAlignModel, pictures: list[Image.Image]) -> None:
    with pytest.warns(UserWarning, match="31 of 40 frames"):
        model.score([pictures[:1] * 40], input_="video")


def test_a_dictionary_has_the_logits_too(model: QAlignModel, scorer: Scorer, pictures: list[Image.Image]) -> None:
    found = model.score(pictures, return_dict=True)
    expected = scorer.score(SAMPLES)
    assert torch.equal(found["logits"], torch.tensor([score.logits for score in expected]))
    weights = torch.tensor([5.0, 4, 3, 2, 1])
    torch.testing.assert_close(found["scores"], found["logits"].softmax(-1) @ weights)
    assert model.score([], return_dict=True)["logits"].shape == (0, 5)


def test_one_picture_is_one_number(model: QAlignModel, scorer: Scorer) -> None:
    found = model.score(SAMPLES[0])
    assert found.shape == () and found.item() == pytest.approx(scorer.score(SAMPLES[0]).value, abs=1e-6)


def test_a_q_scorer_gives_floats_as_its_authors_code_does() -> None:
    expected = expected_of("q-scorer-112")
    found = AutoModel.from_pretrained(GOLDEN / "q-scorer-112").score(pictures_of(expected))
    assert isinstance(found, list) and found == pytest.approx(list(expected["score"]), abs=1e-4)


def test_compare2score_takes_a_path_and_gives_0_to_100() -> None:
    path, score = pictures_of(expected := expected_of("compare2score-112"))[0], expected["score"][0]
    found = AutoModel.from_pretrained(GOLDEN / "compare2score-112").score(str(path))
    assert float(found) == pytest.approx(score, abs=0.36)


def test_bitsandbytes_settings_are_a_checkpoints_precision() -> None:
    pytest.importorskip("bitsandbytes")
    transformers = pytest.importorskip("transformers")
    eight, path = transformers.BitsAndBytesConfig(load_in_8bit=True), GOLDEN / "outlier-112"
    four = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    for keywords, precision in (
        ({"load_in_8bit": True}, "bnb-int8"),
        ({"quantization_config": eight}, "bnb-int8"),
        ({"quantization_config": eight.to_dict()}, "bnb-int8"),
        ({"quantization_config": four}, "bnb-nf4"),
    ):
        assert read_options(keywords).load == {"precision": precision}
    found = AutoModel.from_pretrained(path, quantization_config=eight, device_map="cpu").score([SAMPLES[0]])
    assert found.tolist() == pytest.approx([Scorer.load(path, precision="bnb-int8").score(SAMPLES[0]).value], abs=1e-6)


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"device_map": {"model.layers.0": 0, "lm_head": "cpu"}}, "device_map names cpu, cuda:0; .* one device"),
        ({"load_in_4bit": True}, "bnb_4bit_quant_type is 'fp4'; expected 'nf4'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "expected bitsandbytes'"),
        ({"quantization_config": {"load_in_8bit": True, "llm_int8_threshold": 3.0}}, "llm_int8_threshold is 3.0"),
        ({"variant": "fp16", "state_dict": {"a": 1}}, "variant, state_dict: not implemented; .* device, precision"),
        ({"subfolder": "int8"}, "subfolder: not implemented"),
        ({"device": "cpu", "device_map": 0}, "device is 'cpu', and device_map or quantization asks for 'cuda:0'"),
    ],
)
def test_a_keyword_that_would_change_the_result_is_refused(keywords: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        read_options(keywords)


def test_options_of_our_own_go_on_to_the_scorer(narrow: Golden) -> None:
    model = AutoModel.from_pretrained(narrow.artifact, engine="onnx", threads=1)
    assert model.scorer.engine.name == "onnx"


def test_what_is_not_there_is_one_of_our_errors(model: QAlignModel) -> None:
    with pytest.raises(TaskError, match="it has: quality, aesthetics"):
        model.score([SAMPLES[0]], task_="sharpness")
    with pytest.raises(OptionError, match="input_ is 'audio'"):
        model.score([SAMPLES[0]], input_="audio")


def test_moving_where_it_is_and_other_dtypes_change_nothing(model: QAlignModel) -> None:
    before = model.scorer
    same = model.half().float().to(torch.float16).to("cpu", torch.bfloat16).to(torch.zeros(1)).cpu()
    assert same is model and model.scorer is before
    assert model.device == torch.device("cpu") and model.dtype == torch.float32
    assert list(model.parameters()) == [] and not model.training


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_an_error_and_the_model_stays(model: QAlignModel) -> None:
    for move in (model.cuda, lambda: model.to("cuda:0"), lambda: model.to(device=torch.device("cuda"))):
        with pytest.raises(DeviceError):
            move()
    assert model.score([SAMPLES[0]]).shape == (1,)


def test_another_device_loads_the_model_there(narrow: Golden) -> None:
    asked: list[Any] = []

    def load(device: str = "auto") -> Scorer:
        asked.append(device)
        return Scorer.load(narrow.artifact)

    model = QAlignModel(load)
    model.to(torch.device("mps"), torch.float16).to("cpu").to(1)
    assert asked == ["auto", "mps", "cuda:1"]


def test_a_relative_path_survives_a_change_of_folder(narrow: Golden, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(narrow.artifact.parent)
    model = AutoModel.from_pretrained(narrow.artifact.name)
    monkeypatch.chdir(tmp_path)
    assert model._load(device="cpu").engine.name == model.scorer.engine.name
