"""data-juicer's samples in, the same samples with scores out: two filters and two mappers, for pictures and for clips.

data-juicer 1.6 and newer finds them in an installed qalign-fast. For an older one, `custom_operator_paths` has to name
a file with the line `import qalign_fast.adapters.data_juicer_operators`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qalign_fast.adapters.data_juicer_ratings import ClipSampling, Frames, Reduce
from qalign_fast.adapters.data_juicer_scoring import Scoring
from qalign_fast.errors import OptionError
from qalign_fast.needs import need

need("data_juicer.ops.base_op", "py-data-juicer")
from data_juicer.ops.base_op import OPERATORS, TAGGING_OPS, Filter, Mapper
from data_juicer.utils.constant import Fields


class _Filter(Scoring, Filter):
    """Scores on 0..1 into the samples' stats. A sample without media is kept. A bad medium is NaN and never passes."""

    def _keep_between(self, min_score: float, max_score: float, any_or_all: str) -> None:
        if any_or_all not in ("any", "all"):
            raise OptionError(f"any_or_all is {any_or_all!r}; expected 'any' or 'all'")
        self.min_score, self.max_score = min_score, max_score
        self.any = any_or_all == "any"

    @property
    def stats_key(self) -> str:
        """Where a sample's scores are in its stats, such as image_qalign_quality_score01."""
        return f"{self.medium}_qalign_{self.task}_score01"

    def compute_stats_batched(self, samples: Any, rank: int | None = None, context: bool = False) -> Any:
        """Stats that are there stay. `context` is not used: pictures are read as `Scorer.score` reads them."""
        stats = samples[Fields.stats]
        rows = [i for i, one in enumerate(stats) if one.get(self.stats_key) is None]
        for i, ratings in zip(rows, self.ratings(samples, rows, rank), strict=True):
            stats[i][self.stats_key] = np.array([rating.unit for rating in ratings], np.float64)
        return samples

    def process_single(self, sample: Any) -> bool:
        """Whether the sample is kept."""
        scores = sample[Fields.stats][self.stats_key]
        if len(scores) == 0:
            return True
        keep = [_is_number(one) and self.get_keep_boolean(one, self.min_score, self.max_score) for one in scores]
        return any(keep) if self.any else all(keep)


class _Mapper(Scoring, Mapper):
    """Three lists into the samples' meta, a value for each medium: scores on 1..5, levels, and errors."""

    def process_batched(self, samples: Any, rank: int | None = None, context: bool = False) -> Any:
        """Lists that are there stay. Of a bad medium they have NaN, "" and a line of text; of others, "" for the line.

        `context` is not used: pictures are read as `Scorer.score` reads them.
        """
        meta, name = samples[Fields.meta], f"{self.medium}_qalign_{self.task}"
        rows = [i for i, one in enumerate(meta) if one.get(f"{name}_score") is None]
        for i, ratings in zip(rows, self.ratings(samples, rows, rank), strict=True):
            meta[i][f"{name}_score"] = np.array([rating.score for rating in ratings], np.float64)
            meta[i][f"{name}_level"] = np.array([rating.level for rating in ratings], np.str_)
            meta[i][f"{name}_error"] = np.array([rating.error for rating in ratings], np.str_)
        return samples


@OPERATORS.register_module("image_qalign_filter")
class ImageQAlignFilter(_Filter):
    """Keeps samples whose pictures have scores, on 0..1, from min_score to max_score."""

    medium = "image"

    def __init__(
        self,
        model: str | None = None,
        task: str = "quality",
        min_score: float = 0.5,
        max_score: float = 1.0,
        any_or_all: str = "any",
        precision: str | None = None,
        engine: str = "auto",
        threads: int | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """As `Scorer.load` takes them: model, precision, engine, threads. The device is data-juicer's `accelerator`.

        :param model: an artifact, a checkpoint, a Hub id or a server's address; the embedded model by default
        :param task: "quality", "aesthetics" or another that the model has
        :param min_score: the lowest score that passes, 0..1; 0.5 is OneAlign's 3 of 5
        :param max_score: the highest score that passes
        :param any_or_all: whether any picture of a sample has to pass, or all of them
        :param precision: of a checkpoint
        :param engine: "auto" or one that the model has weights for
        :param threads: by default the machine's cores, shared among data-juicer's processes
        """
        super().__init__(*args, **kwargs)
        self._keep_between(min_score, max_score, any_or_all)
        self.use_model(model, task, precision, engine, threads)


@OPERATORS.register_module("video_qalign_filter")
class VideoQAlignFilter(_Filter):
    """Keeps samples whose clips have scores, on 0..1, from min_score to max_score."""

    medium = "video"

    def __init__(
        self,
        model: str | None = None,
        task: str = "quality",
        min_score: float = 0.5,
        max_score: float = 1.0,
        any_or_all: str = "any",
        frame_sampling_method: Frames = "clip",
        frame_num: int | None = None,
        reduce_mode: Reduce | None = None,
        fps: float | None = None,
        max_frames: int | None = None,
        precision: str | None = None,
        engine: str = "auto",
        threads: int | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """As `image_qalign_filter`, and how a clip's frames become one score.

        :param frame_sampling_method: "clip", the model's own way: the frames together, by its prompt for clips; or
            "uniform" and "all_keyframes", frames as data-juicer's own filters take them, each scored as a picture
        :param frame_num: how many, with "uniform"; 3 by default
        :param reduce_mode: "avg" (the default), "max" or "min" of the pictures' scores
        :param fps: frames a second, with "clip"; 1 by default
        :param max_frames: at most so many, with "clip"; by default the model family's number, 31 for OneAlign
        """
        super().__init__(*args, **kwargs)
        self._keep_between(min_score, max_score, any_or_all)
        self.sampling = ClipSampling(frame_sampling_method, frame_num, reduce_mode, fps, max_frames)
        self.use_model(model, task, precision, engine, threads)


@TAGGING_OPS.register_module("image_qalign_mapper")
@OPERATORS.register_module("image_qalign_mapper")
class ImageQAlignMapper(_Mapper):
    """Writes the pictures' scores on 1..5, levels and errors into the samples' meta."""

    medium = "image"

    def __init__(
        self,
        model: str | None = None,
        task: str = "quality",
        precision: str | None = None,
        engine: str = "auto",
        threads: int | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Options as those of `image_qalign_filter`."""
        super().__init__(*args, **kwargs)
        self.use_model(model, task, precision, engine, threads)


@TAGGING_OPS.register_module("video_qalign_mapper")
@OPERATORS.register_module("video_qalign_mapper")
class VideoQAlignMapper(_Mapper):
    """Writes the clips' scores on 1..5, levels and errors into the samples' meta."""

    medium = "video"

    def __init__(
        self,
        model: str | None = None,
        task: str = "quality",
        frame_sampling_method: Frames = "clip",
        frame_num: int | None = None,
        reduce_mode: Reduce | None = None,
        fps: float | None = None,
        max_frames: int | None = None,
        precision: str | None = None,
        engine: str = "auto",
        threads: int | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Options as those of `video_qalign_filter`."""
        super().__init__(*args, **kwargs)
        self.sampling = ClipSampling(frame_sampling_method, frame_num, reduce_mode, fps, max_frames)
        self.use_model(model, task, precision, engine, threads)


def _is_number(score: float | None) -> bool:
    """Not NaN, and not the null that NaN is in JSON."""
    return score is not None and score == score  # noqa: PLR0124
