"""A batch of data-juicer's samples in, a list of ratings for each sample out: what the four operators share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from qalign_fast.adapters.data_juicer_ratings import ClipSampling, LoadScorer, Rating, rate, rate_frames
from qalign_fast.errors import ImageError, TaskError, VideoError
from qalign_fast.feed.items import ClipOptions, Medium
from qalign_fast.feed.remote.address import is_address
from qalign_fast.identity import identify_model, tasks_of
from qalign_fast.needs import need
from qalign_fast.references import find_model, from_anywhere
from qalign_fast.version import __version__
from qalign_kernels.cores import cores

need("data_juicer.ops.base_op", "py-data-juicer")
from data_juicer.ops.base_op import OP
from data_juicer.utils.model_utils import get_model
from data_juicer.utils.ray_utils import is_ray_mode
from loguru import logger
from multiprocess import current_process


class Scoring(OP):
    """An operator's options of the model, and its ratings. It holds no model, so it is small where it is pickled.

    `data_juicer.utils.model_utils.get_model` loads the model in each process and frees it after the operator.
    """

    _accelerator = "cuda"  # where there is one: data-juicer then gives each process a GPU
    _batched_op = True
    medium: Medium
    sampling = ClipSampling()

    def use_model(self, model: str | None, task: str, precision: str | None, engine: str, threads: int | None) -> None:
        """Raises ArtifactError, TaskError and MissingExtraError: later, errors would cost samples (`skip_op_error`)."""
        self.model = None if model is None else str(from_anywhere(model))
        self.task, self.precision, self.engine, self.threads = task, precision, engine, threads
        if is_address(model):
            return
        if self.medium == "video":
            need("av", "'qalign-fast[video]'")
        medium: Medium = "image" if self.sampling.frames != "clip" else self.medium
        if task not in (has := tasks_of(model, medium=medium)):
            raise TaskError(f"task {task!r} is not in this model; for {medium}s it has: {', '.join(has) or 'none'}")
        # data-juicer's cache of results goes by an operator's attributes: another model, or version, is another result
        self.identity = f"{__version__} {identify_model(model, precision)['sha256']}"
        if not self.memory and not self.use_cuda():  # how many processes data-juicer starts by itself
            self.memory: float = sum(file.stat().st_size for file in find_model(model).rglob("*")) / 2**30

    def ratings(self, samples: Any, rows: Sequence[int], rank: int | None) -> Iterator[list[Rating]]:
        """Those of each row's media. Bad media are told in the log. Raises what the engine raises."""
        media = [self._media(samples, row) for row in rows]
        found = self._rate([one for of_row in media for one in of_row], rank)
        for of_row in media:
            yield list(islice(found, len(of_row)))

    def _media(self, samples: Any, row: int) -> list[Any]:
        """A row's bytes where it has them, or else its paths."""
        key = self.image_key if self.medium == "image" else self.video_key
        paths = (samples[key][row] if key in samples else None) or []
        if self.medium == "video":
            return [VideoError("no clip") if path is None else path for path in paths]
        blobs = (samples[self.image_bytes_key][row] if self.image_bytes_key in samples else None) or []
        found = [*blobs, *[None] * (len(paths) - len(blobs))]
        media = [path if blob is None else blob for blob, path in zip(found, paths, strict=False)]
        return [ImageError("no picture") if one is None else one for one in media]

    def _rate(self, media: Sequence[Any], rank: int | None) -> Iterator[Rating]:
        """Without media, no model is loaded."""
        if not media:
            return
        load = LoadScorer(self.model, self.precision, self.engine, self._usable_threads)
        scorer = get_model(load, rank, self.use_cuda())
        if self.sampling.frames != "clip" and self.medium == "video":
            found = rate_frames(scorer, self.task, media, self.sampling)
        else:
            clip = ClipOptions(self.sampling.fps or 1.0, self.sampling.max_frames)
            found = rate(scorer, self.task, media, self.medium, clip)
        for rating in found:
            if rating.error:
                logger.warning(f"{self._name}: {rating.error}")
            yield rating

    def _usable_threads(self) -> int | None:
        """The user's number; otherwise this process's share of the cores, None for all."""
        if self.threads is not None:
            return self.threads
        if is_ray_mode():
            return max(1, int(self.num_cpus or 1))
        if current_process().name == "MainProcess":
            return None
        return max(1, cores() // (self.runtime_np() or 1))
