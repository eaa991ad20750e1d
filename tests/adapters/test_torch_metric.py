"""The metric inside torchmetrics: values against `Scorer.score`, and what torchmetrics does with a metric."""

from __future__ import annotations

import pickle
from pathlib import Path

import matplotlib as mpl
import pytest
import torch
import torch.multiprocessing as mp
from torch import distributed
from torchmetrics import MetricCollection

from qalign_fast import ImageError, OptionError, Scorer, TaskError
from qalign_fast.adapters.torch_metric import QAlign
from support.command_line import python
from support.goldens import GOLDEN
from support.torch_batches import random_batch

NARROW = GOLDEN / "narrow-112"


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer.load()


def scores(scorer: Scorer, images: torch.Tensor, task: str = "quality") -> torch.Tensor:
    return torch.tensor([scorer.score(image, task).value for image in images])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_values_are_the_scorers_over_batches_of_any_size(scorer: Scorer, reduction: str) -> None:
    metric = QAlign(scorer, reduction=reduction, batch_size=2)
    batches = [random_batch(3, 3, 60, 50), random_batch(1, 3, 20, 90, seed=1), random_batch(2, 3, 30, 30, seed=2)]
    expected = [scores(scorer, batch) for batch in batches]
    reduce = {"mean": torch.mean, "sum": torch.sum, "none": torch.squeeze}[reduction]  # torchmetrics squeezes one value
    for batch, wanted in zip(batches, expected, strict=True):
        torch.testing.assert_close(metric(batch), reduce(wanted), rtol=0, atol=1e-5)  # forward: this batch's value
    torch.testing.assert_close(metric.compute(), reduce(torch.cat(expected)), rtol=0, atol=1e-5)
    metric.reset()
    metric.update(batches[1])
    torch.testing.assert_close(metric.compute(), reduce(expected[1]), rtol=0, atol=1e-5)


def test_flags_and_bounds_are_those_of_a_metric_without_a_reference() -> None:
    assert (QAlign.is_differentiable, QAlign.higher_is_better, QAlign.full_state_update) == (False, True, False)
    assert (QAlign.plot_lower_bound, QAlign.plot_upper_bound) == (1.0, 5.0)


def test_normalized_pictures_are_undone(scorer: Scorer) -> None:
    images = random_batch(2, 3, 60, 50).mul(255).round() / 255
    rule = scorer.config.pixels
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (rule.mean, rule.std))
    metric = QAlign(scorer, reduction="none", normalize=False)
    torch.testing.assert_close(metric((images - mean) / std), scores(scorer, images), rtol=0, atol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_model_is_in_no_state_and_copies_and_pickles_go_on(reduction: str) -> None:
    metric, images = QAlign(reduction=reduction), random_batch(2, 3, 40, 30)
    metric.update(images)
    assert len(pickle.dumps(metric)) < 20_000
    clone, loaded = metric.clone(), pickle.loads(pickle.dumps(metric))
    assert clone.scorer is metric.scorer
    for twin in (clone, loaded):
        assert torch.equal(twin.compute(), metric.compute())
        assert torch.equal(twin(images[:1]), metric.clone()(images[:1]))
    assert list(metric.parameters()) == []


def test_state_dict_has_the_sums_alone_and_loads(scorer: Scorer) -> None:
    metric, other, images = QAlign(scorer), QAlign(scorer), random_batch(2, 3, 40, 30)
    assert metric.state_dict() == {}
    metric.persistent(True)
    other.persistent(True)
    metric.update(images)
    state = metric.state_dict()
    assert {name: value.shape for name, value in state.items()} == {"total": (), "count": ()}
    other.load_state_dict(state)
    assert other.total.item() == metric.total.item() == pytest.approx(scores(scorer, images).sum().item(), abs=1e-5)


def test_a_collection_of_two_tasks() -> None:
    scorer, images = Scorer.load(NARROW), random_batch(3, 3, 40, 30)
    tasks = ("quality", "aesthetics")
    collection = MetricCollection(
        {task: QAlign(scorer, task=task) for task in tasks} | {"sum": QAlign(scorer, reduction="sum")}
    )
    for part in images.split(2):
        collection.update(part)
    found = collection.compute()
    for task in tasks:
        assert found[task].item() == pytest.approx(scores(scorer, images, task).mean().item(), abs=1e-5)
    assert found["sum"].item() == pytest.approx(scores(scorer, images).sum().item(), abs=1e-5)


def test_states_move_and_the_engine_stays(scorer: Scorer) -> None:
    metric = QAlign(scorer).to("meta")  # stands for any device that is not the engine's
    assert metric.total.device.type == "meta"
    metric.update(random_batch(1, 3, 40, 30))
    assert metric.total.device.type == "meta"
    assert metric.scorer.engine.device == "cpu"


def test_plot_has_the_value_and_the_bounds(scorer: Scorer) -> None:
    mpl.use("Agg")
    metric = QAlign(scorer)
    values = [metric(random_batch(1, 3, 40, 30, seed=seed)) for seed in range(2)]
    _, axes = metric.plot(values)
    assert axes.get_lines()[0].get_ydata().tolist() == pytest.approx([value.item() for value in values])
    low, high = axes.get_ylim()
    assert low <= 1 <= 5 <= high


def test_mistakes_are_one_line(scorer: Scorer) -> None:
    with pytest.raises(OptionError, match="reduction is 'max'; expected one of: mean, sum, none"):
        QAlign(scorer, reduction="max")
    with pytest.raises(TaskError, match="for images it has: quality"):
        QAlign(scorer, task="sharpness")
    for wrong in (torch.zeros(3, 8, 8), torch.zeros(1, 1, 8, 8), torch.zeros(0, 3, 8, 8), None):
        with pytest.raises(ImageError, match=r"expected (a tensor )?\[B, 3, H, W\]"):
            QAlign(scorer).update(wrong)
    with pytest.raises(ImageError, match=r"from 0 to 2; floats are on 0\.\.1"):
        QAlign(scorer).update(torch.tensor([0.0, 2.0]).expand(1, 3, 8, 2))
    with pytest.raises(ImageError, match="with normalize=False floats are expected"):
        QAlign(scorer, normalize=False).update(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


def test_without_torchmetrics_it_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['torchmetrics'] = None\n"
        "try: import qalign_fast.adapters.torch_metric\nexcept ImportError as error: print(error)"
    )
    assert "this needs torchmetrics: pip install torchmetrics" in python(code)


def _process(rank: int, meeting: str, out: str) -> None:
    """Rank 0 has three pictures, rank 1 one, and no picture of `late`."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    images = random_batch(4, 3, 40, 30)
    mine = images[:3] if rank == 0 else images[3:]
    metrics = {name: QAlign(reduction=name) for name in ("mean", "sum", "none")}
    for metric in metrics.values():
        for part in mine.split(2):
            metric.update(part)
    late = QAlign(reduction="none")
    if rank == 0:
        late.update(images[:1])
    found = {name: metric.compute() for name, metric in (metrics | {"late": late}).items()}
    found["mine"] = metrics["none"].scores  # after the sync it is this process's own again
    torch.save(found, f"{out}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_have_one_value(scorer: Scorer, tmp_path: Path) -> None:
    mp.spawn(_process, (str(tmp_path / "meeting"), str(tmp_path)), nprocs=2)
    expected = scores(scorer, random_batch(4, 3, 40, 30))
    for rank, mine in ((0, expected[:3]), (1, expected[3:])):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found["mean"].item() == pytest.approx(expected.mean().item(), abs=1e-5)
        assert found["sum"].item() == pytest.approx(expected.sum().item(), abs=1e-5)
        torch.testing.assert_close(found["none"], expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(found["late"], expected[0], rtol=0, atol=1e-6)
        torch.testing.assert_close(torch.cat(found["mine"]), mine, rtol=0, atol=1e-6)
