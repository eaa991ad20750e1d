"""Inside pyiqa 0.1.16: its metrics and ours side by side, in one user's program and call by call.

pyiqa's own code of qalign runs, in 16 bits, on the golden checkpoint in place of OneAlign's.
"""

from __future__ import annotations

import inspect
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from qalign_fast import hub
from qalign_fast.adapters import pyiqa as ours
from qalign_fast.pixels.picture import load_pixels
from qalign_fast.pixels.rule import SquareRule
from support.documents import ROOT
from support.torch_batches import floats, random_batch

FILES = sorted((ROOT / "tests/golden/pictures").iterdir())
NEAR = 0.015  # pyiqa's 16 bits and its resize; measured: .0075 at most
USERS = """import pyiqa
import torch

metric = pyiqa.create_metric("qalign", device=torch.device("cpu"))
print(pyiqa.list_models("NR", filter="qalign*"), metric.score_range, metric.lower_better)
scores = {path: metric(path).item() for path in paths}
aesthetic = {path: metric(path, task_="aesthetic").item() for path in paths}
best = (min if metric.lower_better else max)(scores, key=scores.get)
"""


@cache
def our_metric() -> ours.QAlignMetric:
    return ours.create_metric("qalign", model=ROOT / "tests/golden/narrow-112")


def test_one_line_of_a_users_program_changes(
    theirs: ModuleType, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hub, "fetch", {"q-future/one-align": checkpoint}.__getitem__)
    before, after = ({"paths": [str(file) for file in FILES]} for _ in range(2))
    exec(USERS, before)
    exec(USERS.replace("import pyiqa", "from qalign_fast.adapters import pyiqa"), after)
    first, second = capsys.readouterr().out.splitlines()[-2:]
    assert first == second == "['qalign', 'qalign_4bit', 'qalign_8bit'] 1, 5 False"
    for name in ("scores", "aesthetic"):
        assert after[name] == pytest.approx(before[name], abs=NEAR)
    assert after["best"] == before["best"]


def test_attributes_and_signatures_are_pyiqas(theirs: ModuleType) -> None:
    one, other = theirs.create_metric("qalign", device="cpu"), our_metric()
    names = (
        "metric_name lower_better metric_mode score_range as_loss loss_weight loss_reduction check_input_range seed eps"
    )
    for name in names.split():
        assert getattr(other, name) == getattr(one, name), name
    for found, wanted in (
        (ours.create_metric, theirs.create_metric),
        (ours.list_models, theirs.list_models),
        (type(other), type(one)),
    ):
        has = {name: p.default for name, p in inspect.signature(found).parameters.items()}
        for name, parameter in inspect.signature(wanted).parameters.items():
            assert name == "kwargs" or has[name] == parameter.default, name
    assert theirs.create_metric("piqe").device == ours.create_metric("qalign", model=None).device
    assert (
        theirs.create_metric("piqe", device="cpu").device
        == ours.create_metric("qalign", device="cpu", model=None).device
    )


@pytest.mark.parametrize("shape", [(1, 3, 90, 120), (4, 3, 64, 64), (2, 1, 64, 64)])
def test_a_batchs_scores_have_pyiqas_shape_and_device(theirs: ModuleType, shape: tuple[int, ...]) -> None:
    """PIQE needs no weights, and takes batches; qalign refuses all but one picture in colour."""
    images = random_batch(*shape)
    wanted, found = theirs.create_metric("piqe")(images), our_metric()(images)
    assert (found.shape, found.device) == (wanted.shape, wanted.device)
    qalign = theirs.create_metric("qalign", device="cpu")
    if shape[:2] == (1, 3):
        torch.testing.assert_close(found, qalign(images).float(), rtol=0, atol=NEAR)
        assert (found.dtype, qalign(images).dtype) == (torch.float32, torch.float16)
    else:
        with pytest.raises((AssertionError, TypeError)):
            qalign(images)


def test_what_pyiqa_takes_besides_tensors(theirs: ModuleType) -> None:
    file = str(FILES[0])
    qalign = theirs.create_metric("qalign", device="cpu")
    for form in (file, Path(file).read_bytes(), Image.open(file), floats(file)):
        torch.testing.assert_close(our_metric()(form), qalign(form).float(), rtol=0, atol=NEAR)


def test_pyiqas_qalign_as_a_loss_has_no_gradient_and_ours_has(theirs: ModuleType) -> None:
    images = random_batch(1, 3, 90, 120).requires_grad_()
    theirs_loss = theirs.create_metric("qalign", device="cpu", as_loss=True)(images)
    loss = ours.create_metric("qalign", as_loss=True, model=ROOT / "tests/golden/narrow-112", rounded=True)(images)
    assert loss.item() == pytest.approx(theirs_loss.item(), abs=NEAR)
    assert (theirs_loss.requires_grad, loss.requires_grad) == (False, True)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_pixels_differ_from_pyiqas_in_few_places_by_one_or_two_steps(
    theirs: ModuleType, checkpoint: Path, file: Path
) -> None:
    """transformers 5 resizes with torchvision, where the authors' code has Pillow."""
    from transformers import CLIPImageProcessor

    net = theirs.create_metric("qalign", device="cpu").net
    normalized = CLIPImageProcessor.from_pretrained(checkpoint)
    rule = SquareRule(112, tuple(normalized.image_mean), tuple(normalized.image_std))
    pixels = net.preprocess(floats(file))[0].float().movedim(0, -1) * torch.tensor(rule.std) + torch.tensor(rule.mean)
    apart = np.abs(255 * pixels.numpy() - load_pixels(file, rule))
    assert apart.max() < 2.5
    assert (apart > 0.5).mean() < 0.01


def test_a_tensors_values_are_rounded_here_and_cut_off_there(theirs: ModuleType) -> None:
    grey = torch.full((1, 3, 112, 112), 100.6 / 255)
    net = theirs.create_metric("qalign", device="cpu").net
    assert torch.equal(net.preprocess(grey), net.preprocess(torch.full_like(grey, 100 / 255)))
    assert torch.equal(our_metric()(grey), our_metric()(torch.full_like(grey, 101 / 255)))
    assert not torch.equal(our_metric()(grey), our_metric()(torch.full_like(grey, 100 / 255)))
