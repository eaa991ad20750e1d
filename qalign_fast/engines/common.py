"""What the engines of GPUs share: the sizes of batches, rows that fill up a batch, and a first picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    from qalign_fast.engines.contract import Engine

BUCKETS = (1, 2, 4, 8, 16, 32, 64)  # a batch is rounded up to one of these; each is prepared once
Batch = TypeVar("Batch", bound=Any)  # a numpy array or a torch tensor


def bucket_of(count: int) -> int:
    """The smallest bucket that holds `count` pictures, of which there are no more than the largest bucket."""
    return next(size for size in BUCKETS if size >= count)


def split_batch(x: Batch) -> Iterator[Batch]:
    """[B, ...] -> parts of no more than the largest bucket, in order."""
    for start in range(0, len(x), BUCKETS[-1]):
        yield x[start : start + BUCKETS[-1]]


def fill_up(x: Batch, size: int, join: Callable[..., Batch]) -> Batch:
    """[B, ...] -> [size, ...], filled up with copies of the last one.

    A copy of a real picture gives finite numbers, as any picture does. `join`: np.concatenate or torch.cat.
    """
    return x if len(x) == size else join((x, *[x[-1:]] * (size - len(x))))


def score_grey_picture(engine: Engine) -> None:
    """Scores one grey picture, so that what the device cannot do shows at load. Raises as the engine does."""
    side = getattr(engine.config.pixels, "side", 64)
    engine.decode(engine.encode(np.full((1, side, side, 3), 127, np.uint8)), engine.prompts[0])
