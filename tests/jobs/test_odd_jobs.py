"""What a first reader of the job runner broke: each was wrong once."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from threading import Timer

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock

from qalign_fast.errors import OptionError, QAlignError
from qalign_fast.jobs.crew import MemberDiedError, ProcessMember
from qalign_fast.jobs.dry_run import dry_run
from qalign_fast.jobs.entries import Entry
from qalign_fast.jobs.inputs.taking import InputOptions
from qalign_fast.jobs.job import run_job
from qalign_fast.jobs.local import EngineSetup
from qalign_fast.jobs.status import status_of
from support.command_line import run
from support.job_inputs import SAMPLES, entries
from support.jobs import files, make_tar, options, rows_of, run_options

PICTURE = SAMPLES[0].read_bytes()


@pytest.mark.parametrize("name", ["part-00001.tar", "_hidden.tar", "_t/_t.tar"])
def test_a_tar_may_have_any_name(name: str, tmp_path: Path) -> None:
    (tmp_path / "_t").mkdir()
    tar = make_tar(tmp_path / name, {"x.jpg": PICTURE})
    assert run_job(tmp_path / "out", options(tar, SAMPLES[1]), run_options()).complete
    assert {row["source"] for row in rows_of(tmp_path / "out")} == {f"{tar}/x.jpg", str(SAMPLES[1])}
    assert run_job(tmp_path / "out", options(tar, SAMPLES[1]), run_options()).scored == 0


def test_force_keeps_the_old_job_until_the_new_plan_stands(tmp_path: Path) -> None:
    run_job(tmp_path / "out", options(SAMPLES[0]), run_options())
    before = files(tmp_path / "out")
    for wrong in (
        options(),
        options(tmp_path / "missing.csv"),
        options(SAMPLES[0], taking=InputOptions(keep=("task",))),
    ):
        with pytest.raises(QAlignError):
            run_job(tmp_path / "out", wrong, run_options(), force=True)
        assert files(tmp_path / "out") == before
        assert status_of(tmp_path / "out")["state"] == "complete"


@pytest.mark.parametrize("url", ["simplecache::http://127.0.0.1:9/x.jpg", "zip://x.jpg::http://127.0.0.1:9/z.zip"])
def test_every_protocol_of_a_chain_must_be_allowed(url: str, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text(url + "\n")
    [entry] = entries(tmp_path / "names.txt", protocols=("zip", "simplecache"))
    assert entry.problem == f"{url}: http:// is not opened unless --allow http says so"


@pytest.mark.parametrize("kind", ["table", "tar"])
def test_a_table_or_tar_that_was_changed_after_the_plan_is_said(kind: str, tmp_path: Path) -> None:
    def write(pictures: list[bytes]) -> Path:
        if kind == "tar":
            return make_tar(tmp_path / "a.tar", {f"{n}.jpg": data for n, data in enumerate(pictures)})
        pq.write_table(pa.table({"image": pictures}), tmp_path / "a.parquet")
        return tmp_path / "a.parquet"

    pictures = [path.read_bytes() for path in SAMPLES]
    job = options(write(pictures))
    run_job(tmp_path / "out", job, run_options())
    assert [row["warnings"] for row in rows_of(tmp_path / "out")] == [None] * 3
    [file] = (tmp_path / "out").glob("*.parquet")
    file.unlink()
    time.sleep(0.01)
    write(pictures[::-1])
    assert run_job(tmp_path / "out", job, run_options()).counts["changed"] == 3


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: 3 * 512 + len(PICTURE) // 512 * 512],  # at about a member's end
        lambda data: data[:512] + data[512:].replace(b"ustar", b"xxxxx", 1).replace(b"b.jpg", b"\1\2\3\4\5", 1),
        lambda data: data + data,
        lambda data: data.rstrip(b"\0") + b"\0" * (-len(data.rstrip(b"\0")) % 512),  # without its end
    ],
)
def test_a_tar_is_read_to_its_end_or_refused(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    tar = make_tar(tmp_path / "a.tar", {"a.jpg": PICTURE, "b.jpg": PICTURE})
    assert len(entries(tar)) == 2
    tar.write_bytes(damage(tar.read_bytes()))
    with pytest.raises(OptionError, match="not a whole tar"):
        entries(tar)


def test_files_of_nobodys_job_stay(tmp_path: Path) -> None:
    (tmp_path / "part-00001.parquet").write_bytes(b"mine")
    (tmp_path / ".tmp-mine").mkdir()
    (tmp_path / ".qalign-tmp-mine").mkdir()
    with pytest.raises(QAlignError, match=r"part-00001\.parquet: is there already"):
        run_job(tmp_path, options(*SAMPLES, shard_size=1), run_options())
    assert run_job(tmp_path, options(*SAMPLES), run_options()).complete
    assert (tmp_path / "part-00001.parquet").read_bytes() == b"mine"


def test_members_with_a_dot_in_their_name_and_links(tmp_path: Path) -> None:
    tar = make_tar(tmp_path / "a.tar", {"IMG.2020.jpg": PICTURE})
    with tarfile.open(tar, "a") as file:
        link = tarfile.TarInfo("b.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "IMG.2020.jpg"
        file.addfile(link)
    found = entries(tar)
    assert [entry.source for entry in found] == [f"{tar}/IMG.2020.jpg", f"{tar}/b.jpg"]
    assert found[1].problem is not None and "a link to IMG.2020.jpg" in found[1].problem


def test_samples_without_a_picture_are_counted(tmp_path: Path) -> None:
    tar = make_tar(tmp_path / "a.tar", {"1.jpg": PICTURE, "2.txt": b"a caption alone", "3.json": b"{}"})
    done = run("run", tar, "--out", tmp_path / "out")
    assert "skipped: 2 sample(s) of a tar without a picture" in done.stderr.splitlines()
    facts = dry_run(tmp_path / "new", options(tar), run_options(), io.BytesIO(), lambda _: None)
    assert facts["skipped"] == "2 sample(s) of a tar without a picture"


def test_a_status_in_the_wrong_moment_refuses_no_run(tmp_path: Path) -> None:
    run_job(tmp_path, options(*SAMPLES), run_options())
    looked = FileLock(tmp_path / "_job/lock", thread_local=False)  # as `is_locked` takes it
    looked.acquire()
    Timer(0.2, looked.release).start()
    assert run_job(tmp_path, options(*SAMPLES), run_options()).complete


def test_metadata_names_its_pictures_by_file_name_alone(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(PICTURE)
    (tmp_path / "metadata.csv").write_text("path,file_name\nother.jpg,a.jpg\n")
    assert [entry.source for entry in entries(tmp_path)] == ["a.jpg"]
    (tmp_path / "metadata.csv").write_text("camera,lens\nx,y\n")
    assert [entry.source for entry in entries(tmp_path)] == [f"{tmp_path}/a.jpg"]


def test_tables_of_odd_shapes(tmp_path: Path) -> None:
    (tmp_path / "ragged.csv").write_text("a.jpg\nb.jpg,x\n")
    with pytest.raises(OptionError, match="which column has the pictures"):
        entries(tmp_path / "ragged.csv")
    (tmp_path / "empty.csv").write_text("")
    assert entries(tmp_path / "empty.csv") == []
    (tmp_path / "a.jsonl").write_text('{"path": "a.jpg"}\n{"path": "b.jpg", "id": 3}\n')
    assert [entry.keep for entry in entries(tmp_path / "a.jsonl", keep=("id",))] == [{"id": None}, {"id": 3}]
    pq.write_table(pa.table({"img.data": [{"bytes": PICTURE, "path": "x.jpg"}]}), tmp_path / "dots.parquet")
    assert [entry.source for entry in entries(tmp_path / "dots.parquet", column="img.data")] == ["x.jpg"]
    pq.write_table(pa.table([["a"], ["b"]], ["path", "path"]), tmp_path / "twice.parquet")
    with pytest.raises(OptionError, match="column"):
        entries(tmp_path / "twice.parquet", column="path")
    (tmp_path / "half.csv").write_bytes(b"path\ncaf\xe9.jpg\n")
    with pytest.raises(OptionError, match="cannot be read as a table"):
        entries(tmp_path / "half.csv")
    (tmp_path / "b.jsonl").write_text('{"path": "\\ud83d.jpg"}\n')
    assert entries(tmp_path / "b.jsonl")[0].problem == "\\ud83d.jpg: no file can have this name"
    with pytest.raises(OptionError, match="No such file"):
        entries(tmp_path / "missing.txt")
    with pytest.raises(OptionError, match=r"missing\.tar: No such file"):
        entries(tmp_path / "missing.tar")


def test_a_row_without_bytes_is_the_file_that_it_names(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(PICTURE)
    pq.write_table(
        pa.table({"image": [{"bytes": None, "path": "a.jpg"}, {"bytes": None, "path": None}]}),
        tmp_path / "t.parquet",
    )
    run_job(tmp_path / "out", options(tmp_path / "t.parquet"), run_options())
    assert [row["status"] for row in rows_of(tmp_path / "out")] == ["ok", "failed"]


def test_a_damaged_line_of_the_journal_costs_its_shard_alone(tmp_path: Path) -> None:
    job = options(*SAMPLES, shard_size=1)
    run_job(tmp_path / "out", job, run_options())
    journal = tmp_path / "out/_job/journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text(lines[0] + "{damaged\n" + lines[2])
    assert status_of(tmp_path / "out")["shards"] == "2 of 3"
    assert run_job(tmp_path / "out", job, run_options()).scored == 1


def test_odd_kept_values_come_back(tmp_path: Path) -> None:
    texts = ["a\rb", 'q"\n', "\ud83d", "x" * 200_000, ""]
    lines = [
        json.dumps({"path": str(SAMPLES[0]), "t": text, "f": number})
        for text, number in zip(texts, [1.5, float("nan"), 2, 3, 4])
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    taking = InputOptions(keep=("t", "f"))
    for form in ("csv", "jsonl"):
        job = options(tmp_path / "t.jsonl", taking=taking, format=form, dedup=True)
        run_job(tmp_path / form, job, run_options())
        assert run_job(tmp_path / form, job, run_options(), retry=True).complete
    with (tmp_path / "csv/part-00000.csv").open(newline="", encoding="utf-8") as file:
        csv.field_size_limit(1 << 20)
        assert [row["t"] for row in csv.DictReader(file)] == ["a\rb", 'q"\n', "\\ud83d", "x" * 200_000, ""]
    found = [
        json.loads(line, parse_constant=pytest.fail)
        for line in (tmp_path / "jsonl/part-00000.jsonl").read_text().splitlines()
    ]
    assert [row["f"] for row in found] == [1.5, None, 2, 3, 4]
    with pytest.raises(OptionError, match="--keep bad"):
        run_job(
            tmp_path / "x",
            options(tmp_path / "t.jsonl", taking=InputOptions(keep=("bad",)), format="csv"),
            run_options(),
        )
    with pytest.raises(OptionError, match="named twice"):
        run_job(tmp_path / "x", options(tmp_path / "t.jsonl", taking=InputOptions(keep=("t", "t"))), run_options())


def test_names_that_are_not_utf8_can_be_planned(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    tar = make_tar(tmp_path / "a.tar", {name: PICTURE})
    (tmp_path / "names.txt").write_bytes(b"s3://b/caf\xe9.jpg\n")
    outcome = run_job(tmp_path / "out", options(tar, tmp_path / "names.txt"), run_options())
    assert (outcome.counts["ok"], outcome.counts["failed"]) == (1, 1)


def test_a_dry_run_of_a_job_needs_no_inputs(tmp_path: Path) -> None:
    run_job(tmp_path / "out", options(*SAMPLES), run_options())
    assert dry_run(tmp_path / "out", options(), run_options(), io.BytesIO(), lambda _: None)["inputs"] == 3


def test_patterns_of_tars_and_tables(tmp_path: Path) -> None:
    for number in range(2):
        make_tar(tmp_path / f"t{number}.tar", {f"{number}.jpg": PICTURE})
    assert [entry.key for entry in entries(tmp_path / "t*.tar")] == ["0", "1"]


def test_an_engine_that_dies_between_two_shards_is_made_anew() -> None:
    member = ProcessMember(EngineSetup(options(SAMPLES[0]), run_options(), "cpu", 1, 1), None)
    try:
        shard = [Entry(str(SAMPLES[0]), os.fsencode(SAMPLES[0]), shard=0, number=0)]
        first = member.score(shard)[0].answers
        [pid] = member._pool._pool_manager.worker_manager.workers  # type: ignore[union-attr]
        os.kill(pid, signal.SIGKILL)
        time.sleep(1)
        try:
            found = member.score(shard)
        except MemberDiedError:  # the crew asks again
            found = member.score(shard)
        assert found[0].answers == first
    finally:
        member.close()


def test_a_job_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    job = options(*SAMPLES, shard_size=1)
    run_job(tmp_path / "out", job, run_options(devices=("cpu", "cpu"), threads=1))
    assert list((tmp_path / "temporary").iterdir()) == []
