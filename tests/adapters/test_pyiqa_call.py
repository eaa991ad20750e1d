"""pyiqa's call on our engines: scores against `Scorer.score`. `tests/tools/pyiqa` compares it with pyiqa itself."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from qalign_fast import ImageError, OptionError, Scorer, TaskError, hub
from qalign_fast.adapters import pyiqa
from qalign_fast.adapters.pyiqa import QAlignMetric
from support.goldens import GOLDEN, PICTURES
from support.torch_batches import floats, random_batch

NARROW = GOLDEN / "narrow-112"
FILES = sorted(PICTURES.iterdir())


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer.load(NARROW)


@pytest.fixture(scope="module")
def metric() -> QAlignMetric:
    return pyiqa.create_metric("qalign", model=NARROW)


@pytest.mark.parametrize("task", ["quality", "aesthetic", "aesthetics"])
def test_a_file_in_every_form_scores_as_by_the_scorer(metric: QAlignMetric, scorer: Scorer, task: str) -> None:
    file = FILES[0]
    expected = scorer.score(file, task).value
    for form in (str(file), file, file.read_bytes(), Image.open(file), floats(file)):
        score = metric(form, task_=task)
        assert score.shape == (1,)
        assert score.item() == pytest.approx(expected, abs=1e-5)
    assert metric(FILES).tolist() == pytest.approx([scorer.score(one).value for one in FILES], abs=1e-5)


def test_a_batch_of_any_size_grey_or_in_colour(metric: QAlignMetric, scorer: Scorer) -> None:
    for images in (random_batch(5, 3, 60, 50), random_batch(2, 1, 60, 50)):
        expected = [scorer.score(image).value for image in images]
        assert metric(images, None, input_="image").tolist() == pytest.approx(expected, abs=1e-5)
    assert metric(images.requires_grad_()).requires_grad is False


def test_without_a_model_it_is_one_align_of_the_hub(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(hub, "fetch", lambda model: asked.append(model) or NARROW)
    assert pyiqa.create_metric("qalign")(FILES[0]).item() == pytest.approx(scorer.score(FILES[0]).value, abs=1e-5)
    in_8_bits = pyiqa.create_metric("qalign_8bit", device="cpu")
    assert in_8_bits.net.engine.precision == "bnb-int8"
    assert in_8_bits(FILES[0]).item() == pytest.approx(scorer.score(FILES[0]).value, abs=0.2)
    assert asked == ["q-future/one-align"] * 2


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_loss_has_a_gradient_and_clips(reduction: str, scorer: Scorer) -> None:
    loss = pyiqa.create_metric("qalign", as_loss=True, loss_reduction=reduction, model=NARROW, rounded=True)
    images = (1.5 * random_batch(2, 3, 60, 50) - 0.2).requires_grad_()
    expected = torch.tensor([scorer.score(image.detach().clamp(0, 1)).value for image in images])
    expected = expected if reduction == "none" else getattr(expected, reduction)()
    found = loss(images)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    (gradient,) = torch.autograd.grad(found.sum(), images)
    assert gradient.abs().max() > 0
    assert gradient[(images < -0.01) | (images > 1.01)].abs().max() == 0


def test_results_lie_where_the_metric_was_put() -> None:
    metric = pyiqa.create_metric("qalign", model=None)
    assert metric.device == torch.device("cpu")
    assert metric(random_batch(1, 3, 40, 30)).device.type == "cpu"
    assert metric.to("meta")(random_batch(1, 3, 40, 30)).device.type == "meta"  # stands for any other device


def test_models_are_listed_as_fnmatch_finds_them() -> None:
    assert pyiqa.list_models() == ["qalign", "qalign_4bit", "qalign_8bit"]
    assert pyiqa.list_models("NR", filter="*_8*") == ["qalign_8bit"]
    assert pyiqa.list_models(filter=["qalign", "*4bit"], exclude_filters="*bit") == ["qalign"]
    assert pyiqa.list_models("FR") == pyiqa.list_models(filter="niqe") == []


def test_mistakes_are_one_line(metric: QAlignMetric) -> None:
    for wrong, text in (
        ({"metric_name": "niqe"}, "metric 'niqe' is not here; there are: qalign, qalign_8bit, qalign_4bit"),
        ({"metric_name": "qalign_8bit", "as_loss": True}, "qalign_8bit has no gradient; 'qalign' has one"),
        ({"loss_reduction": "max"}, "loss_reduction is 'max'"),
        ({"loss_weight": 2.0}, "loss_weight: scores"),
        ({"dtype": "4bit"}, "dtype: no options of qalign here; it has: api_key, base, device"),
        ({"as_loss": True, "model": None}, "an artifact, whose rounded weights have no gradient"),
    ):
        with pytest.raises(OptionError, match=text):
            pyiqa.create_metric(**({"metric_name": "qalign", "model": NARROW} | wrong))
    with pytest.raises(OptionError, match="metric_mode is 'XR'"):
        pyiqa.list_models("XR")
    with pytest.raises(OptionError, match="input_ is 'video'"):
        metric(FILES[0], input_="video")
    with pytest.raises(OptionError, match="load_weights"):
        metric.load_weights("weights.pth")
    with pytest.raises(TaskError, match="'beauty' is not in this model"):
        metric(FILES[0], task_="beauty")
    with pytest.raises(ImageError, match=r"expected \[B, 1 or 3, H, W\]"):
        metric(torch.zeros(3, 8, 8))
    with pytest.raises(ImageError, match="values go from 0 to 2"):
        metric(torch.tensor([0.0, 2.0]).expand(1, 3, 8, 2))
    unchecked = pyiqa.create_metric("qalign", model=NARROW, check_input_range=False)
    beyond = 3 * random_batch(1, 3, 40, 40) - 1
    assert torch.equal(unchecked(beyond), metric(beyond.clamp(0, 1)))
