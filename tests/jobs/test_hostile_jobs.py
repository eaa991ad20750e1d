"""What a second reader of the job runner broke: each was wrong once."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from qalign_fast.errors import OptionError, QAlignError
from qalign_fast.jobs.inputs.taking import InputOptions
from qalign_fast.jobs.job import run_job
from qalign_fast.jobs.options import JobOptions
from qalign_fast.jobs.status import status_of
from qalign_fast.pixels.limits import PictureLimits
from support.command_line import CLI, run
from support.job_inputs import SAMPLES, entries, members, scored
from support.jobs import files, make_tar, options, rows_of, run_options, small_pictures

PICTURE = SAMPLES[0].read_bytes()


@pytest.mark.skipif(shutil.which("tar") is None, reason="tar is not installed")
@pytest.mark.parametrize("kind", ["gnu", "pax"])
def test_a_sparse_member_is_refused_and_its_neighbour_scored(
    kind: str, tmp_path: Path, expected: dict[str, float]
) -> None:
    holes = Image.new("RGB", (512, 512))
    holes.paste(Image.open(SAMPLES[0]).resize((512, 100)), (0, 0))
    holes.save(data := io.BytesIO(), "BMP")
    with (tmp_path / "a.bmp").open("wb") as file:
        for at in range(0, len(view := data.getbuffer()), 4096):
            if any(part := view[at : at + 4096]):
                file.seek(at)
                file.write(part)
        file.truncate(len(view))
    (tmp_path / "b.jpg").write_bytes(PICTURE)
    command = ["tar", "--sparse", f"--format={kind}", "-cf", "s.tar", "a.bmp", "b.jpg"]
    subprocess.run(command, cwd=tmp_path, check=True)
    with tarfile.open(tmp_path / "s.tar") as tar:
        assert tar.next().issparse()  # type: ignore[union-attr]
    sparse, whole = scored(tmp_path / "out", tmp_path / "s.tar")
    assert (sparse["status"], sparse["score"]) == ("failed", None)
    assert "a sparse member" in sparse["error"]
    assert whole["score"] == expected[SAMPLES[0].name]


@pytest.mark.parametrize("text", ['path,caption\na.jpg,"hello\nb.jpg,two\n', 'path,caption\na.jpg,"x" y\nb.jpg,two\n'])
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_a_quote_that_is_not_closed_takes_no_rows_along(text: str, suffix: str, tmp_path: Path) -> None:
    table = tmp_path / f"a.{suffix}"
    table.write_text(text.replace(",", "\t") if suffix == "tsv" else text)
    with pytest.raises(OptionError, match=rf"a\.{suffix}: .*below line 1; is a quote not closed"):
        entries(table, keep=("caption",))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_engines_end_with_a_job_that_is_killed(tmp_path: Path) -> None:
    small_pictures(tmp_path / "in", 300)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    command = [*CLI, "run", tmp_path / "in", "-r", "--shard-size", "10", "--device", "cpu", "--device", "cpu"]
    job = subprocess.Popen(
        [*command, "--out", tmp_path / "out"], env=os.environ | {"TMPDIR": str(temporary)}, stderr=subprocess.PIPE
    )
    while not list((tmp_path / "out").glob("*.parquet")):
        assert job.poll() is None
        time.sleep(0.05)
    started = _below(job.pid)
    assert len(started) >= 4  # two engines, and a process that decodes for each
    job.kill()
    job.communicate()
    deadline = time.monotonic() + 30
    while any(map(_is_alive, started)) or list(temporary.glob("qalign-engine-*")):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_equal_pictures_of_a_csv_job_that_goes_on_keep_their_own_warnings(tmp_path: Path) -> None:
    pictures = tmp_path / "in"
    pictures.mkdir()
    for n in range(4):
        (pictures / f"{n}.jpg").write_bytes(PICTURE[: len(PICTURE) // 2])
    job = options(
        pictures, shard_size=1, format="csv", dedup=True, limits=PictureLimits(allow_truncated=True)
    )  # fmt: skip
    out = tmp_path / "out"
    run_job(out, job, run_options())
    for n in (0, 2, 3):
        (out / f"part-{n:05d}.csv").unlink()
    os.utime(pictures / "0.jpg")
    assert run_job(out, job, run_options()).counts["changed"] == 1
    for n in (1, 2, 3):
        (out / f"part-{n:05d}.csv").unlink()
    assert run_job(out, job, run_options()).counts["changed"] == 1


def test_force_that_is_refused_leaves_the_old_job(tmp_path: Path) -> None:
    run_job(tmp_path, options(SAMPLES[0]), run_options())
    (tmp_path / "part-00000.csv").write_text("mine")
    before = files(tmp_path)
    with pytest.raises(QAlignError, match="is there already"):
        run_job(tmp_path, options(SAMPLES[0], format="csv"), run_options(), force=True)
    assert files(tmp_path) == before
    assert run_job(tmp_path, options(SAMPLES[0]), run_options()).complete


def test_paths_in_place_of_bytes_start_at_the_root_or_are_urls_that_are_allowed(
    tmp_path: Path, expected: dict[str, float]
) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    name = SAMPLES[0].name
    paths = [{"bytes": None, "path": path} for path in (name, f"file://{SAMPLES[0]}")]
    pq.write_table(pa.table({"image": pa.array(paths, kind)}), tmp_path / "t.parquet")
    (tmp_path / name).write_bytes(b"another")
    rows = scored(tmp_path / "out", tmp_path / "t.parquet", root=str(SAMPLES[0].parent))
    assert (rows[0]["score"], rows[1]["status"]) == (expected[name], "failed")
    assert "--allow file" in rows[1]["error"]
    rows = scored(tmp_path / "allowed", tmp_path / "t.parquet", root=str(SAMPLES[0].parent), protocols=("file",))
    assert [row["score"] for row in rows] == [expected[name]] * 2


def test_a_column_twice_or_nested_too_deeply_is_one_line(tmp_path: Path) -> None:
    column = pa.array([SAMPLES[0].name])
    pq.write_table(pa.table([column, column], ["path", "path"]), tmp_path / "twice.parquet")
    with pytest.raises(OptionError, match="more than one column 'path'"):
        entries(tmp_path / "twice.parquet")
    deep = "[" * 100_000 + "]" * 100_000
    (tmp_path / "deep.jsonl").write_text(f'{{"path": "a.jpg", "x": {deep}}}\n')
    with pytest.raises(OptionError, match="line 1 is nested too deeply"):
        entries(tmp_path / "deep.jsonl")
    tar = make_tar(tmp_path / "deep.tar", {"a.jpg": PICTURE, "a.json": deep.encode()})
    [entry] = entries(tar, keep=("caption",))
    assert entry.keep == {"caption": None}


def test_the_scored_column_can_be_kept(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"path": ["a.jpg"]}).save_to_disk(tmp_path / "ds")
    [entry] = entries(tmp_path / "ds", column="path", keep=("path",))
    assert entry.keep == {"path": "a.jpg"}


def test_tars_whose_names_are_reserved_are_numbered(tmp_path: Path) -> None:
    tars = [make_tar(tmp_path / name, {"x.jpg": PICTURE}) for name in ("tar-00001.tar", "_y/_x.tar")]
    assert run_job(tmp_path / "out", options(*tars), run_options()).complete
    assert len(rows_of(tmp_path / "out")) == 2


@pytest.mark.parametrize("text", ["[]", '{"version": 1}', "[" * 100_000])
def test_a_description_that_is_none_is_told_and_can_be_replaced(text: str, tmp_path: Path) -> None:
    run_job(tmp_path, options(SAMPLES[0]), run_options())
    (tmp_path / "_job/job.json").write_text(text)
    with pytest.raises(QAlignError, match=r"job\.json: cannot be read .*; --force starts anew"):
        status_of(tmp_path)
    with pytest.raises(QAlignError, match="--force starts anew"):
        run_job(tmp_path, options(SAMPLES[0]), run_options())
    assert run_job(tmp_path, options(SAMPLES[0]), run_options(), force=True).complete


def test_a_job_goes_on_without_its_options_being_told_again(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text(f"path,caption\n{SAMPLES[0]},one\n{tmp_path}/later.jpg,two\n")
    out = tmp_path / "out"
    assert (
        run("run", table, "--keep", "caption", "--format", "csv", "--max-pixels", 10**7, "--out", out).returncode == 3
    )
    (tmp_path / "later.jpg").write_bytes(PICTURE)
    assert run("run", "--out", out, "--retry").returncode == 0
    assert "since the job was planned" in run("run", "--out", out, "--dry-run").stdout
    done = run("run", "--out", out, "--format", "jsonl")
    assert done.returncode == 1
    assert "format: 'csv' before, 'jsonl' now" in done.stderr
    job = JobOptions(("a",), taking=InputOptions("x", ("y",)), limits=PictureLimits(background=(1, 2, 3)), dedup=True)
    assert JobOptions.from_json(job.to_json()).to_json() == job.to_json()


@pytest.mark.parametrize("moment", [0.0, 0.1, 0.2, 0.4, 0.8])
def test_ctrl_c_leaves_no_traceback_whenever_it_comes(moment: float, tmp_path: Path) -> None:
    small_pictures(tmp_path / "in", 300)
    command = [*CLI, "run", str(tmp_path / "in"), "-r", "--shard-size", "10", "--out", str(tmp_path / "out")]
    job = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert job.stderr is not None
    assert job.stderr.readline() == "300 inputs\n"  # processes that decode start now
    time.sleep(moment)
    os.killpg(job.pid, signal.SIGINT)  # as a terminal does
    said = job.communicate(timeout=60)[1]
    assert "Traceback" not in said
    assert job.returncode == 130


def test_patterns_and_tables_in_stores(tmp_path: Path, expected: dict[str, float]) -> None:
    for n in range(2):
        make_tar(tmp_path / f"in/{n}.tar", members(f"{n}/"))
    assert len(entries(f"file://{tmp_path}/in/*.tar")) == 6
    with pytest.raises(OptionError, match="nothing matches"):
        entries(f"file://{tmp_path}/none/*.tar")
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("t.csv", f"path\n{SAMPLES[0]}\n")
    [entry] = entries(f"zip://t.csv::file://{tmp_path}/z.zip")
    assert entry.kind == "file" and entry.source == str(SAMPLES[0])


def test_pictures_beside_somebody_elses_json_are_pictures(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(PICTURE)
    (tmp_path / "state.json").write_text(json.dumps({"epoch": 3}))
    assert [Path(entry.source).name for entry in entries(tmp_path)] == ["a.jpg"]


def test_an_empty_name_is_told() -> None:
    with pytest.raises(OptionError, match="an input's name is empty"):
        entries("")


def _below(pid: int) -> list[int]:
    """The processes that a process started, and that those started."""
    found = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        for child in (thread / "children").read_text().split():
            found += [int(child), *_below(int(child))]
    return found


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
