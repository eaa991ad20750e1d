"""Batches of pictures in, their mean score out, over a whole run and all its processes: a metric of torchmetrics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from qalign_fast.needs import need

need("torch", "'qalign-fast[torch]'")
import torch
from torch import Tensor

from qalign_fast.adapters.tensor_batches import check_batch, score_batch
from qalign_fast.errors import ImageError, OptionError
from qalign_fast.scorer import Scorer

if TYPE_CHECKING:
    from torchmetrics import Metric
else:
    Metric = need("torchmetrics", "torchmetrics").Metric

_REDUCTIONS = ("mean", "sum", "none")


class QAlign(Metric):
    """Q-Align's scores, 1..5, as torchmetrics has its metrics of pictures without a reference.

    `update` takes pictures [N, 3, H, W], `compute` gives the mean or the sum of all scores, or with "none" all of them.
    The model is no part of state_dict. Copies share it, pickle loads it anew, and it stays on its device where
    the metric moves.

    model: a Scorer, or what `Scorer.load` takes; its options are in `load_options`.
    task: "quality", "aesthetics" or another task of the model.
    reduction: "mean", "sum" or "none".
    normalize: True for pictures of uint8 or of floats on 0..1, False for floats that were normalized with the model's
        mean and standard deviation, which are CLIP's.
    batch_size: pictures that the model takes at a time.
    options: `Metric`'s own: sync_on_compute, process_group and so on.

    Raises OptionError, TaskError, and what `Scorer.load` raises.
    """

    is_differentiable: bool = False
    higher_is_better: bool = True
    full_state_update: bool = False
    plot_lower_bound: float = 1.0
    plot_upper_bound: float = 5.0

    total: Tensor
    count: Tensor
    scores: list[Tensor]

    def __init__(
        self,
        model: Scorer | str | Path | None = None,
        *,
        task: str = "quality",
        reduction: Literal["sum", "mean", "none"] = "mean",
        normalize: bool = True,
        batch_size: int = 16,
        load_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if reduction not in _REDUCTIONS:
            raise OptionError(f"reduction is {reduction!r}; expected one of: {', '.join(_REDUCTIONS)}")
        self.scorer = model if isinstance(model, Scorer) else Scorer.load(model, **(load_options or {}))
        self.scorer.require((task,))
        self.task, self.reduction, self.normalize, self.batch_size = task, reduction, normalize, batch_size
        if reduction == "none":
            self.add_state("scores", [], dist_reduce_fx="cat")
        else:
            self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
            self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, img: Tensor) -> None:
        """Scores pictures [N, 3, H, W]. Raises ImageError for another shape, type or range."""
        img = check_batch(img, channels=(3,))
        pictures = img if self.normalize else self._undone(img)
        scores = score_batch(self.scorer, pictures, self.task, self.batch_size).to(self.device)
        if self.reduction == "none":
            self.scores.append(scores)
        else:
            self.total += scores.sum()
            self.count += len(scores)

    def compute(self) -> Tensor:
        """float32: a scalar, or with "none" the scores [N] of all pictures, which torchmetrics squeezes where N is 1.

        Without any picture the mean is not a number.
        """
        if self.reduction == "none":
            return (
                torch.cat([*self.scores, torch.empty(0, device=self.device)])
                if isinstance(self.scores, list)
                else self.scores
            )
        return self.total / self.count if self.reduction == "mean" else self.total

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Any = None) -> Any:
        """A figure and its axes, of values that `forward` or `compute` gave, by default of `compute`'s.

        Raises ModuleNotFoundError where matplotlib is missing.
        """
        return self._plot(val, ax)

    def _undone(self, img: Tensor) -> Tensor:
        """Floats on 0..1 of normalized ones. What rounding leaves beyond is clipped by as much."""
        if not img.is_floating_point():
            raise ImageError(f"a tensor of {img.dtype}; with normalize=False floats are expected")
        rule: Any = self.scorer.config.pixels
        mean, std = (torch.tensor(x, device=img.device).view(3, 1, 1) for x in (rule.mean, rule.std))
        return img.float() * std + mean
