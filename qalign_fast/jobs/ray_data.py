"""Ray Data's batches in, the same batches out with columns of scores in place of the pictures.

ds.map_batches(ScoreBatch, fn_constructor_kwargs={"column": "bytes"}, batch_format="pyarrow", batch_size=64, ...)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qalign_fast.errors import OptionError
from qalign_fast.jobs.row_columns import arrow_columns, arrow_media, texts_for_none
from qalign_fast.jobs.row_scorer import RowScorer
from qalign_fast.needs import need


class ScoreBatch:
    """For `Dataset.map_batches`. Each actor loads the model once; it has as many threads as its `num_cpus` says.

    Takes a pyarrow.Table, a pandas.DataFrame or a dict of NumPy arrays, and returns the same kind: all its columns but
    the pictures', and those of `RowScorer`. A picture that cannot be scored is a row with its error.

    column: the pictures' column: bytes, paths, or structs of bytes and path.
    options: those of `RowScorer`.

    Where a value is missing, a table has null, a frame NaN and NA, and a dict NaN and "": of a dict without a text Ray
    could not tell the column's type. Raises what `RowScorer.load` raises, and MissingExtraError where Ray is missing.
    """

    def __init__(self, model: str | None = None, *, column: str = "bytes", **options: Any) -> None:
        self._column = column
        self._scorer = RowScorer(model, **options).with_threads(_cpus()).load()

    def __call__(self, batch: Any) -> Any:
        """Raises OptionError for a batch without the column, with columns named as ours, or of another kind."""
        if isinstance(batch, Mapping):
            return self._dict(batch)
        kind = type(batch).__module__.partition(".")[0]
        if kind not in ("pyarrow", "pandas"):
            raise OptionError(
                f"a batch is {type(batch).__name__}; expected batch_format 'pyarrow', 'pandas' or 'numpy'"
            )
        return self._table(batch) if kind == "pyarrow" else self._frame(batch)

    def _dict(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        self._scorer.check(batch, self._column)
        kept = {name: cells for name, cells in batch.items() if name != self._column}
        return kept | texts_for_none(self._scorer.score(batch[self._column]))

    def _table(self, batch: Any) -> Any:
        self._scorer.check(batch.column_names, self._column)
        found = self._scorer.score(arrow_media(batch[self._column]))
        batch = batch.drop_columns([self._column])
        for name, cells in arrow_columns(found, self._scorer.columns).items():
            batch = batch.append_column(name, cells)
        return batch

    def _frame(self, batch: Any) -> Any:
        import pandas as pd

        self._scorer.check(map(str, batch.columns), self._column)
        found = self._scorer.score(batch[self._column])
        kinds = self._scorer.columns
        ours = {name: pd.Series(cells, batch.index, dtype=kinds[name]) for name, cells in found.items()}
        return batch.drop(columns=[self._column]).assign(**ours)


def _cpus() -> float | None:
    """The cores that Ray counts for this actor. None outside of one."""
    ray = need("ray", "'qalign-fast[ray]'")
    if not ray.is_initialized():
        return None
    assigned: float | None = ray.get_runtime_context().get_assigned_resources().get("CPU")
    return assigned
