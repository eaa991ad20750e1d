"""The pictures of a training step in, a reward for each out: for reinforcement learning of models that make pictures.

The model is in this process or on a server; the pictures then go there by HTTP and the answers come back as JSON.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Hashable, Sequence
from hashlib import blake2b
from typing import Any

from PIL import Image

from qalign_fast.errors import ImageError, OptionError, QAlignError
from qalign_fast.feed.items import Item, Medium
from qalign_fast.pixels.arrays import as_array, check_array, is_array, is_tensor
from qalign_fast.pixels.limits import LIMITS, unheard
from qalign_fast.pixels.picture import decode_callers
from qalign_fast.scorer import Scorer


class QualityReward:
    """Called with a list of pictures, it returns a list of floats, and `missing` for a picture that has no score.

    model: as `Scorer.load` takes it; "http://host:8000" is a server's address. `options` are `Scorer.load`'s too.
    task: what is rated. A reward is on 1 (bad) to 5 (excellent), or on 0..1 with `unit`.
    medium: "image", or "video": each of the list is then a clip, a list or a tensor [F, C, H, W] of its frames.
    missing: the reward of a picture that is damaged, or whose floats are not on 0..1. TRL takes None for it. Trainers
        that multiply rewards want a number, such as 0.0.
    batch_size: how many pictures the model takes at a time.

    Equal pictures of a call are scored once. It can be pickled; each process then loads the model for itself. Raises
    what `Scorer.load` raises, TaskError for a task that the model does not have, and OptionError.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        task: str = "quality",
        unit: bool = False,
        medium: Medium = "image",
        missing: float | None = None,
        batch_size: int = 16,
        **options: Any,
    ) -> None:
        if batch_size < 1:
            raise OptionError(f"batch_size is {batch_size}; expected 1 or more")
        self.scorer = Scorer.load(model, **options)  # type: ignore[arg-type]
        self.scorer.require((task,), medium)
        self.task, self.unit, self.medium, self.missing = task, unit, medium, missing
        self.batch_size = batch_size

    def __call__(self, images: Sequence[Any], prompts: object = None, metadata: object = None) -> list[float | None]:
        """images: a list of what `Scorer.score` takes, or a tensor [B, C, H, W] of floats on 0..1; clips for "video".

        Prompts and metadata, which trainers pass to every reward, are not used. Pictures without a score are told in
        one warning for the call. Raises OptionError for what is no list, ServerError for a server that cannot be
        reached, and what the engine raises.
        """
        if isinstance(images, str | bytes | os.PathLike | Image.Image):
            raise OptionError(f"one picture, of type {type(images).__name__}; expected a list of them, or a tensor")
        media = list(images)
        keys = [_key(one) for one in media]
        first = {key: i for i, key in reversed(list(enumerate(keys)))}
        items = [Item(key, media[i], self.medium) for key, i in first.items()]
        scored = list(self.scorer.feed.run(items, (self.task,), batch_size=self.batch_size))
        _warn([one.error for one in scored if one.error], len(items))
        rewards = {one.key: self.missing if one.error else self._reward(one.get()[self.task]) for one in scored}
        return [rewards[key] for key in keys]

    def _reward(self, score: Any) -> float:
        return float(score.unit if self.unit else score.value)


def _warn(errors: Sequence[QAlignError], count: int) -> None:
    if errors:
        text = f"{len(errors)} of {count} pictures have no score; the first: {errors[0]}"
        warnings.warn(text, RuntimeWarning, stacklevel=3)


def _key(media: Any) -> Hashable:
    """What equal pictures share. What is not looked into is equal to itself alone."""
    if isinstance(media, str | os.PathLike):
        return ("path", os.fspath(media))
    if isinstance(media, bytes | bytearray):
        return ("bytes", _digest(media))
    if isinstance(media, list | tuple):
        return tuple(map(_key, media))
    if isinstance(media, Image.Image):
        return _key_of_pil(media)
    if is_array(media):
        return _key_of_array(media)
    return id(media)


def _key_of_pil(image: Image.Image) -> Hashable:
    """By the pixels and all that may change how they are read: palette, profile, transparency, orientation.

    A file's picture, which may have more frames than one, is equal to itself alone.
    """
    if type(image) is not Image.Image:
        return id(image)
    try:
        turned = decode_callers(image, LIMITS, "a picture", unheard)
    except ImageError:  # which scoring says too
        return id(image)
    return (turned.mode, turned.size, _digest(turned.tobytes()), repr(image.info), repr(turned.getpalette()))


def _key_of_array(array: Any) -> Hashable:
    try:
        values = as_array(array, "a picture")
        check_array(values, "a picture", LIMITS.max_pixels)
    except ImageError:  # which scoring says too, of what is one picture
        return id(array)
    if is_tensor(values):
        import torch

        values = values.detach().cpu().contiguous().view(torch.uint8).numpy()
    return (type(array), tuple(array.shape), str(array.dtype), _digest(values.tobytes()))


def _digest(data: bytes | bytearray) -> bytes:
    return blake2b(data, digest_size=16).digest()
