"""A batch of a Hugging Face dataset in, columns of scores out, in a function whose results datasets can cache.

ds = ds.cast_column("image", Image(decode=False))
ds = ds.map(score_function("image"), batched=True, with_rank=True, remove_columns=["image"])
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from qalign_fast.identity import hash_model
from qalign_fast.jobs.row_columns import Columns, texts_for_none
from qalign_fast.jobs.row_scorer import RowScorer
from qalign_fast.needs import need
from qalign_fast.references import EMBEDDED
from qalign_fast.version import __version__


def score_function(column: str = "image", model: str | None = None, **options: Any) -> ScoreFunction:
    """For `Dataset.map(..., batched=True, with_rank=True)`: a function of a batch that returns the columns to add.

    column: the pictures' column, cast by `Image(decode=False)`, or of bytes or paths. `remove_columns` drops it.
    options: those of `RowScorer`.

    Raises OptionError, and MissingExtraError where datasets is missing.
    """
    need("datasets", "'qalign-fast[datasets]'")
    scorer = RowScorer(model, **options)
    return ScoreFunction(column, scorer, f"{__version__} {_hash_of(scorer.model)}")


@dataclass(frozen=True)
class ScoreFunction:
    """Holds options and no model, so that datasets gives it the same fingerprint in every process.

    Each process loads the model at its first batch. The columns are those of `RowScorer`, with NaN and "" in place of
    None: datasets guesses a column's type from the first values that are written.

    column: the pictures' column.
    identity: this package's version, and a local model's hash: another model is another function.
    """

    column: str
    scorer: RowScorer
    identity: str

    def __call__(self, batch: Mapping[str, Any], rank: int | None = None) -> Columns:
        """A process of rank r takes the CUDA device r, counted around, where there are some and `device` is "auto".

        Raises OptionError for a batch without the column, or with columns that are named as ours.
        """
        scorer = self.scorer
        scorer.check(batch, self.column)
        if rank is not None and scorer.device == "auto" and (count := _cuda_devices()):
            scorer = replace(scorer, device=f"cuda:{rank % count}")
        return texts_for_none(scorer.score(batch[self.column]))


def _cuda_devices() -> int:
    """How many torch sees. Counting them starts nothing that would not survive a fork."""
    if not find_spec("torch"):
        return 0
    import torch

    return torch.cuda.device_count()


def _hash_of(model: str | Path | None) -> str:
    """What tells a local model from others. Empty for a Hub id, which is not fetched for that."""
    directory = EMBEDDED if model is None else Path(model)
    return hash_model(directory) if directory.is_dir() else ""
