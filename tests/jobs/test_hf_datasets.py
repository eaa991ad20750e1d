"""`Dataset.map` gives the rows of `Scorer.score`, and the second run in another process computes nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qalign_fast.errors import OptionError
from qalign_fast.jobs import hf_datasets
from qalign_fast.jobs.hf_datasets import score_function
from qalign_fast.jobs.row_scorer import RowScorer
from support.row_pictures import SAMPLES, assert_same, expected_rows, plain_rows, rows_of_data

datasets = pytest.importorskip("datasets")
OURS = "score score01 level excellent good fair poor bad status error".split()


def data_set() -> tuple[Any, list[bytes | None]]:
    _, media = rows_of_data()
    images = [None if data is None else {"bytes": data, "path": f"{i}.jpg"} for i, data in enumerate(media)]
    ids = {"id": list(range(len(media))), "image": images}
    features = datasets.Features({"id": datasets.Value("int32"), "image": datasets.Image(decode=False)})
    return datasets.Dataset.from_dict(ids, features=features), images


def test_rows_are_the_scorers_without_the_pictures() -> None:
    """In batches of two: the first has no error, the third has no score."""
    given, images = data_set()
    found = given.map(score_function(), batched=True, batch_size=2, with_rank=True, remove_columns=["image"])
    assert found.column_names == ["id", *OURS]
    assert {name: feature.dtype for name, feature in found.features.items()} == {
        "id": "int32",
        **{name: "string" if name in ("level", "status", "error") else "float64" for name in OURS},
    }
    columns = found.to_dict()
    assert columns.pop("id") == list(range(len(images)))
    assert_same(plain_rows(columns), expected_rows(images))


def test_a_data_set_that_begins_with_bad_pictures_is_scored() -> None:
    given, images = data_set()
    turned = given.select([6, 5, 4, 0, 1])
    found = turned.map(score_function(prefix="q_"), batched=True, batch_size=3, remove_columns=["image", "id"])
    rows = [{name.removeprefix("q_"): cell for name, cell in row.items()} for row in plain_rows(found.to_dict())]
    assert_same(rows, expected_rows([images[i] for i in (6, 5, 4, 0, 1)]))


def test_two_processes_give_the_same_rows_each_with_its_rank() -> None:
    given, images = data_set()
    options = {"batched": True, "batch_size": 2, "with_rank": True, "num_proc": 2, "remove_columns": ["image", "id"]}
    assert_same(plain_rows(given.map(score_function(threads=1), **options).to_dict()), expected_rows(images))


RUN = """
import json, sys
from pathlib import Path
from datasets import Image, load_from_disk
from datasets.fingerprint import Hasher
from qalign_fast.jobs.hf_datasets import score_function
from qalign_fast.jobs.row_scorer import RowScorer

score = RowScorer.score
def counted(self, media):
    with Path(sys.argv[2]).open("a") as file:
        file.write("batch\\n")
    return score(self, media)
RowScorer.score = counted

options = json.loads(sys.argv[3])
function = score_function(**options)
if len(sys.argv) > 4:
    function.scorer.load()  # a loaded model must not change the fingerprint
given = load_from_disk(sys.argv[1]).cast_column("image", Image(decode=False))
found = given.map(function, batched=True, batch_size=4, with_rank=True, remove_columns=["image"])
print(json.dumps([found.to_dict(), Hasher.hash(function), [file["filename"] for file in found.cache_files]]))
"""


def run(folder: Path, options: dict[str, Any], *more: str) -> tuple[Any, int]:
    """What a new process prints, and how many batches it computed."""
    log = folder.parent / "log"
    log.write_text("")
    command = [sys.executable, "-c", RUN, str(folder), str(log), json.dumps(options), *more]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1]), len(log.read_text().splitlines())


def test_a_second_run_in_another_process_is_answered_from_the_cache(tmp_path: Path) -> None:
    given, images = data_set()
    given.save_to_disk(tmp_path / "data")
    options = {"tasks": ["quality"], "batch_size": 4}
    first, computed = run(tmp_path / "data", options)
    assert computed == 3
    written = [(file, Path(file).stat().st_mtime_ns) for file in first[2]]
    assert written
    second, computed = run(tmp_path / "data", options, "load before")
    assert computed == 0
    assert second[1:] == first[1:]
    assert [(file, Path(file).stat().st_mtime_ns) for file in second[2]] == written
    for found in (first[0], second[0]):
        found.pop("id")
        assert_same(plain_rows(found), expected_rows(images))
    other, computed = run(tmp_path / "data", options | {"prefix": "q_"})
    assert computed == 3
    assert other[1] != first[1]


def test_another_model_is_another_function(tmp_path: Path) -> None:
    functions = []
    for text in ("one", "two"):
        (tmp_path / "qalign.json").write_text(text)
        functions.append(score_function(model=str(tmp_path)))
    assert functions[0] != functions[1]
    assert functions[1] == score_function(model=str(tmp_path))
    assert score_function().identity.split()[1]


def test_a_rank_takes_a_gpu_where_there_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[str] = []
    monkeypatch.setattr(RowScorer, "score", lambda self, _: devices.append(self.device) or {})
    batch = {"image": [None]}
    for count in (0, 2):
        monkeypatch.setattr(hf_datasets, "_cuda_devices", lambda count=count: count)
        for rank in (None, 0, 3):
            score_function()(batch, rank)
    score_function(device="cpu")(batch, 1)
    assert devices == ["auto", "auto", "auto", "auto", "cuda:0", "cuda:1", "cpu"]


def test_columns_that_are_missing_or_taken_are_told() -> None:
    function = score_function("picture")
    with pytest.raises(OptionError, match="column 'picture' is not in the data, which have: image"):
        function({"image": [None]})
    with pytest.raises(OptionError, match="columns status already"):
        function({"picture": [None], "status": ["?"]})


def test_paths_have_rows_too() -> None:
    given = datasets.Dataset.from_dict({"path": [str(path) for path in SAMPLES]})
    found = given.map(score_function("path"), batched=True, remove_columns=["path"])
    assert_same(plain_rows(found.to_dict()), expected_rows(SAMPLES))
