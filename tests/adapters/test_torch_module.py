"""The modules of torch: scores against `Scorer.score`, gradients against differences, and what a trainer sees."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from qalign_fast import DeviceError, ImageError, OptionError, Scorer, TaskError
from qalign_fast.adapters.torch_module import DifferentiableScore, ScoreModule
from qalign_fast.pixels.picture import load_pixels
from support.goldens import GOLDEN, PICTURES, ROOT
from support.torch_batches import floats, random_batch

NARROW = GOLDEN / "narrow-112"
FILES = sorted(PICTURES.iterdir())


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer.load(NARROW)


@pytest.fixture(scope="module")
def loss() -> DifferentiableScore:
    return DifferentiableScore(NARROW)


def test_scores_are_the_scorers(scorer: Scorer) -> None:
    module = ScoreModule(scorer, task="aesthetics", batch_size=2)
    images = torch.cat([random_batch(3, 3, 70, 50), torch.zeros(1, 3, 70, 50)])
    expected = [scorer.score(image, "aesthetics").value for image in images]
    torch.testing.assert_close(module(images), torch.tensor(expected), rtol=0, atol=1e-6)
    assert module(images, "quality")[0] == pytest.approx(scorer.score(images[0]).value, abs=1e-6)
    assert not module(images.requires_grad_()).requires_grad
    grey = random_batch(2, 1, 40, 30)
    torch.testing.assert_close(module(grey), module(grey.expand(-1, 3, -1, -1)), rtol=0, atol=0)


def test_pictures_of_the_models_size_score_as_by_the_scorer(scorer: Scorer, loss: DifferentiableScore) -> None:
    pixels = [torch.tensor(load_pixels(file, scorer.config.pixels)) for file in FILES]
    images = torch.stack(pixels).movedim(-1, 1) / 255
    for task in ("quality", "aesthetics"):
        expected = torch.tensor([scorer.score(file, task).value for file in FILES])
        torch.testing.assert_close(loss(images, task), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_pictures_of_any_size_score_as_by_the_scorer(file: Path, scorer: Scorer, loss: DifferentiableScore) -> None:
    """To the bit with rounding; without it within what half a step of 255 moves: measured at most .0034 here."""
    expected = scorer.score(file).value
    rounded = DifferentiableScore(NARROW, rounded=True)
    assert rounded(floats(file)).item() == pytest.approx(expected, abs=2e-5)
    assert loss(floats(file)).item() == pytest.approx(expected, abs=0.01)


def test_what_rounding_moves_in_a_trained_model() -> None:
    """docs/with_torch.md says: .07 on average and .2 at most, on the samples."""
    scorer, modules = (
        Scorer.load(ROOT / "models/mini"),
        [DifferentiableScore(ROOT / "models/mini", rounded=r) for r in (0, 1)],
    )
    files = [file for file in sorted((ROOT / "samples").glob("*.jpg")) if file.stem != "astronaut_12mp"]
    expected = torch.tensor([scorer.score(file).value for file in files])
    smooth, rounded = (torch.cat([module(floats(file)) for file in files]) for module in modules)
    torch.testing.assert_close(rounded, expected, rtol=0, atol=2e-5)
    moved = (smooth - expected).abs()
    assert moved.max() < 0.2
    assert moved.mean() < 0.08


@pytest.mark.parametrize("shape", [(2, 3, 112, 112), (1, 3, 60, 90), (2, 1, 150, 97)])
def test_the_gradient_is_that_of_central_differences(shape: tuple[int, ...]) -> None:
    """In float64, along random directions."""
    module = DifferentiableScore(NARROW, precision="fp64")
    images = random_batch(*shape).double().requires_grad_()
    (gradient,) = torch.autograd.grad(module(images).sum(), images)
    for seed in range(4):
        along = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        with torch.no_grad():
            difference = (module(images + 1e-4 * along) - module(images - 1e-4 * along)).sum() / 2e-4
        assert (gradient * along).sum().item() == pytest.approx(difference.item(), rel=1e-3)


@pytest.mark.parametrize("checkpoint", [NARROW, ROOT / "models/mini"], ids=["random", "trained"])
def test_a_step_of_ascent_raises_the_score(checkpoint: Path) -> None:
    module = DifferentiableScore(checkpoint)
    images = torch.cat([floats(PICTURES / "chelsea_small.png"), random_batch(1, 3, 64, 97)]).requires_grad_()
    scores = module(images)
    (gradient,) = torch.autograd.grad(scores.sum(), images)
    better = (images + 0.002 * gradient.sign()).clamp(0, 1).detach()
    assert (module(better) > scores + 0.001).all()
    scorer = Scorer.load(checkpoint)  # and by the engine that rounds
    assert all(scorer.score(b).value > scorer.score(a.detach()).value for a, b in zip(images, better, strict=True))


def test_a_picture_does_not_feel_its_neighbours(loss: DifferentiableScore) -> None:
    images = random_batch(3, 3, 50, 40).requires_grad_()
    gradient = torch.autograd.grad(loss(images)[1], images)[0]
    assert gradient[[0, 2]].abs().max() == 0
    assert gradient[1].abs().max() > 0


def test_recomputing_gives_the_same_and_holds_less(loss: DifferentiableScore) -> None:
    def run(module: nn.Module, count: int) -> tuple[torch.Tensor, int]:
        held = 0

        def pack(x: torch.Tensor) -> torch.Tensor:
            nonlocal held
            held += x.nbytes
            return x

        images = random_batch(count, 3, 112, 112).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            scores = module(images)
        return torch.autograd.grad(scores.sum(), images)[0], held

    frugal = DifferentiableScore(NARROW, recompute=1)
    expected, whole = run(loss, 4)
    found, less = run(frugal, 4)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)
    assert less == 4 * 3 * 112 * 112 * 4  # the pictures themselves
    assert whole > 8 * less


def test_a_trainer_sees_no_weights_and_no_autocast(loss: DifferentiableScore, tmp_path: Path) -> None:
    trained = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sigmoid(), DifferentiableScore(NARROW))
    assert [name for name, _ in trained.named_parameters()] == ["0.weight", "0.bias"]
    torch.save(trained.state_dict(), tmp_path / "checkpoint.pt")
    assert (tmp_path / "checkpoint.pt").stat().st_size < 10_000
    trained.load_state_dict(torch.load(tmp_path / "checkpoint.pt"))
    images = random_batch(2, 3, 30, 40)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(images), loss(images))
        under = loss(images)
    assert torch.equal(under, loss(images))
    halved = copy.deepcopy(loss).half()
    assert torch.equal(halved(images), loss(images))
    trained[2](trained[1](trained[0](images))).sum().backward()
    assert trained[0].weight.grad.abs().max() > 0


def test_copies_share_the_weights_and_pickle_loads_them_anew(loss: DifferentiableScore) -> None:
    images = random_batch(1, 3, 30, 40)
    twin, loaded = copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))
    assert twin._frozen is loss._frozen
    assert len(pickle.dumps(loss)) < 10_000
    assert torch.equal(loaded(images), loss(images))


def test_moving_one_of_two_copies_moves_no_other(loss: DifferentiableScore) -> None:
    """To the meta device, which stands for any that is not the CPU."""
    twin = copy.deepcopy(loss).to("meta")
    assert (twin.device.type, loss.device.type) == ("meta", "cpu")
    assert {p.device.type for p in twin._frozen._model.parameters()} == {"meta"}
    assert {p.device.type for p in loss._frozen._model.parameters()} == {"cpu"}


def test_a_gradient_after_inference_mode(loss: DifferentiableScore) -> None:
    """What is kept of a prompt must not be a tensor of inference mode."""
    module, images = DifferentiableScore(NARROW), random_batch(1, 3, 30, 40)
    with torch.inference_mode():
        module(images)
    images.requires_grad_()
    torch.autograd.grad(module(images).sum(), images)


def test_bf16_is_near(loss: DifferentiableScore) -> None:
    images = random_batch(4, 3, 112, 112).requires_grad_()
    near = DifferentiableScore(NARROW, precision="bf16")
    torch.testing.assert_close(near(images), loss(images), rtol=0, atol=0.05)
    gradients = [torch.autograd.grad(module(images).sum(), images)[0].flatten(1) for module in (near, loss)]
    assert nn.functional.cosine_similarity(*gradients).min() > 0.95


def test_an_adapter_has_a_gradient() -> None:
    scorer = Scorer.load(GOLDEN / "lora-112", base=NARROW)
    module = DifferentiableScore(GOLDEN / "lora-112", base=NARROW, rounded=True)
    file = FILES[0]
    assert module(floats(file)).item() == pytest.approx(scorer.score(file).value, abs=2e-5)


def test_mistakes_are_one_line(loss: DifferentiableScore) -> None:
    with pytest.raises(OptionError, match="an artifact, whose rounded weights have no gradient; give the checkpoint"):
        DifferentiableScore(None)
    with pytest.raises(OptionError, match="family q_scorer have no gradient here"):
        DifferentiableScore(GOLDEN / "q-scorer-112")
    with pytest.raises(OptionError, match="precision is 'int8'; with a gradient there are: fp32, bf16, fp64"):
        DifferentiableScore(NARROW, precision="int8")
    with pytest.raises(OptionError, match="recompute is 0"):
        DifferentiableScore(NARROW, recompute=0)
    with pytest.raises(TaskError, match="for images it has: quality"):
        DifferentiableScore(NARROW, task="sharpness")
    with pytest.raises(TaskError, match="for images it has: quality"):
        ScoreModule(task="sharpness")
    with pytest.raises(DeviceError, match="cuda:9"):
        DifferentiableScore(NARROW, device="cuda:9")
    with pytest.raises(ImageError, match=r"shape \[3, 8, 8\]; expected \[B, 1 or 3, H, W\]"):
        loss(torch.zeros(3, 8, 8))
    with pytest.raises(ImageError, match="no gradient; expected floats"):
        loss(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ImageError, match=r"from 0 to 2; floats are on 0\.\.1"):
        loss(torch.tensor([0.0, 2.0]).expand(1, 3, 8, 2))
    unchecked = DifferentiableScore(NARROW, check=False)
    beyond = 3 * random_batch(1, 3, 40, 40) - 1
    assert unchecked(beyond).item() == pytest.approx(loss(beyond.clamp(0, 1)).item(), abs=1e-4)
