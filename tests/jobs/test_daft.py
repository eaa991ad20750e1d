"""Daft gives the rows of `Scorer.score`, in this process and in one of its own."""

from __future__ import annotations

from typing import Any

import pytest

from qalign_fast.errors import OptionError
from qalign_fast.jobs.daft_class import score_udf
from support.row_pictures import SAMPLES, assert_same, expected_rows, plain_rows, rows_of_data

daft = pytest.importorskip("daft")
pytest.importorskip("pyarrow")
OURS = "score score01 level excellent good fair poor bad status error".split()


def frame() -> tuple[Any, list[bytes | None]]:
    _, media = rows_of_data()
    types = {"id": list(range(len(media))), "bytes": media}
    return daft.from_pydict(types), media


@pytest.mark.parametrize("options", [{}, {"use_process": True, "max_concurrency": 2}], ids=["here", "processes"])
def test_rows_are_the_scorers_without_the_bytes(options: dict[str, Any]) -> None:
    given, media = frame()
    score = score_udf(rows=2, threads=1, daft_options=options)
    found = given.select("id", score(given["bytes"])).sort("id").to_pydict()
    assert list(found) == ["id", *OURS]
    assert found.pop("id") == list(range(len(media)))
    assert_same(plain_rows(found), expected_rows(media))


def test_types_are_the_same_where_all_rows_are_bad() -> None:
    given = daft.from_pydict({"bytes": [None, b"no picture"]})
    found = given.select(score_udf(prefix="q_")(given["bytes"])).to_arrow()
    assert found.column_names == [f"q_{name}" for name in OURS]
    texts = {"q_level", "q_status", "q_error"}
    assert {field.name for field in found.schema if str(field.type).endswith("string")} == texts
    assert {str(field.type) for field in found.schema if field.name not in texts} == {"double"}
    assert found["q_score"].null_count == 2


def test_paths_and_structs_have_rows_too() -> None:
    data = [path.read_bytes() for path in SAMPLES]
    structs = [{"bytes": one, "path": None} for one in data]
    given = daft.from_pydict({"path": [str(path) for path in SAMPLES], "image": structs})
    for column in ("path", "image"):
        found = given.select(score_udf()(given[column])).to_pydict()
        assert_same(plain_rows(found), expected_rows(SAMPLES))


def test_options_that_cannot_be_are_told_before_a_query() -> None:
    with pytest.raises(OptionError, match="workers 0"):
        score_udf(workers=0)
