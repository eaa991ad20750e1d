"""A data-juicer operator's media in, a `Rating` of each out: of pictures, of clips, of clips' frames as pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from math import nan
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from qalign_fast.errors import OptionError, QAlignError, VideoError, one_line
from qalign_fast.feed.items import ClipOptions, Item, Medium, Scored
from qalign_fast.feed.remote.address import is_address
from qalign_fast.levels import level_of
from qalign_fast.scorer import Scorer

if TYPE_CHECKING:
    from qalign_fast.levels import Scale

Frames: TypeAlias = Literal["clip", "uniform", "all_keyframes"]
Reduce: TypeAlias = Literal["avg", "max", "min"]
REDUCE: dict[str, Callable[[Sequence[float]], float]] = {"avg": fmean, "max": max, "min": min}


class Rating(NamedTuple):
    """A picture's or a clip's score on 1..5 and on 0..1 and its level; or NaN, "" and why there is none."""

    score: float
    unit: float
    level: str
    error: str = ""


@dataclass(frozen=True)
class LoadScorer:
    """What data-juicer's `get_model` calls, once in a process. Equal ones share a model.

    threads: says how many, None for all cores.
    """

    model: str | None
    precision: str | None
    engine: str
    threads: Callable[[], int | None] = field(compare=False)

    def __call__(self, device: str) -> Scorer:
        """A scorer on the device that data-juicer gives to the process. A server's address has devices of its own."""
        if is_address(self.model):
            return Scorer.load(self.model, precision=self.precision, engine=self.engine)
        return Scorer.load(
            self.model, device=device, precision=self.precision, engine=self.engine, threads=self.threads()
        )


@dataclass(frozen=True)
class ClipSampling:
    """Which frames of a clip are scored, and how; the options of `video_qalign_filter`, which says what they mean.

    Raises OptionError for a name that is not one, and for an option of another way than `frames`.
    """

    frames: Frames = "clip"
    frame_num: int | None = None
    reduce_mode: Reduce | None = None
    fps: float | None = None
    max_frames: int | None = None

    def __post_init__(self) -> None:
        known = ("clip", "uniform", "all_keyframes")
        if self.frames not in known:
            raise OptionError(f"frame_sampling_method is {self.frames!r}; expected one of {', '.join(known)}")
        if self.reduce_mode not in (None, *REDUCE):
            raise OptionError(f"reduce_mode is {self.reduce_mode!r}; expected one of {', '.join(REDUCE)}")
        of = {"frame_num": ("uniform",), "reduce_mode": known[1:], "fps": ("clip",), "max_frames": ("clip",)}
        for name, ways in of.items():
            value = getattr(self, name)
            if value is not None and self.frames not in ways:
                raise OptionError(
                    f"{name} is for frame_sampling_method {' and '.join(ways)}; with {self.frames} it does nothing"
                )
            if isinstance(value, int | float) and value <= 0:
                raise OptionError(f"{name} is {value}; expected more than 0")


def rate(scorer: Scorer, task: str, media: Iterable[Any], medium: Medium, clip: ClipOptions) -> Iterator[Rating]:
    """A rating of each picture, or of each clip by the model's prompt for clips, in order.

    Raises what the engine raises.
    """
    items = (Item(None, one, medium, clip) for one in media)
    for scored in scorer.feed.run(items, (task,)):
        yield _rating([scored], task, fmean)


def rate_frames(scorer: Scorer, task: str, clips: Iterable[Any], sampling: ClipSampling) -> Iterator[Rating]:
    """A rating of each clip, from its frames, which data-juicer takes and which are scored as pictures. In order."""
    items = (Item(i, frame) for i, clip in enumerate(clips) for frame in _frames(clip, sampling))
    reduce = REDUCE[sampling.reduce_mode or "avg"]
    for _, frames in groupby(scorer.feed.run(items, (task,)), lambda scored: scored.key):
        yield _rating(list(frames), task, reduce)


def _rating(parts: Sequence[Scored[Any]], task: str, reduce: Callable[[Sequence[float]], float]) -> Rating:
    """What is made of a clip's frames, or of the one medium itself."""
    for part in parts:
        if part.error is not None:
            return Rating(nan, nan, "", " ".join(str(part.error).split()) or type(part.error).__name__)
    scores = [part.get()[task] for part in parts]
    return _on_scale(reduce([score.value for score in scores]), scores[0].scale)


def _on_scale(value: float, scale: Scale) -> Rating:
    unit = (value - scale.low) / (scale.high - scale.low)
    return Rating(value, unit, level_of(value, scale.low, scale.high, scale.words))


def _frames(clip: Any, sampling: ClipSampling) -> Sequence[Any]:
    """PIL pictures; or the error in their place."""
    if isinstance(clip, QAlignError):
        return [clip]
    from data_juicer.utils.mm_utils import extract_key_frames, extract_video_frames_uniformly, load_video

    try:
        with load_video(clip) as container:  # data-juicer's own close_video fails with PyAV 14 and newer
            if sampling.frames == "uniform":
                found = extract_video_frames_uniformly(container, sampling.frame_num or 3)  # 3 is data-juicer's default
            else:
                found = extract_key_frames(container)
            pictures = [frame.to_image() for frame in found]
    except Exception as error:  # a broken clip raises errors of many classes inside data-juicer and PyAV
        return [VideoError(f"{clip}: {one_line(error)}")]
    return pictures or [VideoError(f"{clip}: no frame was found")]
