"""Spark's column of pictures in, a column of structs of scores out.

spark.read.format("binaryFile").load(folder).select("path", score_udf()("content").alias("s")).select("path", "s.*")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qalign_fast.jobs.row_scorer import RowScorer
from qalign_fast.needs import need

if TYPE_CHECKING:
    from collections.abc import Callable

    from qalign_fast.jobs.row_columns import Columns


def score_udf(model: str | None = None, *, rows: int = 64, **options: Any) -> Any:
    """A function of one column, which is binary, of paths, or null. It gives a struct of the columns of `RowScorer`.

    Each of Spark's Python workers loads the model once, and has as many threads as `spark.task.cpus` says. A picture
    that cannot be scored is a row with its error; a value that is missing is null.

    rows: pictures of Spark's batch that are scored before results go back.
    options: those of `RowScorer`.

    Raises OptionError, and MissingExtraError where pyspark is missing, or the pandas and pyarrow that it needs. A model
    that cannot be loaded fails the query.
    """
    need("pyspark", "'qalign-fast[spark]'")
    functions = need("pyspark.ml.functions", "'qalign-fast[spark]'")
    types = need("pyspark.sql.types", "'qalign-fast[spark]'")
    scorer = RowScorer(model, **options)
    kinds = {"float64": types.DoubleType(), "string": types.StringType()}
    fields = [types.StructField(name, kinds[kind]) for name, kind in scorer.columns.items()]

    def make_score() -> Callable[[Any], Columns]:
        from pyspark import TaskContext

        context = TaskContext.get()  # in a worker of Spark there is one
        return scorer.with_threads(context.cpus() if context else None).load().score

    return functions.predict_batch_udf(make_score, return_type=types.StructType(fields), batch_size=rows)
