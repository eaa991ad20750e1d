"""Daft's column of pictures in, columns of scores out.

score = score_udf(max_concurrency=2)
df.select("path", score(df["bytes"]))
"""

from __future__ import annotations

from typing import Any

from qalign_fast.jobs.row_columns import arrow_columns, arrow_media
from qalign_fast.jobs.row_scorer import RowScorer
from qalign_fast.needs import need


def score_udf(
    model: str | None = None, *, rows: int = 64, daft_options: dict[str, Any] | None = None, **options: Any
) -> Any:
    """A batch method of a `daft.cls`. It gives the columns of `RowScorer`, unnested, for a column of pictures.

    The column is binary, of paths, or of structs of bytes and path. Each worker of Daft loads the model once. A picture
    that cannot be scored is a row with its error; a value that is missing is null.

    rows: pictures that Daft gives at a time, at most.
    daft_options: those of `daft.cls`: gpus, cpus, max_concurrency, use_process, max_retries, on_error, ray_options.
    options: those of `RowScorer`. Workers on one machine share its cores: `threads` says how many each has.

    Raises OptionError, and MissingExtraError where Daft is missing. A model that cannot be loaded fails the query.
    """
    daft = need("daft", "'qalign-fast[daft]'")
    scorer = RowScorer(model, **options)
    kinds = {"float64": daft.DataType.float64(), "string": daft.DataType.string()}
    struct = daft.DataType.struct({name: kinds[kind] for name, kind in scorer.columns.items()})

    class Scores:
        """What a worker makes once."""

        def __init__(self, scorer: RowScorer) -> None:
            self.scorer = scorer.load()

        @daft.method.batch(return_dtype=struct, unnest=True, batch_size=rows)  # type: ignore[untyped-decorator]
        def score(self, media: Any) -> Any:
            import pyarrow as pa

            found = arrow_columns(self.scorer.score(arrow_media(media.to_arrow())), self.scorer.columns)
            return pa.StructArray.from_arrays(list(found.values()), list(found))

    return daft.cls(**(daft_options or {}))(Scores)(scorer).score
