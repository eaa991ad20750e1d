"""Spark gives the rows of `Scorer.score` for binary files, also where a Python worker is killed in the middle."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qalign_fast.errors import OptionError
from qalign_fast.jobs.spark import score_udf
from support.row_pictures import SAMPLES, assert_same, expected_rows, plain_rows, rows_of_data, small_jpegs

for library in ("pyspark", "pyarrow", "pandas"):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed: the extra `spark` has it", allow_module_level=True)
if shutil.which("java") is None:
    pytest.skip("Spark needs Java", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # pyspark's, of pandas 3
SETTINGS = {
    "spark.ui.enabled": "false",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.memory": "1g",
    "spark.sql.execution.arrow.maxRecordsPerBatch": "4",
    "spark.sql.files.maxPartitionBytes": "200000",  # several tasks for the samples
    "spark.log.level": "OFF",
}


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A local Spark of two cores; a task that fails is tried four times."""
    from pyspark.sql import SparkSession

    folder = tmp_path_factory.mktemp("spark")
    before = os.environ.get("PYSPARK_PYTHON")
    os.environ["PYSPARK_PYTHON"] = sys.executable
    builder = SparkSession.builder.master("local[2,4]")
    for name, value in (SETTINGS | {"spark.local.dir": str(folder)}).items():
        builder = builder.config(name, value)
    session = builder.config("spark.sql.warehouse.dir", str(folder / "warehouse")).getOrCreate()
    yield session
    session.stop()
    os.environ.pop("PYSPARK_PYTHON") if before is None else os.environ.update(PYSPARK_PYTHON=before)


def rows_of(frame: Any, *keys: str) -> list[dict[str, Any]]:
    """The frame's rows, those of the struct `s` beside its keys, in the keys' order."""
    found = [row.asDict() for row in frame.select(*keys, "s.*").collect()]
    return sorted(found, key=lambda row: row[keys[0]])


def test_a_folder_of_files_gives_the_scorers_rows(spark: Any, tmp_path: Path) -> None:
    """All but an empty file's, which Spark leaves out."""
    names, media = rows_of_data()
    files = {f"{i}-{name}": data for i, (name, data) in enumerate(zip(names, media, strict=True)) if data is not None}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    del files["5-empty"]
    frame = spark.read.format("binaryFile").load(str(tmp_path))
    assert frame.rdd.getNumPartitions() > 1
    found = rows_of(frame.select("path", score_udf()("content").alias("s")), "path")
    assert [row.pop("path").rpartition("/")[2] for row in found] == list(files)
    assert_same(found, expected_rows(list(files.values())))


def test_nulls_and_paths_and_prefixes_have_rows_too(spark: Any) -> None:
    _, media = rows_of_data()
    frame = spark.createDataFrame(list(enumerate(media)), "id int, content binary").repartition(3)
    found = rows_of(frame.select("id", score_udf(rows=2, batch_size=2)("content").alias("s")), "id")
    assert [row.pop("id") for row in found] == list(range(len(media)))
    assert_same(found, expected_rows(media))
    paths = spark.createDataFrame([(str(path),) for path in SAMPLES], "path string")
    found = rows_of(paths.select("path", score_udf(prefix="q_")("path").alias("s")), "path")
    plain = [{name.removeprefix("q_"): cell for name, cell in row.items() if name != "path"} for row in found]
    assert_same(plain, expected_rows(SAMPLES))


def test_types_are_the_same_where_all_rows_are_bad(spark: Any, tmp_path: Path) -> None:
    frame = spark.createDataFrame([(None,), (b"no picture",)], "content binary")
    scored = frame.select(score_udf()("content").alias("s")).select("s.*")
    scored.write.parquet(str(tmp_path / "bad"))
    types = {field.name: field.dataType.simpleString() for field in spark.read.parquet(str(tmp_path / "bad")).schema}
    assert list(types) == "score score01 level excellent good fair poor bad status error".split()
    assert [name for name, kind in types.items() if kind == "string"] == ["level", "status", "error"]
    assert set(types.values()) == {"double", "string"}


def test_no_row_is_lost_or_doubled_where_a_worker_is_killed(spark: Any, tmp_path: Path) -> None:
    """The worker dies while it hands over its second batch; Spark tries its task again."""
    from pyspark.sql.functions import pandas_udf

    marker = str(tmp_path / "killed")

    def kill_once(batches: Any) -> Any:
        for i, batch in enumerate(batches):
            if i == 1 and not Path(marker).exists():
                Path(marker).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch

    import pandas as pd

    kill_once.__annotations__ = {"batches": Iterator[pd.Series], "return": Iterator[pd.Series]}
    media: list[bytes | None] = [*small_jpegs(22), None, b"no picture"]
    frame = spark.createDataFrame(list(enumerate(media)), "id int, content binary").repartition(2)
    passed = frame.select("id", pandas_udf(kill_once, "binary")("content").alias("content"))
    found = rows_of(passed.select("id", score_udf()("content").alias("s")), "id")
    assert Path(marker).exists()
    assert [row.pop("id") for row in found] == list(range(len(media)))
    assert_same(found, expected_rows(media))


def test_a_worker_has_the_threads_that_spark_counts_and_loads_once(spark: Any) -> None:
    """Both are of the worker's own process: a Python worker is used again by the tasks that follow."""
    from pyspark.sql.functions import pandas_udf

    def loaded(batch: Any) -> Any:
        from qalign_fast.jobs import row_scorer

        mine = [load.threads for process, _, load, _ in row_scorer._LOADED if process == os.getpid()]
        return batch.map(lambda _: ",".join(map(str, mine)))

    import pandas as pd

    loaded.__annotations__ = {"batch": pd.Series, "return": pd.Series}
    frame = spark.createDataFrame([(b"",)] * 20, "content binary").repartition(4)
    seen = frame.select(score_udf()("content").alias("s")).select(pandas_udf(loaded, "string")("s.status").alias("n"))
    assert {row.n for row in seen.collect()} - {""} == {"1"}  # "": a worker that has this function alone


def test_options_that_cannot_be_are_told_before_a_query(spark: Any) -> None:
    with pytest.raises(OptionError, match="batch_size is 0"):
        score_udf(batch_size=0)


def test_rows_in_plain_form_are_as_spark_gives_them() -> None:
    assert plain_rows({"a": [None, float("nan"), ""], "b": [1, 2, 3]}) == [{"a": None, "b": i} for i in (1, 2, 3)]
