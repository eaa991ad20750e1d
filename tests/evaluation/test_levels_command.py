"""`qalign-fast levels` as a user meets it: files, facts, remarks, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qalign_fast.evaluation.training_data.conversations import read_entries
from support.command_line import python, run


@pytest.fixture
def mos(tmp_path: Path) -> Path:
    (file := tmp_path / "mos.csv").write_text("image,mos\na.jpg,1\nb.jpg,2.6\nc.jpg,3.4\nd.jpg,3.5\ne.jpg,5\n")
    return file


@pytest.fixture
def dmos(tmp_path: Path) -> Path:
    (file := tmp_path / "dmos.csv").write_text("image,dmos\nx.bmp,0\ny.bmp,50\nz.bmp,100\n")
    return file


def words(path: Path) -> list[str]:
    return [entry["conversations"][1]["value"].split()[-1].rstrip(".") for entry in read_entries(path)]


def test_the_command_is_light_until_it_runs() -> None:
    heavy = ("pyarrow", "torch", "onnxruntime", "scipy", "PIL")
    code = f"import sys, typer; import qalign_fast.cli.levels; print(*set({heavy!r}) & set(sys.modules))"
    assert python(code).split() == []


def test_a_list_is_written_and_its_cost_is_said(mos: Path, tmp_path: Path) -> None:
    done = run("levels", mos, "-o", tmp_path / "list.json", "--prefix", "mine", "--json")
    assert done.returncode == 0
    assert words(tmp_path / "list.json") == ["bad", "poor", "fair", "good", "excellent"]
    assert read_entries(tmp_path / "list.json")[0]["image"] == "mine/a.jpg"
    facts = json.loads(done.stdout)
    assert (facts["entries"], facts["lists"][0]["srcc"]) == (5, 1.0)
    assert facts["lists"][0]["plcc"] == pytest.approx(0.9642068427888028)
    assert facts["lists"][0]["scale"] == {"low": 1.0, "high": 5.0, "lower_better": False}
    assert done.stderr == f"{mos}: the scale goes from 1 to 5, by its own labels; --low and --high set it\n"


def test_facts_are_lines_where_nobody_asks_for_json(mos: Path, tmp_path: Path) -> None:
    done = run("levels", mos, "-o", tmp_path / "list.json", "--low", 0, "--high", 100, "--weight", 2)
    facts = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if line)
    assert facts["scale"] == "0 to 100, higher is better"
    assert facts["plcc"] == facts["srcc"] == "none: all levels are the same"
    assert done.stdout.count("5, 2 times") == 1
    assert facts["entries"] == "10"
    assert done.stderr == f"{mos}: no label is excellent or good or fair or poor\n"


def test_a_column_of_dmos_needs_a_direction_and_words_follow_quality(dmos: Path, tmp_path: Path) -> None:
    out = tmp_path / "list.json"
    done = run("levels", dmos, "-o", out, "--label", "dmos")
    assert done.returncode == 2
    assert "give --lower-better or --higher-better" in " ".join(done.stderr.replace("│", "").split())
    assert not out.exists()
    assert run("levels", dmos, "-o", out, "--label", "dmos", "--lower-better").returncode == 0
    assert words(out) == ["excellent", "fair", "bad"]
    assert [entry["gt_score"] for entry in read_entries(out)] == [0, 50, 100]
    assert run("levels", dmos, "-o", out, "--label", "dmos", "--higher-better", "--overwrite").returncode == 0
    assert words(out) == ["bad", "fair", "excellent"]


def test_each_file_has_its_own_scale_and_weight(mos: Path, tmp_path: Path) -> None:
    (other := tmp_path / "other.csv").write_text("name,mos\nx.jpg,20\ny.jpg,100\n")
    ready, out = tmp_path / "ready.json", tmp_path / "mix.json"
    assert run("levels", other, "-o", ready).returncode == 0
    done = run("levels", mos, other, ready, "-o", out, "--weight", 3, "--weight", 1, "--weight", 2, "--json")
    assert words(out) == ["bad", "poor", "fair", "good", "excellent"] * 3 + ["bad", "excellent"] * 3
    facts = json.loads(done.stdout)
    assert [(each["entries"], each["weight"]) for each in facts["lists"]] == [(5, 3), (2, 1), (2, 2)]
    assert facts["entries"] == 21
    assert facts["lists"][2]["levels"] == {"excellent": 1, "good": 0, "fair": 0, "poor": 0, "bad": 1}


def test_labels_beyond_the_scale_are_clipped_where_that_is_asked(mos: Path, tmp_path: Path) -> None:
    """So are the labels of upstream's lists of clips, whose few extremes would else widen the scale."""
    done = run("levels", mos, "-o", tmp_path / "list.json", "--low", 2.5, "--clip", "--json")
    assert words(tmp_path / "list.json") == ["bad", "bad", "poor", "poor", "excellent"]
    assert json.loads(done.stdout)["lists"][0]["scale"] == {"low": 2.5, "high": 5.0, "lower_better": False}
    assert [entry["gt_score"] for entry in read_entries(tmp_path / "list.json")] == [1, 2.6, 3.4, 3.5, 5]


def test_clips_that_training_would_not_read_are_told(mos: Path, tmp_path: Path) -> None:
    (clips := tmp_path / "clips.csv").write_text("name,mos\nx.mp4,20\ny.avi,100\n")
    done = run("levels", clips, "-o", tmp_path / "v.json", "--medium", "video", "--low", 0, "--high", 100)
    assert "1 names do not end in mp4" in done.stderr
    done = run("levels", clips, "-o", tmp_path / "i.json", "--low", 0, "--high", 100)
    assert "1 names end in mp4" in done.stderr


def test_words_of_a_list_that_are_no_levels_are_told(mos: Path, tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    run("levels", mos, "-o", ready)
    ready.write_text(ready.read_text().replace("is poor.", "is mediocre."))
    done = run("levels", ready, "-o", tmp_path / "again.json")
    assert (done.returncode, done.stderr) == (0, f"{ready}: 1 answers are no level: mediocre\n")
    assert json.loads((tmp_path / "again.json").read_text()) == json.loads(ready.read_text())


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["mos.csv", "--weight", 1, "--weight", 2], 2, "2 for 1 files; expected one for each file"),
        (["mos.csv", "--weight", 0], 2, "should be greater than or equal to 1"),
        (["mos.csv", "--low", "nan"], 2, "nan is no label"),
        (["mos.csv", "--low", 5, "--high", 5], 2, "5 is not below --high 5"),
        (["mos.csv", "--low", 2], 1, "line 2: the label 1 is not on the scale 2 to 5"),
        (["mos.csv", "--clip"], 2, "labels go beyond --low or --high; give one of them"),
        (["list.json", "--low", 0], 2, "it is of labels in CSV, and there are none"),
        (["list.json", "--higher-better"], 2, "it is of labels in CSV, and there are none"),
        (["mos.csv", "--label", "score"], 1, "no column 'score'; it has: image, mos"),
        (["none.csv"], 1, "none.csv: No such file"),
        (["empty.csv"], 1, "it is empty"),
        (["list.json", "--lower-better"], 2, "it is of labels in CSV, and there are none"),
        (["empty.json"], 1, "no JSON"),
    ],
)
def test_what_cannot_be_converted_is_said_and_nothing_is_written(
    mos: Path, tmp_path: Path, arguments: list[str | int], code: int, message: str
) -> None:
    (tmp_path / "empty.csv").touch()
    (tmp_path / "empty.json").touch()
    out = tmp_path / "out.json"
    paths = [tmp_path / str(a) if str(a).endswith((".csv", ".json")) else a for a in arguments]
    done = run("levels", *paths, "-o", out)
    assert done.returncode == code
    assert message in " ".join(done.stderr.replace("│", "").split())
    assert "Traceback" not in done.stderr
    assert not out.exists()


def test_an_output_that_is_there_is_kept(mos: Path, tmp_path: Path) -> None:
    (out := tmp_path / "list.json").write_text("[]")
    done = run("levels", mos, "-o", out)
    assert done.returncode == 1
    assert "is there already; --overwrite replaces it" in done.stderr
    assert out.read_text() == "[]"
    assert run("levels", mos, "-o", mos, "--overwrite").returncode == 1
    assert mos.read_text().startswith("image,mos")
