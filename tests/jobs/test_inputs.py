"""Every kind of input: which entries it gives, what their rows keep, and that each scores as `Scorer` scores it."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qalign_fast import Scorer
from qalign_fast.errors import OptionError, QAlignError
from qalign_fast.jobs.entries import Entry
from qalign_fast.jobs.inputs.found import find_entries
from qalign_fast.jobs.inputs.taking import InputOptions
from qalign_fast.jobs.job import run_job
from qalign_fast.jobs.plan import Plan, write_plan
from support.clips import constant, write_clip
from support.goldens import ROOT
from support.job_inputs import SAMPLES, entries, members, scored
from support.jobs import make_tar, options, run_options


def test_files_folders_and_patterns(tmp_path: Path, expected: dict[str, float]) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    for path in SAMPLES:
        (tmp_path / "a" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "a/b/deep.jpg").write_bytes(SAMPLES[0].read_bytes())
    (tmp_path / "a/notes.md").write_text("no picture")
    names = [path.name for path in SAMPLES]
    assert [Path(e.source).name for e in entries(tmp_path / "a")] == names
    assert [Path(e.source).name for e in entries(tmp_path / "a", recursive=True)] == ["deep.jpg", *names]
    assert [Path(e.source).name for e in entries(f"{tmp_path}/a/coffee*.jpg")] == names
    rows = scored(tmp_path / "out", tmp_path / "a", SAMPLES[0])
    assert [row["score"] for row in rows] == [expected[name] for name in (*names, names[0])]
    assert entries(SAMPLES[0])[0].size == SAMPLES[0].stat().st_size
    assert entries(SAMPLES[0])[0].mtime_ns == SAMPLES[0].stat().st_mtime_ns


def test_lists_of_names(tmp_path: Path, expected: dict[str, float]) -> None:
    (tmp_path / "names.txt").write_text("".join(f"{path}\n" for path in SAMPLES) + "missing.jpg")
    rows = scored(tmp_path / "out", tmp_path / "names.txt")
    assert [row["score"] for row in rows] == [*expected.values(), None]
    assert rows[-1]["status"] == "unavailable"
    found = entries("-", stdin=b"coffee.jpg\n", root=str(ROOT / "samples"))
    assert found[0].place == os.fsencode(ROOT / "samples/coffee.jpg")
    assert found[0].source == "coffee.jpg"


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_tables_of_paths(suffix: str, tmp_path: Path, expected: dict[str, float]) -> None:
    (tmp_path / "in").mkdir()
    for path in SAMPLES:
        (tmp_path / "in" / path.name).write_bytes(path.read_bytes())
    table = tmp_path / f"in/table.{suffix}"
    rows = [{"id": n, "file": path.name, "caption": f'größe, "{n}"'} for n, path in enumerate(SAMPLES)]
    rows.append({"id": 9, "file": None, "caption": None})
    write_table(table, rows)
    found = scored(tmp_path / "out", table, keep=("id", "caption"))
    assert [row["score"] for row in found] == [*expected.values(), None]
    assert [row["source"] for row in found] == [*expected, f"{table}#3"]
    assert found[3]["error"] == f"{table}: row 3 has no name in column 'file'"
    kinds = int if suffix in ("jsonl", "parquet") else str
    assert [row["id"] for row in found] == [kinds(n) for n in (0, 1, 2, 9)]
    assert found[1]["caption"] == 'größe, "1"'


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    else:
        with path.open("w", encoding="utf-8", newline="") as out:
            writer = csv.DictWriter(out, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)


def test_columns_of_bytes(tmp_path: Path, expected: dict[str, float]) -> None:
    data = [path.read_bytes() for path in SAMPLES]
    pq.write_table(
        pa.table({"bytes": [*data, None, b"no picture"], "n": range(5)}), tmp_path / "a.parquet", row_group_size=2
    )
    rows = scored(tmp_path / "out", tmp_path / "a.parquet", keep=("n",))
    assert [row["score"] for row in rows] == [*expected.values(), None, None]
    assert [row["status"] for row in rows] == ["ok"] * 3 + ["failed"] * 2
    assert rows[0]["source"] == f"{tmp_path}/a.parquet#0"
    assert rows[4]["n"] == 4


def test_a_job_of_bytes_goes_on_in_the_middle_of_a_table(tmp_path: Path) -> None:
    data = [SAMPLES[n % 3].read_bytes() + bytes([n]) for n in range(20)]
    pq.write_table(pa.table({"image": data}), tmp_path / "a.parquet", row_group_size=7)
    job = options(tmp_path / "a.parquet", shard_size=4)
    run_job(tmp_path / "unbroken", job, run_options())
    run_job(tmp_path / "out", job, run_options())
    for number in (1, 4):
        (tmp_path / f"out/part-0000{number}.parquet").unlink()
    assert run_job(tmp_path / "out", job, run_options()).scored == 8
    assert pq.read_table(tmp_path / "out").equals(pq.read_table(tmp_path / "unbroken"))


def test_saved_data_sets_and_image_folders(tmp_path: Path, expected: dict[str, float]) -> None:
    datasets = pytest.importorskip("datasets")
    images = [{"bytes": path.read_bytes(), "path": path.name} for path in SAMPLES]
    made = datasets.Dataset.from_dict({"image": images, "label": [3, 4, 5]}).cast_column("image", datasets.Image())
    made.save_to_disk(tmp_path / "saved", num_shards=2)
    datasets.DatasetDict({"train": made, "test": made.select([0])}).save_to_disk(tmp_path / "splits")
    rows = scored(tmp_path / "out", tmp_path / "saved", keep=("label",))
    assert [(row["source"], row["score"], row["label"]) for row in rows] == [
        (name, score, label) for (name, score), label in zip(expected.items(), (3, 4, 5), strict=True)
    ]
    with pytest.raises(OptionError, match="flatten_indices"):
        made.select([2, 0]).save_to_disk(tmp_path / "chosen")
        state = json.loads((tmp_path / "chosen/state.json").read_text())
        state["_indices_data_files"] = [{"filename": "indices.arrow"}]
        (tmp_path / "chosen/state.json").write_text(json.dumps(state))
        entries(tmp_path / "chosen")
    (tmp_path / "folder/data").mkdir(parents=True)
    made.to_parquet(tmp_path / "folder/data/train-00000-of-00001.parquet")
    assert [e.source for e in entries(tmp_path / "folder")] == list(expected)


def test_a_folder_with_a_table_about_its_pictures(tmp_path: Path, expected: dict[str, float]) -> None:
    for path in SAMPLES:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "metadata.csv").write_text("file_name,text\n./coffee.jpg,a cup\n")
    [row] = scored(tmp_path / "out", tmp_path, keep=("text",))
    assert (row["source"], row["score"], row["text"]) == ("./coffee.jpg", expected["coffee.jpg"], "a cup")
    skipped: list[str] = []
    (group,) = find_entries([str(tmp_path)], InputOptions(), io.BytesIO(), skipped.append)
    assert len(list(group.entries)) == 1
    assert skipped == ["not named in metadata.csv"] * (len(SAMPLES) - 1)


def test_a_tar_of_samples_gets_a_file_of_rows_of_its_name(tmp_path: Path, expected: dict[str, float]) -> None:
    tars = [make_tar(tmp_path / f"in/{n:03d}.tar", members(f"{n}/")) for n in range(2)]
    job = options(tmp_path / "in", taking=InputOptions(keep=("txt", "width")), shard_size=2)
    assert run_job(tmp_path / "out", job, run_options()).complete
    assert sorted(path.name for path in (tmp_path / "out").glob("*.parquet")) == ["000.parquet", "001.parquet"]
    rows = pq.read_table(tmp_path / "out/001.parquet").to_pylist()
    assert [row["__key__"] for row in rows] == ["1/0000", "1/0001", "1/0002"]
    assert [row["score"] for row in rows] == list(expected.values())
    assert [(row["txt"], row["width"]) for row in rows] == [(f"caption {n}", n) for n in range(3)]
    assert rows[0]["source"] == f"{tars[1]}/1/0000.jpg"


def test_tars_of_one_name_in_two_folders_keep_apart(tmp_path: Path) -> None:
    for folder in ("train", "val"):
        make_tar(tmp_path / folder / "000.tar", members())
    run_job(tmp_path / "out", options(tmp_path / "train", tmp_path / "val"), run_options())
    assert sorted(path.name for path in (tmp_path / "out").glob("*.parquet")) == ["000.parquet", "val-000.parquet"]


def test_the_member_to_score_can_be_chosen(tmp_path: Path) -> None:
    tar = make_tar(tmp_path / "a.tar", {"1.seg.png": b"x", "1.photo.jpg": SAMPLES[0].read_bytes(), "2.txt": b"none"})
    assert [e.source for e in entries(tar, column="photo.jpg")] == [f"{tar}/1.photo.jpg"]
    assert [e.key for e in entries(tar, column="photo.jpg")] == ["1"]


def test_tars_that_are_cut_off_or_compressed_are_refused(tmp_path: Path) -> None:
    tar = make_tar(tmp_path / "a.tar", members())
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    with pytest.raises(OptionError, match=r"a\.tar: not a whole tar"):
        entries(tar)
    with pytest.raises(OptionError, match=r"unpack it to a \.tar first"):
        entries(tmp_path / "a.tar.gz")


def test_clips_are_scored_as_clips(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", constant(60, 30))
    make_tar(tmp_path / "a.tar", {"1.mp4": (tmp_path / "clip.mp4").read_bytes()})
    score = Scorer.load().score_video(str(tmp_path / "clip.mp4"))
    for name in ("clip.mp4", "a.tar"):
        [row] = scored(tmp_path / f"out-{name}", tmp_path / name)
        assert (row["score"], row["frames"]) == (round(score.value, 4), score.frames)


def test_wrong_columns_are_told_with_what_there_is(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("name,mos\na.jpg,3\n")
    with pytest.raises(OptionError, match=r"which column has the pictures.*it has: name, mos"):
        entries(tmp_path / "a.csv")
    with pytest.raises(OptionError, match="no column 'x'; it has: name, mos"):
        entries(tmp_path / "a.csv", column="x")
    with pytest.raises(OptionError, match="no column 'x'"):
        entries(tmp_path / "a.csv", column="name", keep=("x",))
    with pytest.raises(OptionError, match="--keep score"):
        run_job(tmp_path / "out", options(tmp_path / "a.csv", taking=InputOptions("name", ("score",))), run_options())
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(OptionError, match="cannot be read as a table"):
        entries(tmp_path / "b.parquet")
    (tmp_path / "c.jsonl").write_text("[1]\n")
    with pytest.raises(OptionError, match="line 1 is no JSON object"):
        entries(tmp_path / "c.jsonl")


def test_columns_of_files_are_refused() -> None:
    with pytest.raises(OptionError, match="files and folders of pictures have no columns"):
        entries(SAMPLES[0], keep=("id",))


def test_nothing_to_score_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(QAlignError, match="nothing to score"):
        run_job(tmp_path / "out", options(tmp_path / "in"), run_options())
    with pytest.raises(OptionError, match="no job is there to go on with"):
        run_job(tmp_path / "out", options(), run_options())


def test_a_plan_gives_back_what_it_was_made_of(tmp_path: Path) -> None:
    odd = os.fsdecode(b"/x/\xff.jpg")
    made = [
        Entry("a.jpg", b"a.jpg", size=3, mtime_ns=4, keep={"n": 1, "f": 1, "s": "é", "b": True}),
        Entry(odd, os.fsencode(odd), problem="gone"),
        Entry(
            "t.tar/k.mp4", b"/t.tar", "slice", 512, 99, -1, "video", "k", {"n": None, "f": 1.5, "s": None, "b": None}
        ),
        Entry("p#7", b"s3://b/p.parquet", "row", 7, keep={"n": 2, "f": 2, "s": [1], "b": False}),
    ]
    from qalign_fast.jobs.inputs.found import Group

    summary = write_plan(tmp_path / "plan", [Group(iter(made))], 3, ("n", "f", "s", "b"))
    assert (summary.inputs, summary.shards, summary.clips, summary.bytes) == (4, 2, 1, 102)
    assert summary.kept == {"n": "int", "f": "float", "s": "string", "b": "bool"}
    plan = Plan(tmp_path / "plan", "/here")
    found = [entry for shard in range(plan.shards) for entry in plan.entries(shard)]
    assert [e.place for e in found] == [b"/here/a.jpg", made[1].place, b"/t.tar", b"s3://b/p.parquet"]
    for before, after in zip(made, found, strict=True):
        for name in ("source", "kind", "offset", "size", "mtime_ns", "medium", "key", "keep", "problem"):
            assert getattr(after, name) == getattr(before, name)
    assert [(e.shard, e.number) for e in found] == [(0, 0), (0, 1), (0, 2), (1, 0)]


def test_inputs_are_opened_one_after_another(tmp_path: Path) -> None:
    """A table is not read before what stands in front of it was planned."""
    groups = find_entries([str(SAMPLES[0]), str(tmp_path / "missing.csv")], InputOptions(), io.BytesIO())
    assert [entry.source for entry in next(iter(groups)).entries] == [str(SAMPLES[0])]
    with pytest.raises(OptionError, match=r"missing\.csv"):
        list(next(groups).entries)
