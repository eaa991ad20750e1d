"""Rows files of every kind are read as they were written; what is none says so."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qalign_fast.analysis.rows import OURS, find_files, read_rows
from qalign_fast.errors import QAlignError, RowsError, TaskError
from qalign_fast.levels import LEVELS
from support.command_line import python
from support.score_rows import JOB, KINDS, MODEL, made_rows, scored_row, write_rows

WANTED = ("level", "status", "sha256", "milliseconds", "probabilities", "camera", "not there")


@pytest.mark.parametrize("kind", KINDS)
def test_every_column_comes_back(kind: str, tmp_path: Path) -> None:
    given = made_rows(200)
    rows = read_rows(write_rows(tmp_path / f"rows.{kind}", given), WANTED)
    assert len(rows) == 200
    for name in ("source", "task", "error", "level", "status", "sha256", "camera"):
        assert rows.texts[name].take(np.arange(200)) == [row[name] for row in given], name
    for name in ("score", "milliseconds"):
        np.testing.assert_array_equal(rows.numbers[name], np.array([row[name] for row in given], float))
    expected = [[(row["probabilities"] or {}).get(word, np.nan) for word in LEVELS] for row in given]
    np.testing.assert_array_equal(rows.numbers["probabilities"], np.array(expected, float))
    np.testing.assert_array_equal(rows.scored, [row["error"] is None for row in given])
    assert "not there" not in rows.texts


def test_only_parquet_holds_its_job_and_a_folder_stands_in_for_the_others(tmp_path: Path) -> None:
    given = made_rows(5)
    assert read_rows(write_rows(tmp_path / "a.parquet", given)).job.model == MODEL
    lines = write_rows(tmp_path / "a.jsonl", given)
    assert read_rows(lines).job.model is None
    (tmp_path / "_job").mkdir()
    (tmp_path / "_job/job.json").write_text(json.dumps(JOB))
    job = read_rows(lines).job
    assert (job.sha256, job.options_sha256, job.model_name) == ("ab" * 32, "cd" * 32, "tiny int8")
    (tmp_path / "_job/job.json").write_text("[1]")
    with pytest.raises(RowsError, match="not a job's JSON"):
        read_rows(lines)


@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_a_folder_are_read_by_name(kind: str, tmp_path: Path) -> None:
    given = made_rows(30)
    for part in (2, 0, 1):
        write_rows(tmp_path / f"part-{part:05}.{kind}", given[10 * part : 10 * part + 10])
    write_rows(tmp_path / f"kept.{kind}", given[:3])  # the user's own
    (tmp_path / f".tmp-part-9.{kind}").write_text("half a file")
    found = read_rows(tmp_path)
    assert found.texts["source"].take(np.arange(len(found))) == [row["source"] for row in given]


def test_a_job_says_which_files_are_its_own(tmp_path: Path) -> None:
    """Shards of WebDataset tars are named after the tars."""
    (tmp_path / "_job").mkdir()
    (tmp_path / "_job/job.json").write_text(json.dumps(JOB | {"options": {"format": "parquet"}}))
    given = made_rows(6)
    write_rows(tmp_path / "part-00000.parquet", given[:3])
    write_rows(tmp_path / "birds.parquet", given[3:])
    write_rows(tmp_path / "part-mine.csv", given)
    assert [file.name for file in find_files(tmp_path)] == ["birds.parquet", "part-00000.parquet"]


def test_a_folder_of_two_kinds_or_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RowsError, match="holds no rows"):
        read_rows(tmp_path)
    for kind in ("csv", "jsonl"):
        write_rows(tmp_path / f"a.{kind}", made_rows(2))
    with pytest.raises(RowsError, match=r"holds rows in \.csv and \.jsonl"):
        read_rows(tmp_path)


def test_parts_of_two_models_are_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "part-0.parquet", made_rows(2))
    other = JOB | {"model": MODEL | {"sha256": "ef" * 32}}
    write_rows(tmp_path / "part-1.parquet", made_rows(2), other)
    with pytest.raises(RowsError, match=r"part-1\.parquet: of another model"):
        read_rows(tmp_path)


def test_a_part_without_a_column_gives_nulls(tmp_path: Path) -> None:
    (tmp_path / "part-0.jsonl").write_text(json.dumps(scored_row("a.jpg", 3.0, camera="Nikon")) + "\n")
    plain = {"source": "b.jpg", "task": "quality", "score": 2.0, "error": None}
    (tmp_path / "part-1.jsonl").write_text(json.dumps(plain) + "\n\n")
    rows = read_rows(tmp_path, ["camera", "milliseconds", "probabilities"])
    assert rows.texts["camera"].take(np.arange(2)) == ["Nikon", None]
    assert rows.numbers["probabilities"].shape == (2, 5)
    assert np.isnan(rows.numbers["milliseconds"]).all()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", '{"source": "a", "task": "quality", "score": 3}\n', "line 1: not a row"),
        ("a.jsonl", '{"source": "a", "task": "q", "score": 3, "error": null}\n{"sour', "line 2: not a row"),
        ("a.jsonl", '{"source": "a", "task": "q", "score": "high", "error": null}\n', "column 'score' holds 'high'"),
        ("a.jsonl", '{"source": "a", "task": "q", "score": 7, "error": null}\n', "row 1 has the score 7; expected 1"),
        ("a.csv", "source,task,score\na,quality,3\n", "no column 'error'; it has: source, task, score"),
        ("a.csv", "source,task,score,error\na,quality,3\n", "a row of 3 fields"),
        ("a.csv", "source,task,score,error\na,quality,high,\n", "column 'score' holds 'high'"),
        ("a.txt", "some words\n", "no rows of scores; expected Parquet, JSON lines or CSV"),
        ("a.parquet", "PAR1 and no more", "damaged Parquet"),
    ],
)
def test_what_is_no_rows_file_says_what_is_wrong(name: str, content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(RowsError) as caught:
        read_rows(tmp_path / name)
    assert said in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / name))


def test_a_file_that_is_missing_or_empty(tmp_path: Path) -> None:
    with pytest.raises(RowsError, match="no such file"):
        read_rows(tmp_path / "rows.parquet")
    (tmp_path / "empty.jsonl").write_text("")
    rows = read_rows(tmp_path / "empty.jsonl")
    assert (len(rows), rows.tasks) == (0, ())
    with pytest.raises(TaskError, match="none"):
        rows.one_task(None)


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_names_that_are_no_utf8_come_back(kind: str, tmp_path: Path) -> None:
    names = [os.fsdecode(b"latin\xe9.jpg"), "two\nlines.jpg", "写真.jpg", '"quoted", and more.jpg']
    rows = read_rows(write_rows(tmp_path / f"rows.{kind}", [scored_row(name, 3.0) for name in names]))
    assert rows.texts["source"].take(np.arange(len(names))) == names


def test_parquet_with_bytes_that_are_no_utf8_is_read(tmp_path: Path) -> None:
    """Some writers do not check their strings."""
    wrong = pa.Array.from_buffers(pa.string(), 1, pa.array([b"latin\xe9.jpg"]).buffers())
    columns = {"source": wrong, "task": ["quality"], "score": [3.0], "error": pa.array([None], pa.string())}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    assert os.fsencode(str(read_rows(tmp_path / "rows.parquet").texts["source"][0])) == b"latin\xe9.jpg"


def test_columns_of_other_types_become_text(tmp_path: Path) -> None:
    columns = {
        "source": pa.array(["a", "b"]).dictionary_encode(),
        "task": ["quality"] * 2,
        "score": pa.array([3, 2], pa.int64()),  # the second one has an error too, and does not count
        "error": pa.array([None, "gone"]),
        "year": [1999, None],
        "tags": [["x", "y"], None],
        "flag": [True, False],
    }
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    rows = read_rows(tmp_path / "rows.parquet", ["year", "tags", "flag"])
    texts = [rows.texts[name].take(np.arange(2)) for name in ("source", "year", "tags", "flag")]
    assert texts == [["a", "b"], ["1999", None], ['["x", "y"]', None], ["true", "false"]]
    np.testing.assert_array_equal(rows.scored, [True, False])


def test_groups_are_columns_or_folders(tmp_path: Path) -> None:
    sources = ["a/b/1.jpg", "a/2.jpg", "3.jpg", "a/b/4.jpg", "http://h/x/5.jpg"]
    rows = read_rows(write_rows(tmp_path / "rows.parquet", [scored_row(s, 3.0) for s in sources]), ["camera"])
    assert rows.group("folder").take(np.arange(5)) == ["a/b", "a", ".", "a/b", "http://h/x"]
    with pytest.raises(RowsError, match=r"no column 'lens' of text; it has: folder, camera"):
        rows.group("lens")
    assert "camera" not in OURS


def test_text_files_need_no_pyarrow_and_parquet_says_what_installs_it(tmp_path: Path) -> None:
    lines, table = (write_rows(tmp_path / f"rows.{kind}", made_rows(3)) for kind in ("csv", "parquet"))
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from qalign_fast.analysis.rows import read_rows\n"
        f"print(len(read_rows({str(lines)!r})))\n"
        f"try: read_rows({str(table)!r})\nexcept ImportError as error: print(error)"
    )
    assert python(code).splitlines() == ["3", "reading Parquet needs pyarrow: pip install 'qalign-fast[jobs]'"]


def test_importing_the_package_takes_numpy_alone() -> None:
    modules = [path.stem for path in Path(find_package()).glob("*.py")]
    code = "import sys, numpy; before = set(sys.modules)\n"
    code += "".join(f"import qalign_fast.analysis.{name}\n" for name in modules)
    code += "print(*{m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names))"
    assert python(code).split() == ["qalign_fast"]


def find_package() -> str:
    import qalign_fast.analysis

    return str(Path(qalign_fast.analysis.__file__).parent)


def test_errors_are_of_the_family(tmp_path: Path) -> None:
    assert issubclass(RowsError, QAlignError)
    shutil.copytree(tmp_path, tmp_path / "folder.parquet")
    with pytest.raises(RowsError):
        read_rows(tmp_path / "folder.parquet")
