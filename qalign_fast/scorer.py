"""Pictures or a clip in, `Score`s out: the front door. Pixels on worker threads, vision once, one decode a task.

What loads models and reads clips is imported when it is first used, so that importing the package stays quick.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, TypeAlias, cast, overload

import numpy as np
from PIL import Image

from qalign_fast.errors import ImageError, TaskError, VideoError
from qalign_fast.levels import Score, score_of
from qalign_fast.pixels.picture import MAX_BYTES, MAX_PIXELS, Picture, Pixels, formats, load_pixels

if TYPE_CHECKING:
    from qalign_fast.engines.contract import Engine
    from qalign_fast.families.family import Sizes
    from qalign_fast.families.prompt import Prompt
    from qalign_fast.pixels.clip import Clip, Sampling

Scores: TypeAlias = dict[str, Score]  # by task
Batch: TypeAlias = list[Pixels | ImageError]  # or the error in a picture's place
MAX_FRAMES = 31  # what 2048 positions hold at OneAlign's 65 tokens a frame
_NICER = 5  # a third of the engine's share of a core that both want


@dataclass(frozen=True)
class PictureLimits:
    """What a picture may be, checked before its pixels are decoded, and whether its EXIF orientation is applied."""

    max_bytes: int = MAX_BYTES
    max_pixels: int = MAX_PIXELS
    exif_rotate: bool = False


class Scorer:
    """A loaded model that rates pictures and clips on 1 (bad) to 5 (excellent)."""

    def __init__(self, engine: Engine, limits: PictureLimits = PictureLimits()) -> None:
        self._engine = engine
        self._limits = limits
        self._prompts = {p.name: p for p in engine.prompts}

    @classmethod
    def load(
        cls,
        model: str | Path | None = None,
        *,
        device: str = "auto",
        precision: str | None = None,
        engine: str = "auto",
        threads: int | None = None,
        verify: bool = True,
        limits: PictureLimits = PictureLimits(),
    ) -> Self:
        """A scorer for a model: None (the embedded mini model), an artifact or checkpoint directory, or a Hub id.

        `precision` is a checkpoint's "fp32", "bnb-int8" or "bnb-nf4" (bitsandbytes'); an artifact has one of its own.
        `verify` hashes an artifact's files before they are read. Raises ArtifactError, CheckpointError, DeviceError
        or MissingExtraError.
        """
        from qalign_fast.engines.load import load_engine
        from qalign_fast.engines.options import LoadOptions

        options = LoadOptions(device, precision, engine, threads, verify)
        return cls(load_engine(model, options), limits)

    def warm(self) -> Self:
        """Scores a grey picture in every task, so that the next score takes no longer than those that follow it.

        For a server, before it takes requests: `scorer = Scorer.load().warm()`. A first score reads the pages of mapped
        weights, takes memory and imports what opens pictures; a full-size model's may take twice as long as a second.
        """
        grey = BytesIO()
        Image.new("RGB", (64, 64), "grey").save(grey, "JPEG")
        formats()
        self.score_tasks(grey.getvalue(), self.tasks())
        return self

    @property
    def engine(self) -> Engine:
        return self._engine

    @property
    def config(self) -> Sizes:
        return self._engine.config

    def tasks(self, medium: str = "image") -> tuple[str, ...]:
        """The tasks this model has for a medium, "image" or "video"."""
        return tuple(p.task for p in self._prompts.values() if p.medium == medium)

    @overload
    def score(self, images: list[Picture] | tuple[Picture, ...], task: str = ...) -> list[Score]: ...
    @overload
    def score(self, images: Picture, task: str = ...) -> Score: ...
    def score(self, images: Picture | Sequence[Picture], task: str = "quality") -> Score | list[Score]:
        """One picture in, one Score out; a list in, a list out, in order.

        A picture is a path, encoded bytes, a binary file, a PIL image or a uint8 array [H, W, 3] or [H, W]. Raises
        ImageError for one that cannot be read, TaskError for a task the model does not have.
        """
        if isinstance(images, list | tuple):
            return [scores[task] for scores in self._score_list(images, (task,))]
        return self._score_list([cast(Picture, images)], (task,))[0][task]

    @overload
    def score_tasks(self, images: list[Picture] | tuple[Picture, ...], tasks: Sequence[str] = ...) -> list[Scores]: ...
    @overload
    def score_tasks(self, images: Picture, tasks: Sequence[str] = ...) -> Scores: ...
    def score_tasks(
        self, images: Picture | Sequence[Picture], tasks: Sequence[str] = ("quality", "aesthetics")
    ) -> Scores | list[Scores]:
        """As `score`, in several tasks: {task: Score} for each picture. The vision tower runs once."""
        if isinstance(images, list | tuple):
            return self._score_list(images, tasks)
        return self._score_list([cast(Picture, images)], tasks)[0]

    def score_iter(
        self,
        images: Iterable[Picture],
        task: str = "quality",
        *,
        batch_size: int = 16,
        workers: int = 4,
        errors: Literal["raise", "yield"] = "raise",
    ) -> Iterator[Score | ImageError]:
        """Scores pictures as they come, in order, with bounded memory; reads ahead by two batches on worker threads.

        With errors="yield" a picture that cannot be read gives its ImageError in its place, and the rest go on.
        """
        for item in self.score_tasks_iter(images, (task,), batch_size=batch_size, workers=workers, errors=errors):
            yield item if isinstance(item, ImageError) else item[task]

    def score_tasks_iter(
        self,
        images: Iterable[Picture],
        tasks: Sequence[str] = ("quality", "aesthetics"),
        *,
        batch_size: int = 16,
        workers: int = 4,
        errors: Literal["raise", "yield"] = "raise",
    ) -> Iterator[Scores | ImageError]:
        """As `score_iter`, in several tasks: {task: Score} for each picture."""
        if batch_size < 1 or workers < 1:
            raise ValueError(f"batch_size is {batch_size}, workers {workers}; both must be 1 or more")
        prompts = self._find(tasks, "image")
        batches = self._load_batches(images, batch_size, workers)
        for results in self._in_flight(lambda batch: self._score_batch(batch, prompts, errors), batches):
            yield from results

    def score_video(
        self,
        clip: str | os.PathLike[str] | Sequence[Picture],
        task: str = "quality",
        *,
        fps: float = 1.0,
        max_frames: int = MAX_FRAMES,
        sampling: Sampling = "index",
    ) -> Score:
        """One Score for a clip: a video file, sampled at `fps` frames a second, or a list of frames, all of them.

        At most max_frames are used, spread evenly, with a warning in the Score. `sampling` is "index", upstream's rule,
        or "time", by presentation time, for a varying frame rate. Raises VideoError, ImageError, TaskError.
        """
        return self.score_video_tasks(clip, (task,), fps=fps, max_frames=max_frames, sampling=sampling)[task]

    def score_video_tasks(
        self,
        clip: str | os.PathLike[str] | Sequence[Picture],
        tasks: Sequence[str] = ("quality", "aesthetics"),
        *,
        fps: float = 1.0,
        max_frames: int = MAX_FRAMES,
        sampling: Sampling = "index",
    ) -> Scores:
        """As `score_video`, in several tasks. The vision tower runs once."""
        from qalign_fast.pixels.clip import load_clip

        prompts = self._find(tasks, "video")
        self._check_frames(max_frames, prompts)
        if isinstance(clip, str | os.PathLike):
            loaded = load_clip(clip, self.config.pixels, max_frames=max_frames, fps=fps, sampling=sampling)
        else:
            loaded = self._load_frames(clip, max_frames)
        tokens = self._engine.encode(loaded.pixels)
        frames = len(loaded.pixels)
        sequence = tokens.reshape(1, -1, tokens.shape[-1])  # the frames' tokens, end to end
        return {
            p.task: score_of(self._engine.decode(sequence, p)[0], p.task, frames=frames, warnings=loaded.warnings)
            for p in prompts
        }

    def require(self, tasks: Sequence[str], medium: str = "image") -> None:
        """Raises TaskError, which lists what there is, unless the model has these tasks."""
        self._find(tasks, medium)

    def _find(self, tasks: Sequence[str], medium: str) -> list[Prompt]:
        names = [tasks] if isinstance(tasks, str) else list(dict.fromkeys(tasks))
        for task in names:
            if f"{task}.{medium}" not in self._prompts:
                has = ", ".join(self.tasks(medium))
                raise TaskError(f"task {task!r} is not in this model; for {medium}s it has: {has}")
        return [self._prompts[f"{task}.{medium}"] for task in names]

    def _score_list(self, images: Sequence[Picture], tasks: Sequence[str]) -> list[Scores]:
        workers = max(1, min(len(images), 4))
        return [cast(Scores, item) for item in self.score_tasks_iter(images, tasks, workers=workers)]

    def _in_flight(
        self, score: Callable[[Batch], list[Scores | ImageError]], batches: Iterator[Batch]
    ) -> Iterator[list[Scores | ImageError]]:
        """Each batch's results in order, as many batches under way as the engine gains by."""
        if self._engine.in_flight == 1:
            yield from map(score, batches)
            return
        ahead: deque[Future[list[Scores | ImageError]]] = deque()
        with _threads(self._engine.in_flight, "qalign-batches") as pool:
            for batch in batches:
                ahead.append(pool.submit(score, batch))
                if len(ahead) == self._engine.in_flight:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def _score_batch(
        self, batch: Batch, prompts: list[Prompt], errors: Literal["raise", "yield"]
    ) -> list[Scores | ImageError]:
        for item in batch if errors == "raise" else ():
            if isinstance(item, ImageError):
                raise item
        good = [item for item in batch if not isinstance(item, ImageError)]
        results: Iterator[Scores] = iter(())
        if good:
            tokens = self._engine.encode(np.stack(good))
            logits = [self._engine.decode(tokens, p) for p in prompts]
            results = ({p.task: score_of(l[i], p.task) for p, l in zip(prompts, logits)} for i in range(len(good)))
        return [item if isinstance(item, ImageError) else next(results) for item in batch]

    def _load_batches(self, images: Iterable[Picture], batch_size: int, workers: int) -> Iterator[Batch]:
        """Batches of pixels, two batches read ahead."""
        source = iter(images)
        ahead: deque[Future[Pixels | ImageError]] = deque()
        with _threads(workers, "qalign-pixels", _give_way if workers > 1 else None) as pool:
            while True:
                ahead.extend(
                    pool.submit(self._try_load, image) for image in islice(source, 3 * batch_size - len(ahead))
                )
                if not ahead:
                    return
                yield [ahead.popleft().result() for _ in range(min(batch_size, len(ahead)))]

    def _try_load(self, image: Picture) -> Pixels | ImageError:
        try:
            return self._load(image)
        except ImageError as error:
            return error

    def _load(self, image: Picture) -> Pixels:
        limits = self._limits
        return load_pixels(
            image,
            self.config.pixels,
            max_bytes=limits.max_bytes,
            max_pixels=limits.max_pixels,
            exif_rotate=limits.exif_rotate,
        )

    def _load_frames(self, frames: Sequence[Picture], max_frames: int) -> Clip:
        from qalign_fast.pixels.clip import Clip, spread

        if len(frames) == 0:
            raise VideoError("a clip needs at least one frame; the list is empty")
        chosen = spread(len(frames), max_frames)
        warnings: tuple[str, ...] = ()
        if len(chosen) < len(frames):
            warnings = (f"{len(chosen)} of {len(frames)} frames, spread evenly; max_frames is {max_frames}",)
        return Clip(np.stack([self._load(frames[i]) for i in chosen]), warnings)

    def _check_frames(self, max_frames: int, prompts: list[Prompt]) -> None:
        most = min(self.config.max_frames(len(p.prefix) + len(p.suffix)) for p in prompts)
        if not 1 <= max_frames <= most:
            raise VideoError(f"max_frames is {max_frames}; this model's positions hold 1 to {most}")


@contextmanager
def _threads(count: int, name: str, start: Callable[[], None] | None = None) -> Iterator[ThreadPoolExecutor]:
    """A pool that is left without waiting for it.

    What is left may be an iterator that nobody finished. It ends where garbage is collected, in any thread and under
    any lock: in a thread that is just starting, for one, whose lock every wait for a thread takes.
    """
    pool = ThreadPoolExecutor(count, name, start)
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _give_way() -> None:
    """Lets the engine's threads go before this one: an engine waits for the slowest of its threads.

    Only Linux has a priority by thread. A single worker, as for a single picture, has no engine to give way to.
    """
    if sys.platform == "linux":
        os.nice(_NICER)
