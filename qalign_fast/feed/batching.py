"""Batches of pixels in, `Scored` out: vision once, a decode for each prompt, and several batches under way."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from qalign_fast.feed.items import Item, Key, Moment, Scored
from qalign_fast.feed.prompts import find_prompts
from qalign_fast.feed.reading import ItemReader, Read, ReadAhead, Reader
from qalign_fast.feed.threads import Task, Threads, give_way
from qalign_fast.levels import make_score
from qalign_fast.pixels.arrays import is_tensor
from qalign_fast.pixels.limits import LIMITS, PictureLimits

if TYPE_CHECKING:
    import numpy.typing as npt

    from qalign_fast.engines.contract import Engine, Tokens
    from qalign_fast.families.prompt import Prompt
    from qalign_fast.levels import Answer, Score

_MOST_THREADS = 256  # of each kind of reader


class Feed:
    """Scores items with an engine; several threads may use it. `close` ends its threads, as `with` does.

    Whatever is raised while an item is read is in its Scored, and the others go on; what is not one of our errors is
    the cause of an InternalError. Errors of the engine, and of the iterable that gives the items, are raised.
    """

    def __init__(self, engine: Engine, limits: PictureLimits = LIMITS) -> None:
        self._engine, self._limits = engine, limits
        self._readers = Threads(_MOST_THREADS, "qalign-pixels", give_way)
        # For runs with one worker, which keeps its priority, because it works alone.
        self._lone_readers = Threads(_MOST_THREADS, "qalign-pixels")
        self._scorers = Threads(engine.in_flight, "qalign-batches")

    def score(self, item: Item[Key], tasks: Sequence[str]) -> Scored[Key]:
        """Scores one item in this thread."""
        return self.score_read([self.read(item, tasks)])[0]

    def read(self, item: Item[Key], tasks: Sequence[str]) -> Read[Key]:
        """Reads one item in this thread. `score_read` does the rest."""
        self._scorers.check_open()
        return Reader(self._engine, self._limits, tasks).read(item)

    def score_read(self, batch: Sequence[Read[Key]], *, strict: bool = False) -> list[Scored[Key]]:
        """Scores items that were read, of any tasks, in this thread: pictures of one size together, each clip alone.

        `strict` raises the first error about an item. Raises what the engine raises.
        """
        for read in batch if strict else ():
            if read.error:
                raise read.error
        alike: dict[tuple[object, ...], list[int]] = {}  # by device and shape: which of the batch
        for i, read in enumerate(batch):
            if read.pixels is not None:
                kind = i if read.medium == "video" else str(getattr(read.pixels, "device", "cpu"))
                alike.setdefault((kind, *read.pixels.shape[1:]), []).append(i)
        scored: list[Scored[Key]] = [Scored(read.key, None, read.error) for read in batch]
        for places in alike.values():
            for i, found in zip(places, self._scores([batch[i] for i in places]), strict=True):
                scored[i] = found
        return scored

    def run(
        self,
        items: Iterable[Item[Key]],
        tasks: Sequence[str],
        *,
        batch_size: int = 16,
        workers: int = 4,
        strict: bool = False,
    ) -> Iterator[Scored[Key]]:
        """Scores items as they come, in order, with bounded memory.

        At most three batches are held, the next one and two after it; `workers` threads read them. A picture's or an
        array's pixels are those that it has when it is taken. What one item scores does not depend on the others.
        `strict` raises the first error about an item, after the batches before it, in place of returning it.
        """
        reader = Reader(self._engine, self._limits, tasks)
        batches = self.read_ahead(items, reader, batch_size=batch_size, workers=workers)
        for scored in self.score_batches(batches, strict=strict):
            yield from scored

    def read_ahead(
        self,
        items: Iterable[Item[Key]],
        reader: ItemReader,
        *,
        batch_size: int,
        workers: int,
        group: Callable[[Key], object] | None = None,
    ) -> Iterator[list[Read[Key]]]:
        """The first half of `run`, with a reader of the caller's: batches of what was read, in order.

        No batch holds items of two groups, which `group` tells by an item's key.
        """
        threads = self._readers if workers > 1 else self._lone_readers
        return ReadAhead(items, reader, threads, batch_size, workers, group).batches()

    def score_batches(
        self, batches: Iterable[Sequence[Read[Key]]], *, strict: bool = False
    ) -> Iterator[list[Scored[Key]]]:
        """The second half of `run`: what each batch scores, in order. A read without pixels and error has no scores."""
        return self._in_flight(partial(self.score_read, strict=strict), iter(batches))

    def tasks(self, medium: str) -> tuple[str, ...]:
        """The tasks that the model has for a medium, "image" or "video"."""
        return tuple(prompt.task for prompt in self._engine.prompts if prompt.medium == medium)

    def require(self, tasks: Sequence[str], medium: str) -> None:
        """Raises TaskError, which lists what there is, unless the model has these tasks."""
        find_prompts(self._engine, tasks, medium)

    def close(self) -> None:
        """Ends the threads when they have done what they do. A run that goes on raises QAlignError."""
        for threads in (self._readers, self._lone_readers, self._scorers):
            threads.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _in_flight(
        self, score: Callable[[Sequence[Read[Key]]], list[Scored[Key]]], batches: Iterator[Sequence[Read[Key]]]
    ) -> Iterator[list[Scored[Key]]]:
        """Each batch's results in order, as many batches under way as the engine gains by."""
        if self._engine.in_flight == 1:
            yield from map(score, batches)
            return
        ahead: deque[Task[list[Scored[Key]]]] = deque()
        for batch in batches:
            ahead.append(self._scorers.call(partial(score, batch)))
            if len(ahead) == self._engine.in_flight:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

    def _scores(self, batch: list[Read[Key]]) -> list[Scored[Key]]:
        """Of pictures of one size, or of one clip. Each prompt is asked of the pictures that want it."""
        pixels = [read.pixels for read in batch if read.pixels is not None]
        tokens = self._engine.encode(self._join(pixels))
        timeline: tuple[Moment, ...] = ()
        frames = None
        if batch[0].medium == "video":
            frames = len(pixels[0])
            timeline = self._timeline(batch[0], tokens)
            tokens = tokens.reshape(1, -1, tokens.shape[-1])  # the frames' tokens, end to end
        found: dict[tuple[int, str], Score] = {}
        for prompt in {prompt.name: prompt for read in batch for prompt in read.prompts}.values():
            wanted = [i for i, read in enumerate(batch) if prompt in read.prompts]
            answers = self._answers(tokens if len(wanted) == len(batch) else tokens[wanted], prompt)
            for i, answer in zip(wanted, answers, strict=True):
                found[i, prompt.task] = self._score_of(answer, prompt, frames=frames, warnings=batch[i].warnings)
        return [
            Scored(read.key, {prompt.task: found[i, prompt.task] for prompt in read.prompts}, timeline=timeline)
            for i, read in enumerate(batch)
        ]

    def _timeline(self, clip: Read[Key], tokens: Tokens) -> tuple[Moment, ...]:
        """Each frame's scores as a picture, in the prompts that are asked of each."""
        answers = [(prompt, self._answers(tokens, prompt)) for prompt in clip.each]
        return tuple(
            Moment(index, time, {prompt.task: self._score_of(found[f], prompt) for prompt, found in answers})
            for f, (index, time) in enumerate(clip.moments if answers else ())
        )

    def _answers(self, tokens: Tokens, prompt: Prompt) -> list[Answer]:
        """Of each picture or clip [B, V, D]; the prompt's parts are asked as the family wants."""
        engine = self._engine

        def decode(prompt: Prompt, rows: Sequence[int] | None = None) -> npt.NDArray[np.float32]:
            return engine.decode(tokens if rows is None else tokens[rows], prompt)

        tail = engine.tail if engine.family.answer else {}
        return engine.family.answers(decode(prompt), prompt, decode, tail)

    def _score_of(self, answer: Answer, prompt: Prompt, **facts: Any) -> Score:
        return make_score(answer, prompt.task, scale=self._engine.family.scale, **facts)

    def _join(self, pixels: list[Any]) -> Any:
        """One batch [B, S, S, 3]: an array, or a tensor where the engine takes it as it lies."""
        if not is_tensor(pixels[0]):
            return pixels[0] if len(pixels) == 1 else np.concatenate(pixels)
        import torch

        batch = pixels[0] if len(pixels) == 1 else torch.cat(pixels)
        engine = self._engine
        stays = getattr(engine, "takes_tensors", False) and batch.device == torch.device(engine.device)
        return batch if stays else batch.cpu().numpy()
