"""A data tool's batch of pictures in, columns of fixed types out: what Ray Data, Spark, Daft and datasets share."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from itertools import islice
from math import isnan
from threading import Lock
from typing import TYPE_CHECKING, Any, Self

from qalign_fast.errors import ImageError, OptionError
from qalign_fast.feed.items import Item, Scored
from qalign_fast.feed.remote.address import is_address
from qalign_fast.jobs.row_columns import Columns, Kind, make_column
from qalign_fast.levels import LEVELS
from qalign_fast.pixels.limits import LIMITS, PictureLimits
from qalign_fast.records import make_row
from qalign_fast.scorer import Scorer

if TYPE_CHECKING:
    from pathlib import Path

_OF_A_TASK: dict[str, Kind] = {"score": "float64", "score01": "float64", "level": "string"}
_OF_A_TASK |= dict.fromkeys(LEVELS, "float64")
_OF_A_ROW: dict[str, Kind] = {"status": "string", "error": "string"}


@dataclass(frozen=True)
class RowScorer:
    """Scores batches of pictures. A picture that cannot be scored is a row with its error, and never an exception.

    It is made of its options alone, so it is small where it is pickled or hashed. The model is loaded once in each
    process, at the first batch or by `load`, for all RowScorers with the same model, device, engine and limits.

    model, device, precision, engine, threads, limits: as `Scorer.load` takes them. A path becomes absolute.
    tasks: one task, or several, whose columns then begin with the task's name: quality_score, aesthetics_score.
    prefix: stands before the name of every column.
    batch_size, workers: pictures that the model takes at a time, and threads that read them.

    Raises OptionError for no task and for numbers below 1.
    """

    model: str | Path | None = None
    _: KW_ONLY
    tasks: str | Sequence[str] = "quality"
    device: str = "auto"
    precision: str | None = None
    engine: str = "auto"
    threads: int | None = None
    limits: PictureLimits = LIMITS
    prefix: str = ""
    batch_size: int = 16
    workers: int = 2

    def __post_init__(self) -> None:
        from qalign_fast.references import from_anywhere

        model = from_anywhere(self.model)
        object.__setattr__(self, "model", None if model is None else str(model))
        tasks = (self.tasks,) if isinstance(self.tasks, str) else tuple(dict.fromkeys(self.tasks))
        object.__setattr__(self, "tasks", tasks)
        if not tasks:
            raise OptionError("tasks is empty; expected a task's name, or several")
        if self.batch_size < 1 or self.workers < 1:
            raise OptionError(f"batch_size is {self.batch_size}, workers {self.workers}; both must be 1 or more")

    @property
    def columns(self) -> dict[str, Kind]:
        """The type of each column, in order. No model is needed to know them.

        For each task: score (OneAlign's on 1..5), score01 (0..1), level, and the probabilities excellent to bad. For
        the picture: status, "ok" or "failed", and error, a line where it failed.
        """
        found = {f"{self._before(task)}{name}": kind for task in self.tasks for name, kind in _OF_A_TASK.items()}
        return found | {f"{self.prefix}{name}": kind for name, kind in _OF_A_ROW.items()}

    def load(self) -> Self:
        """Loads the model now. Raises what `Scorer.load` raises, and TaskError for a task that the model lacks."""
        _scorer(self)
        return self

    def score(self, media: Iterable[Any]) -> Columns:
        """A row for each of the media, in order: float64 with NaN, and objects that are a text or None.

        A medium is a picture's bytes, its path, a dict {"bytes": ..., "path": ...}, or whatever else `Scorer.score`
        takes as one picture; None and NaN are pictures that are missing. Values are rounded as in the rows of the
        command line. Raises what the engine raises: errors that are not about one picture.
        """
        feed = _scorer(self).feed
        items = (Item(None, ImageError("no picture") if _is_missing(one) else one) for one in media)
        rows = []
        # on one thread an engine computes as many batches at a time as the machine has cores: this worker has one core
        while part := list(islice(items, self.batch_size if self.threads == 1 else None)):
            found = feed.run(part, self.tasks, batch_size=self.batch_size, workers=self.workers)
            rows += [self._row(scored) for scored in found]
        return {name: make_column([row.get(name) for row in rows], kind) for name, kind in self.columns.items()}

    def with_threads(self, count: float | None) -> Self:
        """With as many threads as a cluster counts cores for a worker, where the user gave no number of them."""
        if self.threads is not None or not count or is_address(self.model) or self.device.startswith("cuda"):
            return self
        return replace(self, threads=max(1, int(count)))

    def check(self, names: Iterable[str], column: str) -> None:
        """Raises OptionError for a batch that lacks the column of pictures, or has columns that are named as ours."""
        there = list(names)
        if column not in there:
            raise OptionError(f"column {column!r} is not in the data, which have: {', '.join(there) or 'none'}")
        if taken := [name for name in self.columns if name in there and name != column]:
            raise OptionError(
                f"the data have columns {', '.join(taken)} already: rename them, or give a prefix, such as "
                f"prefix='{self.prefix}qalign_'"
            )

    def _before(self, task: str) -> str:
        return f"{self.prefix}{task}_" if len(self.tasks) > 1 else self.prefix

    def _row(self, scored: Scored[None]) -> dict[str, Any]:
        """The cells that are not empty."""
        if scored.error is not None:
            said = make_row("", "", scored.error)["error"]
            return {f"{self.prefix}status": "failed", f"{self.prefix}error": said}
        cells: dict[str, Any] = {f"{self.prefix}status": "ok"}
        for task, score in scored.get().items():
            row = make_row("", task, score)
            of_task = {"score": row["score"], "score01": round(score.unit, 6), "level": row["level"]}
            cells |= {f"{self._before(task)}{name}": cell for name, cell in (of_task | row["probabilities"]).items()}
        return cells


_LOADED: dict[tuple[object, ...], Scorer] = {}
_LOCK = Lock()  # of _LOADED


def _scorer(options: RowScorer) -> Scorer:
    """This process's scorer. One that a fork copied is not used: a GPU's and some engines' do not work there."""
    from qalign_fast.engines.options import LoadOptions

    load = LoadOptions(options.device, options.precision, options.engine, options.threads)
    key = (os.getpid(), options.model, load, options.limits)
    with _LOCK:
        if key not in _LOADED:
            scorer = Scorer.load(options.model, **vars(load), limits=options.limits)
            words = scorer.engine.family.scale.words
            if words != LEVELS:
                raise OptionError(f"the model answers {', '.join(words)}; columns are for {', '.join(LEVELS)}")
            _LOADED[key] = scorer
        found = _LOADED[key]
    found.require(options.tasks)
    return found


def _new_lock() -> None:
    """In a process that was just forked: another thread may have held the lock."""
    global _LOCK  # noqa: PLW0603
    _LOCK = Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)


def _is_missing(one: Any) -> bool:
    return one is None or (isinstance(one, float) and isnan(one)) or type(one).__name__ == "NAType"
