"""pyiqa's call in, our scores out: `create_metric("qalign")`, as pyiqa 0.1.16 has it, for pictures and batches.

import pyiqa                              becomes: from qalign_fast.adapters import pyiqa
metric = pyiqa.create_metric("qalign")     stays
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from qalign_fast.needs import need

need("torch", "'qalign-fast[torch]'")
import torch
from torch import Tensor, nn

from qalign_fast.adapters.tensor_batches import check_batch, check_floats, score_batch
from qalign_fast.adapters.torch_module import DifferentiableScore
from qalign_fast.errors import OptionError
from qalign_fast.pixels.picture import Picture
from qalign_fast.scorer import Scorer

ONE_ALIGN = "q-future/one-align"  # the Hub's id of the checkpoint that pyiqa loads
# pyiqa's name -> options to load the model with
_PRECISIONS = {"qalign": {}, "qalign_8bit": {"precision": "bnb-int8"}, "qalign_4bit": {"precision": "bnb-nf4"}}
_OPTIONS = {"device", "precision", "engine", "threads", "verify", "limits", "api_key", "base"}  # `Scorer.load`'s
_LOSS_OPTIONS = {"device", "precision", "base", "recompute", "rounded"}  # `DifferentiableScore`'s
_REDUCTIONS = ("none", "mean", "sum")


def create_metric(metric_name: str, as_loss: bool = False, device: Any = None, **options: Any) -> QAlignMetric:
    """The metric; `options` are those of `QAlignMetric`. Raises what it raises."""
    return QAlignMetric(metric_name, as_loss=as_loss, device=device, **options)


def list_models(
    metric_mode: str | None = None, filter: str | Iterable[str] = "", exclude_filters: str | Iterable[str] = ""
) -> list[str]:
    """The metrics of this module, sorted: those of the mode that match any pattern of `filter` and no excluded one.

    Raises OptionError for a mode other than "FR" and "NR".
    """
    if metric_mode not in (None, "FR", "NR"):
        raise OptionError(f"metric_mode is {metric_mode!r}; expected 'FR', 'NR' or None")
    names = [] if metric_mode == "FR" else sorted(_PRECISIONS)
    wanted, excluded = _patterns(filter) or ["*"], _patterns(exclude_filters)
    return [name for name in names if _matches(name, wanted) and not _matches(name, excluded)]


class QAlignMetric(nn.Module):
    """As pyiqa's InferenceModel of qalign: the same attributes, and the same call.

    metric_name: "qalign"; "qalign_8bit" and "qalign_4bit" load a checkpoint on bitsandbytes' linears.
    as_loss: gives a reduced score with a gradient to the pixels, by `DifferentiableScore`.
    device: where results lie, by default the first CUDA device if there is one, as pyiqa has it. The model runs there
        if it is given, and else where `Scorer.load` puts it.
    loss_reduction: of a loss, "mean", "sum" or "none".
    check_input_range: whether a tensor's values beyond 0..1 raise an error; else, and in a loss, they are clipped.
    model: what `Scorer.load` takes, or for a loss `DifferentiableScore`, with its options in `options`; by default
        OneAlign's checkpoint on the Hub.
    batch_size: pictures that the model takes at a time.

    Raises OptionError for a metric that is not here, for loss_weight (pyiqa's fails for scores [B]) and for other
    options that it cannot take; what `Scorer.load` or `DifferentiableScore` raises.
    """

    lower_better = False
    metric_mode = "NR"
    score_range = "1, 5"
    eps = 1e-6
    _place: Tensor

    def __init__(
        self,
        metric_name: str,
        as_loss: bool = False,
        loss_weight: object = None,
        loss_reduction: str = "mean",
        device: Any = None,
        seed: int = 123,
        check_input_range: bool = True,
        *,
        model: str | Path | None = ONE_ALIGN,
        batch_size: int = 16,
        **options: Any,
    ) -> None:
        super().__init__()
        _check(metric_name, as_loss, loss_weight, loss_reduction)
        self.metric_name, self.as_loss, self.seed = metric_name, as_loss, seed
        self.loss_weight, self.loss_reduction = loss_weight, loss_reduction
        self.check_input_range = check_input_range and not as_loss
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu") if device is None else device
        self.register_buffer("_place", torch.empty(0, device=self.device), persistent=False)
        self.batch_size = batch_size
        options = {
            "device": "auto" if device is None else str(torch.device(device)),
            **_PRECISIONS[metric_name],
            **options,
        }
        known = _LOSS_OPTIONS if as_loss else _OPTIONS
        if unknown := sorted(set(options) - known):
            raise OptionError(
                f"{', '.join(unknown)}: no options of {metric_name} here; it has: {', '.join(sorted(known))}"
            )
        self.net: Scorer | DifferentiableScore
        self.net = DifferentiableScore(model, check=False, **options) if as_loss else Scorer.load(model, **options)

    def forward(
        self,
        target: Tensor | Picture | list[Picture],
        ref: object = None,
        task_: str = "quality",
        input_: str = "image",
    ) -> Tensor:
        """Scores float32 [B], on the metric's device; of a loss, reduced, and with a gradient.

        target: a tensor [B, 1 or 3, H, W] of floats on 0..1; or, but for a loss, a picture or several in any form that
            `Scorer.score` takes: a path, bytes, a PIL picture.
        ref: not used, as in pyiqa's metrics without a reference.
        task_: one of the model's tasks; "aesthetic" has pyiqa's wording, "aesthetics" the authors'.

        Raises ImageError and TaskError; OptionError for an input_ other than "image", which pyiqa refuses too.
        """
        if input_ != "image":
            raise OptionError(f"input_ is {input_!r}; this metric takes 'image'; Scorer.score_video rates clips")
        if isinstance(self.net, DifferentiableScore):
            return self._reduced(self.net(check_batch(target).to(self._place.device), task_))
        if isinstance(target, Tensor):
            scores = score_batch(self.net, self._checked(target), task_, self.batch_size)
        else:
            found = self.net.score(target, task_)
            scores = torch.tensor([score.value for score in (found if isinstance(found, list) else [found])])
        return scores.to(self._place.device)

    def load_weights(self, weights_path: object, weight_keys: str = "params") -> None:
        """Raises OptionError: the model is chosen when the metric is created."""
        raise OptionError(f"load_weights({weights_path!r}): give create_metric the model, as in model='one-align-int8'")

    def _checked(self, images: Tensor) -> Tensor:
        images = check_batch(images)
        if not images.is_floating_point():
            return images
        if not self.check_input_range:
            return images.clamp(0, 1)
        check_floats(images)
        return images

    def _reduced(self, scores: Tensor) -> Tensor:
        return scores if self.loss_reduction == "none" else getattr(scores, self.loss_reduction)()


def _check(metric_name: str, as_loss: bool, loss_weight: object, loss_reduction: str) -> None:
    if metric_name not in _PRECISIONS:
        raise OptionError(f"metric {metric_name!r} is not here; there are: {', '.join(_PRECISIONS)}; pyiqa has others")
    if as_loss and metric_name != "qalign":
        raise OptionError(f"{metric_name} has no gradient; 'qalign' has one")
    if loss_weight is not None:
        raise OptionError("loss_weight: scores [B] take none; multiply them (loss_reduction='none')")
    if loss_reduction not in _REDUCTIONS:
        raise OptionError(f"loss_reduction is {loss_reduction!r}; expected one of: {', '.join(_REDUCTIONS)}")


def _patterns(given: str | Iterable[str]) -> list[str]:
    return ([given] if given else []) if isinstance(given, str) else list(given)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)
