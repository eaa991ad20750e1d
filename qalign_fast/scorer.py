"""The front door: pictures or a clip in, `Score`s out. What scoring needs is imported with the first model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from functools import partial
from pickle import PicklingError
from typing import TYPE_CHECKING, Literal, Self, TypeGuard, cast, overload

from qalign_fast.errors import OptionError, QAlignError
from qalign_fast.feed.items import ClipOptions, Item, Scores
from qalign_fast.pixels.limits import LIMITS, PictureLimits

if TYPE_CHECKING:
    from pathlib import Path

    from qalign_fast.engines.contract import Engine
    from qalign_fast.engines.options import LoadOptions
    from qalign_fast.families.family import Sizes
    from qalign_fast.feed.batching import Feed
    from qalign_fast.levels import Score
    from qalign_fast.pixels.clip import Sampling
    from qalign_fast.pixels.picture import Picture

    Many = list[Picture] | tuple[Picture, ...] | Iterator[Picture]


class Scorer:
    """A loaded model that rates pictures and clips on 1 (bad) to 5 (excellent). Several threads may use it.

    engine: what runs the model; its name, device, precision and kernels say which it is.
    config: the model's sizes.
    feed: scores pictures and clips together, each with a key of the caller's.
    """

    def __init__(self, engine: Engine, limits: PictureLimits = LIMITS) -> None:
        from qalign_fast.feed.batching import Feed

        self.engine: Engine = engine
        self.config: Sizes = engine.config
        # an engine that stands for one on a server has a feed of its own
        make_feed: Callable[[PictureLimits], Feed] = getattr(engine, "make_feed", partial(Feed, engine))
        self.feed: Feed = make_feed(limits)
        self._load_again: Callable[[], Self] | None = None  # what pickle takes for this scorer

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
        limits: PictureLimits = LIMITS,
        api_key: str | None = None,
        base: str | Path | None = None,
    ) -> Self:
        """A scorer for a model: None (the embedded mini model), an artifact or checkpoint directory, or a Hub id.

        Or a server's address, "http://host:8000", with "#name" behind it for another model than the server's first and
        `api_key` where it asks for one; device, precision, engine and threads are then the server's.

        `engine` is "auto" or one that the model has weights for: "native" (torch weights on a CPU, without torch),
        "torch", "onnx", "onnx-cuda", "openvino", "tensorrt".
        `precision` is a checkpoint's "fp32", "bnb-int8" or "bnb-nf4" (bitsandbytes'); an artifact has one of its own.
        `base` is the checkpoint that a LoRA adapter is merged into, if it is not the one that the adapter names.
        `verify` hashes an artifact's files before they are read. Raises ArtifactError, CheckpointError, DeviceError,
        OptionError or MissingExtraError.
        """
        from qalign_fast.engines.options import LoadOptions
        from qalign_fast.feed.remote.address import is_address
        from qalign_fast.references import from_anywhere

        options = LoadOptions(device, precision, engine, threads, verify, from_anywhere(base))
        if is_address(model):
            return cls._of_server(model, api_key, options, limits)
        if api_key is not None:
            raise OptionError(f"api_key is for a server's address, http://host:8000, and not for {model}")
        from qalign_fast.engines.load import load_engine

        scorer = cls(load_engine(model, options), limits)
        scorer._load_again = partial(cls.load, from_anywhere(model), **vars(options), limits=limits)
        return scorer

    @classmethod
    def _of_server(cls, address: str, api_key: str | None, options: LoadOptions, limits: PictureLimits) -> Self:
        from qalign_fast.engines.options import LoadOptions
        from qalign_fast.feed.remote.engine import connect

        own = vars(LoadOptions())
        if asked := [name for name, value in vars(options).items() if value != own[name]]:
            raise OptionError(f"{', '.join(asked)}: with a server's address these are the server's own")
        engine = connect(address, api_key)
        scorer = cls(engine, limits)
        scorer._load_again = partial(cls.load, address, limits=limits, api_key=engine.model.server.api_key)
        return scorer

    def __reduce__(self) -> tuple[Callable[[], Self], tuple[()]]:
        """For pickle: the copy is loaded anew by the arguments of `load`, in the process that unpickles it.

        A server's API key is among them. Raises PicklingError for a scorer that was made directly of an engine.
        """
        if self._load_again is None:
            raise PicklingError("a scorer made of an engine cannot be pickled; one that Scorer.load made can")
        return self._load_again, ()

    def __copy__(self) -> Self:
        """This scorer itself: a model is not worth a second place in memory."""
        return self

    def __deepcopy__(self, _: dict[int, object]) -> Self:
        return self

    def warm(self) -> Self:
        """Scores a grey picture in every task, so that the next score takes no longer than those that follow it.

        For a server, before it takes requests: `scorer = Scorer.load().warm()`. A first score reads the pages of mapped
        weights, takes memory and imports what opens pictures; a full-size model's may take twice as long as a second.
        """
        from io import BytesIO

        from PIL import Image

        from qalign_fast.pixels.formats import formats

        formats()
        Image.new("RGB", (64, 64), "grey").save(grey := BytesIO(), "JPEG")
        self.score_tasks(grey.getvalue(), self.tasks())
        return self

    def tasks(self, medium: str = "image") -> tuple[str, ...]:
        """The tasks this model has for a medium, "image" or "video"."""
        return self.feed.tasks(medium)

    def usual_tasks(self, medium: str = "image") -> tuple[str, ...]:
        """What "all" stands for: quality and aesthetics, or every task of a model that has neither."""
        from qalign_fast.families.prompt import usual_tasks

        return usual_tasks(self.tasks(medium))

    def require(self, tasks: Sequence[str], medium: str = "image") -> None:
        """Raises TaskError, which lists what there is, unless the model has these tasks."""
        self.feed.require(tasks, medium)

    def close(self) -> None:
        """Ends the threads. Scoring raises QAlignError from then on. `with` does it at its end."""
        self.feed.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # An open file is an iterator too. It is one picture, so Picture comes first.
    @overload
    def score(self, images: Picture, task: str = ...) -> Score: ...  # type: ignore[overload-overlap]
    @overload
    def score(self, images: Many, task: str = ...) -> list[Score]: ...
    def score(self, images: Picture | Many, task: str = "quality") -> Score | list[Score]:
        """One picture in, one Score out; a list or an iterator in, a list out, in order.

        A picture is a file (its path, its bytes, an open binary file, a data: URI, a data set's {"bytes": ..., "path":
        ...}), a PIL picture, or pixels: an array [H, W] or [H, W, 1, 3 or 4], or a torch tensor, also [C, H, W], of
        uint8 or of floats on 0..1. An array [N, ...] of N > 1 pictures is as a list of them. Raises ImageError for one
        that cannot be read, MissingExtraError for a format whose parser is not installed, InternalError for what should
        not happen, TaskError for a task the model does not have.
        """
        if _are_many(images):
            return [scores[task] for scores in self.score_tasks(images, (task,))]
        return self.score_tasks(cast("Picture", images), (task,))[task]

    @overload
    def score_tasks(self, images: Picture, tasks: Sequence[str] = ...) -> Scores: ...  # type: ignore[overload-overlap]
    @overload
    def score_tasks(self, images: Many, tasks: Sequence[str] = ...) -> list[Scores]: ...
    def score_tasks(
        self, images: Picture | Many, tasks: Sequence[str] = ("quality", "aesthetics")
    ) -> Scores | list[Scores]:
        """As `score`, in several tasks: {task: Score} for each picture. The vision tower runs once."""
        if not _are_many(images):
            return self.feed.score(Item(None, cast("Picture", images)), tasks).get()
        workers = max(1, min(len(images), 4)) if isinstance(images, Sized) else 4
        return [cast("Scores", scores) for scores in self.score_tasks_iter(images, tasks, workers=workers)]

    def score_iter(
        self,
        images: Iterable[Picture],
        task: str = "quality",
        *,
        batch_size: int = 16,
        workers: int = 4,
        errors: Literal["raise", "yield"] = "raise",
    ) -> Iterator[Score | QAlignError]:
        """Scores pictures as they come, in order, with bounded memory. Threads read at most three batches.

        A picture's or an array's pixels are those that it has when it is taken. With errors="yield" a picture that
        cannot be read gives its error in its place, whatever it is, and the rest go on.
        """
        for item in self.score_tasks_iter(images, (task,), batch_size=batch_size, workers=workers, errors=errors):
            yield item if isinstance(item, QAlignError) else item[task]

    def score_tasks_iter(
        self,
        images: Iterable[Picture],
        tasks: Sequence[str] = ("quality", "aesthetics"),
        *,
        batch_size: int = 16,
        workers: int = 4,
        errors: Literal["raise", "yield"] = "raise",
    ) -> Iterator[Scores | QAlignError]:
        """As `score_iter`, in several tasks: {task: Score} for each picture."""
        if batch_size < 1 or workers < 1:
            raise OptionError(f"batch_size is {batch_size}, workers {workers}; both must be 1 or more")
        if errors not in ("raise", "yield"):
            raise OptionError(f"errors is {errors!r}; expected 'raise' or 'yield'")
        tasks = (tasks,) if isinstance(tasks, str) else tuple(tasks)
        self.require(tasks)
        items = (Item(None, image) for image in images)
        for scored in self.feed.run(items, tasks, batch_size=batch_size, workers=workers, strict=errors == "raise"):
            yield scored.error or scored.get()

    def score_video(
        self,
        clip: Picture | Iterable[Picture],
        task: str = "quality",
        *,
        fps: float = 1.0,
        max_frames: int | None = None,
        sampling: Sampling = "index",
    ) -> Score:
        """One Score for a clip: a video file, sampled at `fps` frames a second, or frames, all of them.

        A video file is a path, bytes, a binary file, a data: URI or a data set's dict; an animated GIF, WebP or PNG
        counts as one, as does an animated PIL picture. Frames come in a list, an array [F, H, W, C], a tensor or any
        iterable, which is read as a stream. At most max_frames are used, spread evenly, with a warning in the Score; by
        default the family's number, 31 for OneAlign. `sampling` is "index", upstream's rule, or "time", by presentation
        time, for a varying frame rate.
        Raises VideoError, ImageError, TaskError and OptionError.
        """
        return self.score_video_tasks(clip, (task,), fps=fps, max_frames=max_frames, sampling=sampling)[task]

    def score_video_tasks(
        self,
        clip: Picture | Iterable[Picture],
        tasks: Sequence[str] = ("quality", "aesthetics"),
        *,
        fps: float = 1.0,
        max_frames: int | None = None,
        sampling: Sampling = "index",
    ) -> Scores:
        """As `score_video`, in several tasks. The vision tower runs once."""
        return self.feed.score(Item(None, clip, "video", ClipOptions(fps, max_frames, sampling)), tasks).get()


def _are_many(images: object) -> TypeGuard[Many]:
    """Whether it is a list, an iterator that is no file, or an array of several pictures."""
    if isinstance(images, list | tuple | Iterator):
        return not hasattr(images, "read")
    shape: Sequence[int] = getattr(images, "shape", ())
    return len(shape) == 4 and shape[0] != 1
