"""`RowScorer` gives the rows of `Scorer.score`, in columns of the same types whatever the pictures are."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qalign_fast import Scorer
from qalign_fast.errors import DeviceError, OptionError, TaskError
from qalign_fast.jobs import row_scorer
from qalign_fast.jobs.row_columns import arrow_columns, arrow_media, texts_for_none
from qalign_fast.jobs.row_scorer import RowScorer
from qalign_fast.needs import need
from qalign_fast.pixels.limits import PictureLimits
from support.command_line import python
from support.goldens import Golden
from support.row_pictures import SAMPLES, assert_same, expected_row, expected_rows, plain_rows, rows_of_data

KINDS = {"score": "f", "score01": "f", "level": "O", "excellent": "f", "good": "f", "fair": "f", "poor": "f"}
KINDS |= {"bad": "f", "status": "O", "error": "O"}


def test_rows_are_the_scorers_with_bad_ones_in_place() -> None:
    _, media = rows_of_data()
    found = plain_rows(RowScorer(batch_size=2).score(media))
    assert_same(found, expected_rows(media))
    assert [row["status"] for row in found].count("failed") == 4
    assert found[6]["error"] == "no picture"


def test_several_tasks_have_columns_each_and_one_status(goldens: dict[str, Golden]) -> None:
    _, media = rows_of_data()
    model = goldens["narrow-112"].artifact
    scorer = RowScorer(model, tasks=["quality", "aesthetics"])
    columns = scorer.score(media)
    assert_same(plain_rows(columns), expected_rows(media, "quality", "aesthetics", model=model))
    assert list(columns) == list(scorer.columns)
    assert [name for name in columns if "status" in name or "error" in name] == ["status", "error"]


@pytest.mark.parametrize("media", [[], [None], [b"x"] * 3, [SAMPLES[0]]], ids=["none", "null", "bad", "good"])
def test_types_do_not_depend_on_what_the_rows_are(media: list[Any]) -> None:
    columns = RowScorer().score(media)
    assert {name: cells.dtype.kind for name, cells in columns.items()} == KINDS
    assert {len(cells) for cells in columns.values()} == {len(media)}


def test_every_form_of_a_picture_gives_the_same_row() -> None:
    path = SAMPLES[1]
    data = path.read_bytes()
    forms = [data, bytearray(data), memoryview(data), str(path), path, np.bytes_(data)]
    forms += [{"bytes": data, "path": None}, {"bytes": None, "path": str(path)}]
    assert_same(plain_rows(RowScorer().score(forms)), [expected_row(data)] * len(forms))


def test_what_is_no_picture_at_all_fails_in_its_row() -> None:
    odd = [float("nan"), 7, {}, {"bytes": None, "path": None}, "", "/nowhere/a.jpg", [b"a"], object(), np.zeros(3)]
    rows = plain_rows(RowScorer().score([*odd, SAMPLES[0]]))
    assert [row["status"] for row in rows] == ["failed"] * len(odd) + ["ok"]
    assert all(row["error"] and "\n" not in row["error"] for row in rows[:-1])
    assert rows[0]["error"] == "no picture"
    assert "/nowhere/a.jpg" in rows[5]["error"]


def test_a_picture_over_the_limits_fails_in_its_row() -> None:
    small, large = sorted(SAMPLES, key=lambda path: path.stat().st_size)[:: len(SAMPLES) - 1]
    limits = PictureLimits(max_bytes=small.stat().st_size)
    ok, failed = plain_rows(RowScorer(limits=limits).score([small, large]))
    assert_same([ok], [expected_row(small)])
    assert (failed["status"], failed["score"]) == ("failed", None)
    assert "max_bytes" in failed["error"]


def test_a_prefix_stands_before_every_column() -> None:
    columns = RowScorer(prefix="q_").score([SAMPLES[0], b""])
    assert [name.removeprefix("q_") for name in columns] == list(KINDS)
    assert all(name.startswith("q_") for name in columns)
    rows = [{name.removeprefix("q_"): cell for name, cell in row.items()} for row in plain_rows(columns)]
    assert_same(rows, expected_rows([SAMPLES[0], b""]))


def test_one_thread_gives_the_same_rows_batch_by_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    _, media = rows_of_data()
    assert_same(plain_rows(RowScorer(threads=1, batch_size=2).score(iter(media))), expected_rows(media))
    runs: list[int] = []

    class Counting:
        def run(self, items: list[Any], *_: Any, **__: Any) -> list[Any]:
            runs.append(len(items))
            return []

    monkeypatch.setattr(row_scorer, "_scorer", lambda _: type("S", (), {"feed": Counting()}))
    RowScorer(threads=1, batch_size=2).score([b""] * 5)
    RowScorer(batch_size=2).score([b""] * 5)
    assert runs == [2, 2, 1, 5]


def test_errors_of_the_engine_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = RowScorer(limits=PictureLimits(max_pixels=999_999_937))  # a key of its own
    engine = row_scorer._scorer(scorer).engine

    def no_memory(_: Any) -> Any:
        raise DeviceError("no memory for one step")

    monkeypatch.setattr(engine, "encode", no_memory)
    with pytest.raises(DeviceError, match="no memory"):
        scorer.score([SAMPLES[0]])


def test_a_model_is_loaded_once_in_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[Any] = []
    real = Scorer.load
    monkeypatch.setattr(Scorer, "load", lambda *args, **options: loads.append(args) or real(*args, **options))
    monkeypatch.setattr(row_scorer, "_LOADED", {})
    made = RowScorer()
    assert loads == []  # making it loads nothing
    for scorer in (made, pickle.loads(pickle.dumps(made)), RowScorer(prefix="a_", batch_size=3)):
        scorer.load().score([SAMPLES[0]])
    assert len(loads) == 1
    RowScorer(threads=1).load()
    assert len(loads) == 2


def test_a_forked_process_loads_its_own() -> None:
    RowScorer().load()
    reader, writer = os.pipe()
    if child := os.fork():
        os.close(writer)
        with os.fdopen(reader, "rb") as file:
            found = file.read()
        assert os.waitpid(child, 0)[1] == 0
        assert_same(pickle.loads(found), [expected_row(SAMPLES[0])])
    else:
        with os.fdopen(writer, "wb") as file:
            file.write(pickle.dumps(plain_rows(RowScorer().score([SAMPLES[0]]))))
        os._exit(0)


def test_options_that_cannot_be_are_told() -> None:
    with pytest.raises(OptionError, match="tasks is empty"):
        RowScorer(tasks=[])
    with pytest.raises(OptionError, match="batch_size is 0"):
        RowScorer(batch_size=0)
    with pytest.raises(TaskError, match="it has: quality"):
        RowScorer(tasks="beauty").load()


def test_it_is_made_of_options_that_are_the_same_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    assert RowScorer("model").model == str(tmp_path / "model")
    assert RowScorer(tasks=["quality"]) == RowScorer(tasks="quality") == RowScorer()
    assert hash(RowScorer(tasks=["quality"])) == hash(RowScorer())
    assert len(pickle.dumps(RowScorer().load())) < 1000


def test_threads_are_what_a_cluster_counts_where_the_user_gave_none() -> None:
    assert RowScorer().with_threads(2.0).threads == 2
    assert RowScorer().with_threads(0.5).threads == 1
    assert RowScorer().with_threads(None).threads is None
    assert RowScorer(threads=3).with_threads(1).threads == 3
    assert RowScorer(device="cuda:1").with_threads(1).threads is None
    assert RowScorer("http://127.0.0.1:1").with_threads(1).threads is None


def test_arrow_columns_have_nulls_and_fixed_types() -> None:
    pa = pytest.importorskip("pyarrow")
    scorer = RowScorer()
    for media in ([None], [SAMPLES[0]], []):
        found = arrow_columns(scorer.score(media), scorer.columns)
        assert {str(column.type) for column in found.values()} == {"double", "string"}
        assert all(found[name].null_count == media.count(None) for name in ("score", "level", "bad"))
    data = [b"\0a", None, b""]
    for kind in (pa.binary(), pa.large_binary(), pa.binary_view()):
        assert [None if m is None else bytes(m) for m in arrow_media(pa.array(data, kind))] == data
    assert [bytes(m) for m in arrow_media(pa.array([b"ab"], pa.binary(2)))] == [b"ab"]
    assert list(arrow_media(pa.array(["a.jpg", None]))) == ["a.jpg", None]
    assert list(arrow_media(pa.array([{"bytes": b"a", "path": None}]))) == [{"bytes": b"a", "path": None}]


def test_texts_for_none_leave_no_none() -> None:
    columns = texts_for_none(RowScorer().score([None, SAMPLES[0]]))
    assert list(columns["error"]) == ["no picture", ""]
    assert columns["level"][0] == ""
    assert np.isnan(columns["score"][0])


@pytest.mark.parametrize(
    ("made", "module", "extra"),
    [
        ("from qalign_fast.jobs.ray_data import ScoreBatch; ScoreBatch()", "ray", "ray"),
        ("from qalign_fast.jobs.spark import score_udf; score_udf()", "pyspark", "spark"),
        ("from qalign_fast.jobs.daft_class import score_udf; score_udf()", "daft", "daft"),
        ("from qalign_fast.jobs.hf_datasets import score_function; score_function()", "datasets", "datasets"),
    ],
)
def test_a_library_that_is_missing_is_one_line_that_helps(made: str, module: str, extra: str) -> None:
    """And importing ours imports none of them."""
    imported, _, call = made.partition("; ")
    said = python(
        f"import sys\n{imported}\n"
        "print({name.partition('.')[0] for name in sys.modules} & {'ray', 'pyspark', 'daft', 'datasets', 'pyarrow'})\n"
        f"sys.modules[{module!r}] = None\nfrom qalign_fast import MissingExtraError\n"
        f"try: {call}\nexcept MissingExtraError as error: print(error)"
    ).splitlines()
    assert said[0] == "set()"
    assert f"pip install 'qalign-fast[{extra}]'" in said[1]
    assert len(said) == 2


def test_need_gives_the_module() -> None:
    assert need("json.decoder", "x").__name__ == "json.decoder"
