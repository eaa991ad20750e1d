"""Ray Data gives the rows of `Scorer.score`, in each kind of batch, also where an actor is killed in the middle."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qalign_fast.errors import OptionError, TaskError
from qalign_fast.jobs.ray_data import ScoreBatch
from support.local_ray import local_ray as local_ray_of
from support.row_pictures import SAMPLES, assert_same, expected_rows, plain_rows, rows_of_data, small_jpegs

pd, pa = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
if importlib.util.find_spec("ray") is None:  # it is imported once its environment is set
    pytest.skip("Ray is not installed: the extra `ray` has it", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # Ray's own
OURS = "score score01 level excellent good fair poor bad status error".split()
ACTORS = {"num_cpus": 0.5}


def table(names: list[str], media: list[bytes | None]) -> Any:
    columns = {"id": (range(len(names)), pa.int32()), "bytes": (media, pa.binary()), "of": (names, pa.string())}
    return pa.table({name: pa.array(cells, kind) for name, (cells, kind) in columns.items()})


def expected(names: list[str], media: list[bytes | None]) -> list[dict[str, Any]]:
    rows = zip(names, expected_rows(media), strict=True)
    return [{"id": i, "of": name, **row} for i, (name, row) in enumerate(rows)]


def test_a_table_gives_a_table_without_the_pictures() -> None:
    names, media = rows_of_data()
    score = ScoreBatch()
    found = score(table(names, media))
    assert found.column_names == ["id", "of", *OURS]
    assert_same(plain_rows(found.to_pydict()), expected(names, media))
    for some in ([None], [], [SAMPLES[0].read_bytes()]):
        assert score(table(["x"] * len(some), some)).schema == found.schema


def test_a_frame_gives_a_frame_with_its_index() -> None:
    names, media = rows_of_data()
    frame = table(names, media).to_pandas().set_index(pd.Index(range(100, 100 + len(names))))
    score = ScoreBatch()
    found = score(frame)
    assert list(found.columns) == ["id", "of", *OURS]
    assert list(found.index) == list(frame.index)
    assert_same(plain_rows(found), expected(names, media))
    assert "bytes" in frame.columns  # the caller's frame is as it was
    assert list(score(frame[6:7]).dtypes) == list(found.dtypes)


def test_a_dict_of_arrays_gives_a_dict_of_arrays() -> None:
    names, media = rows_of_data()
    cells = np.empty(len(media), object)
    cells[:] = media
    batch = {"id": np.arange(len(names)), "bytes": cells, "of": np.array(names)}
    found = ScoreBatch()(batch)
    assert list(found) == ["id", "of", *OURS]
    assert all(isinstance(column, np.ndarray) for column in found.values())
    assert_same(plain_rows(found), expected(names, media))
    assert "bytes" in batch


def test_columns_that_are_missing_or_taken_are_told_at_the_first_batch() -> None:
    names, media = rows_of_data()
    score, batch = ScoreBatch(), table(names, media)
    with pytest.raises(OptionError, match=r"column 'bytes' is not in the data, which have: id, of$"):
        score(batch.drop_columns(["bytes"]))
    taken = batch.append_column("score", batch["id"]).append_column("error", batch["of"])
    for same in (taken, taken.to_pandas(), taken.to_pydict()):
        with pytest.raises(OptionError, match=r"columns score, error already: .* prefix='qalign_'"):
            score(same)
    found = ScoreBatch(prefix="qalign_")(taken)
    assert found.column_names == ["id", "of", "score", "error", *[f"qalign_{name}" for name in OURS]]
    with pytest.raises(OptionError, match="a batch is list"):
        score([batch])
    with pytest.raises(TaskError):
        ScoreBatch(tasks="beauty")


@pytest.fixture(scope="module")
def local_ray() -> Iterator[Any]:
    """A Ray that counts three cores: two for those who read and download, and a half for each of two actors."""
    with local_ray_of(3) as ray:
        import ray.data

        ray.data.DataContext.get_current().enable_progress_bars = False
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # its workers cannot import this file
        yield ray
        ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def scored(ray: Any, data: Any, blocks: int, score: Any = ScoreBatch, **options: Any) -> Any:
    given = {"batch_size": 2, "batch_format": "pyarrow", **ACTORS, **options}
    pool = ray.data.ActorPoolStrategy(min_size=2, max_size=2)
    return ray.data.from_arrow(data).repartition(blocks).map_batches(score, compute=pool, **given)


@pytest.mark.parametrize("kind", ["pyarrow", "numpy", "pandas"])
def test_ray_gives_the_scorers_rows(local_ray: Any, kind: str, tmp_path: Path) -> None:
    """And files of one schema: the first block's errors are all null, the third block's scores are."""
    names, media = rows_of_data()
    found = scored(local_ray, table(names, media), 4, batch_format=kind).materialize()
    rows = plain_rows(found.sort("id").to_pandas())
    assert_same(rows, expected(names, media))
    if kind != "pandas":  # of a frame's column that is all missing Ray makes the type null
        found.write_parquet(tmp_path)
        import pyarrow.parquet as pq

        schemas = [pq.read_schema(path).remove_metadata() for path in tmp_path.glob("*.parquet")]
        assert len(schemas) > 1
        assert {str(schema) for schema in schemas} == {str(schemas[0])}


class KilledOnce(ScoreBatch):
    """Kills its own process at its third batch, as a machine's memory guard would, in the first life of one actor."""

    def __init__(self, marker: str) -> None:
        super().__init__()
        self._marker, self._batches = Path(marker), 0

    def __call__(self, batch: Any) -> Any:
        self._batches += 1
        if self._batches == 3:
            try:
                self._marker.touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(batch)


def test_no_row_is_lost_or_doubled_where_an_actor_is_killed(local_ray: Any, tmp_path: Path) -> None:
    """With Ray Data's own settings: actors are started again and their tasks tried again, without an end."""
    media: list[bytes | None] = [*small_jpegs(22), None, b"no picture"]
    names, marker = [f"{i}.jpg" for i in range(len(media))], tmp_path / "killed"
    options = {"fn_constructor_kwargs": {"marker": str(marker)}}
    rows = plain_rows(scored(local_ray, table(names, media), 8, KilledOnce, **options).to_pandas())
    assert marker.exists()
    assert_same(sorted(rows, key=lambda row: row["id"]), expected(names, media))


class Threads(ScoreBatch):
    """Says how many it has."""

    def __call__(self, batch: Any) -> Any:
        return {"threads": [self._scorer.threads] * len(batch["id"])}


def test_an_actor_has_the_threads_that_ray_counts(local_ray: Any) -> None:
    for cpus, threads in ((0.5, 1), (2, 2)):
        pool = local_ray.data.ActorPoolStrategy(size=1)
        data = local_ray.data.from_arrow(table(["a"], [None]))
        assert data.map_batches(Threads, compute=pool, num_cpus=cpus).take_all() == [{"threads": threads}]


def test_pictures_that_ray_downloads_have_rows(local_ray: Any, tmp_path: Path) -> None:
    """A file that is not there is null for Ray, so it is a row too."""
    from ray.data.expressions import download

    uris = [*map(str, SAMPLES), str(tmp_path / "missing.jpg")]
    data = local_ray.data.from_arrow(pa.table({"uri": uris})).with_column("bytes", download("uri"))
    pool = local_ray.data.ActorPoolStrategy(size=1)
    found = data.map_batches(ScoreBatch, compute=pool, batch_format="pyarrow", batch_size=4, **ACTORS).take_all()
    assert len(found) == len(uris)
    by = {row.pop("uri"): row for row in found}
    assert_same([by[uri] for uri in uris], expected_rows([*SAMPLES, None]))
