"""A batch of pictures as one torch tensor in, its scores as a tensor out: what torch's tools have in common."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qalign_fast.errors import ImageError
from qalign_fast.pixels.arrays import check_range
from qalign_fast.scorer import Scorer


def check_batch(images: Any, channels: tuple[int, ...] = (1, 3)) -> Tensor:
    """The batch, [B, C, H, W] with one of these numbers of channels and a picture at least. Raises ImageError."""
    wanted = f"[B, {' or '.join(map(str, channels))}, H, W]"
    if not isinstance(images, Tensor):
        raise ImageError(f"a {type(images).__name__}; expected a tensor {wanted}")
    if images.ndim != 4 or images.shape[1] not in channels or not images.numel():
        raise ImageError(
            f"a tensor of shape {list(images.shape)}; expected {wanted}; unsqueeze(0) makes a batch of one"
        )
    return images


def check_floats(images: Tensor) -> None:
    """Raises ImageError for floats beyond 0..1 by more than rounding, as `Scorer.score` does."""
    low, high = torch.aminmax(images.detach())
    check_range(float(low), float(high), "a batch")


def score_batch(scorer: Scorer, images: Tensor, task: str, batch_size: int = 16) -> Tensor:
    """uint8, or floats on 0..1, [B, C, H, W] on any device -> float32 [B] on the host, without a gradient.

    Raises ImageError and TaskError as `Scorer.score` does.
    """
    pictures = [picture.movedim(0, -1) for picture in images.detach()]  # [H, W, C], which leaves nothing to guess
    scores = scorer.score_iter(pictures, task, batch_size=batch_size, workers=min(len(pictures), 4))
    return torch.tensor([score.value for score in scores])  # type: ignore[union-attr]  # errors are raised
