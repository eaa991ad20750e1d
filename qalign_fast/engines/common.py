"""What the engines of GPUs share: sizes of batches, rows that fill one up, and a first picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    from qalign_fast.engines.contract import Engine

BUCKETS = (1, 2, 4, 8, 16, 32, 64)  # a batch is rounded up to one of these, each of which is made ready once
Batch = TypeVar("Batch", bound=Any)  # a numpy array or a torch tensor


def bucket_of(count: int) -> int:
    """The smallest that holds so many pictures."""
    return next(size for size in BUCKETS if size >= count)


def split_batch(x: Batch) -> Iterator[Batch]:
    """[B, ...] -> parts of no more than the largest bucket."""
    for start in range(0, len(x), BUCKETS[-1]):
        yield x[start : start + BUCKETS[-1]]


def fill_up(x: Batch, size: int, join: Callable[..., Batch]) -> Batch:
    """[B, ...] -> [size, ...]: the last one again and again. What is computed of it is as finite as a picture's is.

    `join`: np.concatenate or torch.cat.
    """
    return x if len(x) == size else join((x, *[x[-1:]] * (size - len(x))))


def score_grey_picture(engine: Engine) -> None:
    """So that what the device cannot do shows when the engine is loaded. Raises as the engine does."""
    side = getattr(engine.config.pixels, "side", 64)
    engine.decode(engine.encode(np.full((1, side, side, 3), 127, np.uint8)), engine.prompts[0])
