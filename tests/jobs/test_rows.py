"""What a job's rows hold, in each format; equal pictures; retries; status and dry runs; and the command."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import signal
import subprocess
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qalign_fast import Scorer
from qalign_fast.identity import identify_model
from qalign_fast.jobs import local
from qalign_fast.jobs.dry_run import dry_run
from qalign_fast.jobs.inputs.taking import InputOptions
from qalign_fast.jobs.job import run_job
from qalign_fast.jobs.options import FORMATS, hash_options
from qalign_fast.jobs.status import status_of
from qalign_fast.records import make_row
from support.command_line import CLI, python, run
from support.goldens import ROOT
from support.jobs import files, options, run_options, small_pictures

SAMPLES = sorted((ROOT / "samples").glob("coffee*.jpg"))
COLUMNS = "source id task score score01 probabilities level frames sha256 status error warnings milliseconds".split()


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """The samples, one that is missing and one that is no picture, with an id each."""
    (tmp_path / "bad.jpg").write_text("no picture")
    names = [*map(str, SAMPLES), "missing.jpg", "bad.jpg"]
    (tmp_path / "in.csv").write_text("path,id\n" + "".join(f"{name},{n}\n" for n, name in enumerate(names)))
    return tmp_path / "in.csv"


def read(out: Path, form: str) -> list[dict[str, Any]]:
    if form == "parquet":
        return list(pq.read_table(out).to_pylist())
    paths = sorted(out.glob(f"*.{form}"))
    if form == "jsonl":
        return [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    return [row for path in paths for row in csv.DictReader(path.open())]


def test_a_parquet_file_has_the_fixed_schema_and_says_of_what_it_is(table: Path, tmp_path: Path) -> None:
    job = options(table, taking=InputOptions(keep=("id",)), shard_size=4)
    run_job(tmp_path / "out", job, run_options())
    found = pq.read_table(tmp_path / "out/part-00001.parquet")
    assert found.schema.names == COLUMNS
    assert [str(found.schema.field(name).type) for name in COLUMNS if name != "probabilities"] == [
        *["string"] * 3,
        "double",
        "double",
        "string",
        "int32",
        *["string"] * 3,
        "list<element: string>",
        "double",
    ]
    assert found.schema.field("probabilities").type == pa.struct(
        [(word, pa.float64()) for word in ("excellent", "good", "fair", "poor", "bad")]
    )
    about = json.loads(found.schema.metadata[b"qalign.job"])
    assert about["model"] == identify_model(None)
    assert about["options_sha256"] == hash_options(about["options"]) == hash_options(job.to_json())
    assert (about["tasks"], about["scale"]) == (["quality"], [1.0, 5.0])


@pytest.mark.parametrize("form", FORMATS)
def test_rows_are_those_of_score_and_more(form: str, table: Path, tmp_path: Path) -> None:
    job = options(table, taking=InputOptions(keep=("id",)), shard_size=4, format=form, timing=True)
    run_job(tmp_path / "out", job, run_options())
    rows = read(tmp_path / "out", form)
    assert [row["id"] for row in rows] == [str(n) for n in range(len(SAMPLES) + 2)]
    for path, row in zip(SAMPLES, rows, strict=False):
        for name, value in make_row(str(path), "quality", Scorer.load().score(str(path))).items():
            if form != "csv":
                assert row[name] == value
            elif name == "probabilities":
                assert {word: float(row[word]) for word in value} == value
            else:
                assert row[name] == ("" if value is None else str(value))
        assert float(row["score01"]) == pytest.approx((float(row["score"]) - 1) / 4, abs=1e-4)
        assert row["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert row["status"] == "ok"
        assert float(row["milliseconds"]) > 0
    missing, bad = rows[-2:]
    assert missing["error"] == "missing.jpg: No such file or directory"
    assert (missing["status"], bad["status"]) == ("unavailable", "failed")
    assert bad["sha256"] == hashlib.sha256(b"no picture").hexdigest()
    assert (bad["score"], bad["level"]) == (("", "") if form == "csv" else (None, None))


@pytest.mark.parametrize("form", FORMATS)
def test_a_retry_scores_what_was_unavailable_and_leaves_the_rest(form: str, table: Path, tmp_path: Path) -> None:
    job = options(table, taking=InputOptions(keep=("id",)), shard_size=4, format=form)
    run_job(tmp_path / "out", job, run_options())
    before = read(tmp_path / "out", form)
    (table.parent / "missing.jpg").write_bytes(SAMPLES[0].read_bytes())
    assert run_job(tmp_path / "out", job, run_options(), retry=True).scored == 1
    after = read(tmp_path / "out", form)
    assert after[:-2] + after[-1:] == before[:-2] + before[-1:]
    assert (after[-2]["status"], after[-2]["score"]) == ("ok", after[0]["score"])
    assert run_job(tmp_path / "out", job, run_options(), retry=True).scored == 0


def test_several_tasks_give_a_row_each(tmp_path: Path) -> None:
    job = options(*map(str, SAMPLES[:2]), tasks=("quality", "aesthetics"))
    run_job(tmp_path / "out", job, run_options(model=str(ROOT / "models/mini")))
    rows = read(tmp_path / "out", "parquet")
    assert [(row["source"], row["task"]) for row in rows] == [
        (str(path), task) for path in SAMPLES[:2] for task in ("quality", "aesthetics")
    ]


def test_equal_pictures_are_scored_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    for number in range(40):
        (tmp_path / f"in/{number:02d}.jpg").write_bytes(SAMPLES[number % 3].read_bytes())
    encoded: list[int] = []
    load = local.EngineSetup.load

    def counting(setup: local.EngineSetup) -> Scorer:
        scorer = load(setup)
        encode = scorer.engine.encode
        scorer.engine.encode = lambda pixels: (encoded.append(len(pixels)), encode(pixels))[1]  # type: ignore[method-assign]
        return scorer

    monkeypatch.setattr(local.EngineSetup, "load", counting)
    job = options(tmp_path / "in", dedup=True, shard_size=8)
    run_job(tmp_path / "out", job, run_options(batch_size=4))
    assert sum(encoded) == 3
    rows = read(tmp_path / "out", "parquet")
    assert [row["score"] for row in rows] == [rows[number % 3]["score"] for number in range(40)]
    assert len({row["source"] for row in rows}) == 40
    unbroken = files(tmp_path / "out")
    encoded.clear()
    for number in (2, 3):
        (tmp_path / f"out/part-0000{number}.parquet").unlink()
    run_job(tmp_path / "out", job, run_options(batch_size=4))
    assert encoded == []  # finished shards have them
    assert files(tmp_path / "out") == unbroken


def test_names_that_are_not_utf8_keep_their_rows(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"in/\xff\n.jpg")
    path.parent.mkdir()
    path.write_bytes(SAMPLES[0].read_bytes())
    run_job(tmp_path / "out", options(tmp_path / "in"), run_options())
    [row] = read(tmp_path / "out", "parquet")
    assert (row["source"], row["status"]) == (f"{tmp_path}/in/\\udcff\n.jpg", "ok")
    run_job(tmp_path / "lines", options(tmp_path / "in", format="jsonl"), run_options())
    [row] = read(tmp_path / "lines", "jsonl")
    assert os.fsencode(row["source"]) == os.fsencode(path)


def test_a_job_goes_on_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_pictures(tmp_path / "in", 40)
    monkeypatch.chdir(tmp_path)
    taking = InputOptions(recursive=True)
    run_job(Path("out"), options("in", taking=taking, shard_size=8), run_options())
    unbroken = files(tmp_path / "out")
    (tmp_path / "out/part-00002.parquet").unlink()
    monkeypatch.chdir("/")
    outcome = run_job(tmp_path / "out", options(taking=taking, shard_size=8), run_options())
    assert (outcome.scored, outcome.errors) == (8, 0)
    assert files(tmp_path / "out") == unbroken


def test_status_and_dry_run(tmp_path: Path) -> None:
    small_pictures(tmp_path / "in", 40)
    job = options(tmp_path / "in", taking=InputOptions(recursive=True), shard_size=16)
    facts = dry_run(tmp_path / "out", job, run_options(), BytesIO(), lambda _: None)
    assert not (tmp_path / "out").exists()
    assert (facts["inputs"], facts["rows"]) == (40, 40)
    assert facts["shards"] == "3, part-00000.parquet to part-00002.parquet"
    assert facts["sample"].startswith("32 inputs, 0 with an error")
    run_job(tmp_path / "out", job, run_options())
    found = status_of(tmp_path / "out")
    assert (found["state"], found["inputs"], found["shards"], found["ok"]) == (
        "complete",
        "40 of 40 (100.0 %)",
        "3 of 3",
        40,
    )
    small_pictures(tmp_path / "in/more", 2, seed=5)
    next((tmp_path / "in/000").glob("*.jpg")).unlink()
    facts = dry_run(tmp_path / "out", job, run_options(), BytesIO(), lambda _: None)
    assert facts["since the job was planned"] == "2 new, 1 gone, 0 changed"


def test_the_command(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run("run", *SAMPLES, "missing.jpg", "--out", out, "--format", "csv")
    assert done.returncode == 3
    assert done.stdout == ""
    assert f"all of them: {len(SAMPLES)} ok, 1 unavailable" in done.stderr
    done = run("run", *SAMPLES, "missing.jpg", "--out", out, "--format", "csv", "--json")
    assert json.loads(done.stdout) | {"ok": len(SAMPLES), "unavailable": 1} == json.loads(done.stdout)
    assert "0 inputs scored" in done.stderr
    assert json.loads(run("run", "--status", out, "--json").stdout)["state"] == "complete"
    done = run("run", *SAMPLES, "--out", out)
    assert done.returncode == 1
    assert "the job there differs" in done.stderr
    assert run("run", *SAMPLES).returncode == 2
    done = run("run", "--status", tmp_path)
    assert (done.returncode, done.stderr) == (1, f"error: {tmp_path}: no job is there\n")
    done = run("run", SAMPLES[0], "--out", out, "--task", "sharpness")
    assert "task 'sharpness' is not in this model" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_once_leaves_whole_shards_and_exit_code_130(number: int, tmp_path: Path) -> None:
    small_pictures(tmp_path / "in", 600)
    process = subprocess.Popen(
        [*CLI, "run", tmp_path / "in", "-r", "--out", tmp_path / "out", "--shard-size", "16", "--no-timing"],
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("out/part-*")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "ending after the shards in hand" in said
    assert "the same command goes on" in said
    found = status_of(tmp_path / "out")
    assert found["state"] == "ended early"
    assert len(list(tmp_path.glob("out/part-*"))) == int(found["shards"].split()[0]) < 38
    assert not list(tmp_path.glob("out/.tmp-*"))


def test_importing_the_command_is_light() -> None:
    heavy = "pyarrow", "pebble", "fsspec", "filelock"
    assert python(f"import sys, qalign_fast.cli.run; print([n for n in {heavy} if n in sys.modules])") == "[]\n"
