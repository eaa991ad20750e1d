"""Pictures as torch tensors in, scores [B] out, as torch modules: by any engine, or with a gradient to the pixels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from qalign_fast.needs import need

need("torch", "'qalign-fast[torch]'")
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from qalign_fast.adapters.frozen_model import load_frozen
from qalign_fast.adapters.tensor_batches import check_batch, check_floats, score_batch
from qalign_fast.errors import ImageError, OptionError
from qalign_fast.families.prompt import Prompt
from qalign_fast.pixels.float_square import pad_and_resize_floats
from qalign_fast.scorer import Scorer


class ScoreModule(nn.Module):
    """Scores without a gradient, by any engine: for validation, and for rewards.

    It has no parameters and an empty state_dict. The engine stays on its device; scores lie where the pictures are.

    model: a Scorer, or what `Scorer.load` takes, with its options in `options`.
    batch_size: pictures that the engine takes at a time. Raises what `Scorer.load` raises, and TaskError.
    """

    def __init__(
        self, model: Scorer | str | Path | None = None, *, task: str = "quality", batch_size: int = 16, **options: Any
    ) -> None:
        super().__init__()
        self.scorer = model if isinstance(model, Scorer) else Scorer.load(model, **options)
        self.scorer.require((task,))
        self.task, self.batch_size = task, batch_size

    def forward(self, images: Tensor, task: str | None = None) -> Tensor:
        """uint8, or floats on 0..1, [B, 1 or 3, H, W] -> float32 [B] on the same device.

        `task` in place of the module's. Raises ImageError and TaskError.
        """
        scores = score_batch(self.scorer, check_batch(images), task or self.task, self.batch_size)
        return scores.to(images.device)


class DifferentiableScore(nn.Module):
    """Scores with a gradient to the pixels, by a checkpoint's frozen reference model: for losses and for ascent.

    It has no parameters and an empty state_dict, and its precision stays where a trainer changes its own. Copies share
    the weights; pickle loads them anew. `to` moves it. Under an autocast it computes as without.

    The picture is padded and resized as by `Scorer`, but without its rounding to 8 bits, which has no gradient. So
    scores differ a little from those of `Scorer`, except for 8-bit pictures that have the model's size already.

    model: the directory of a checkpoint or an adapter, or a Hub id; `base` is as `Scorer.load` takes it.
    device: "cpu", "cuda", "cuda:N", "mps", or "auto", the first CUDA device if there is one.
    precision: "fp32"; "bf16", whose linears have 16 bits; or "fp64", to test gradients.
    recompute: how many pictures' activations are held at a time. They are computed again in the backward pass, which
        costs one more forward pass. None holds those of the whole batch.
    rounded: rounds as `Scorer` does, so that scores are the same; the gradient is then that without rounding.
    check: whether values beyond 0..1 raise an error; else they are clipped, and have no gradient.

    Raises what `load_frozen` raises, TaskError, and OptionError for a number below 1.
    """

    def __init__(
        self,
        model: str | Path | None,
        *,
        task: str = "quality",
        device: str = "cpu",
        precision: str = "fp32",
        base: str | Path | None = None,
        recompute: int | None = None,
        rounded: bool = False,
        check: bool = True,
    ) -> None:
        super().__init__()
        if recompute is not None and recompute < 1:
            raise OptionError(f"recompute is {recompute}; expected 1 or more, or None")
        self._frozen = load_frozen(model, device, precision, base)
        self._frozen.prompt(task)
        self.task, self.recompute, self.rounded, self.check = task, recompute, rounded, check

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return torch.device(self._frozen.device)

    def forward(self, images: Tensor, task: str | None = None) -> Tensor:
        """Floats on 0..1, [B, 1 or 3, H, W] -> scores [B] on 1..5, on the same device.

        They are float32, or float64 where the model is. `task` in place of the module's. Raises ImageError and
        TaskError.
        """
        prompt = self._frozen.prompt(task or self.task)
        check_batch(images)
        if not images.is_floating_point():
            raise ImageError(f"a tensor of {images.dtype}, which has no gradient; expected floats on 0..1")
        if self.check:
            check_floats(images)
        given = images.to(self.device, self._frozen.between).expand(-1, 3, -1, -1)
        if self.recompute is None:
            return self._score(given, prompt).to(images.device)
        scores = [
            checkpoint(self._score, part, prompt, use_reentrant=False, preserve_rng_state=False)
            for part in torch.split(given, self.recompute)
        ]
        return torch.cat(scores).to(images.device)

    def _score(self, images: Tensor, prompt: Prompt) -> Tensor:
        """[b, 3, H, W] in the model's dtype and on its device -> [b]."""
        rule, scale = self._frozen.config.pixels, self._frozen.family.scale
        with torch.autocast(images.device.type, enabled=False):
            squares = pad_and_resize_floats(images, rule.side, rule.pad, self.rounded)
            logits = self._frozen.logits(255 * squares.movedim(1, -1), prompt)  # [b, levels]
            return (logits.softmax(-1) * logits.new_tensor(scale.values)).sum(-1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `to`, `cuda` and `half` call: only the device that they ask for counts."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._frozen = self._frozen.to(fn(torch.empty(0, device=self.device)).device)
        return self
