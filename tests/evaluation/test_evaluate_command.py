"""`qalign-fast evaluate` as it is used: a data set scored, killed and resumed; rows of other runs; what it writes."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy import stats

from support.amount import FULL
from support.command_line import CLI, run
from support.goldens import GOLDEN
from support.labelled_set import write_set
from support.score_rows import scored_row, write_rows

pytestmark = pytest.mark.usefixtures("kernels")
SCENES = 96 if FULL else 13  # of 21 pictures each: 2,016, and 273, which is more than a shard
COUNT = 21 * SCENES
FIGURES = "srcc plcc krcc rmse_raw rmse_linear rmse_logistic4".split()


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_set(folder, SCENES, 96)
    return folder


@pytest.fixture(scope="module")
def unbroken(kernels: Path, data_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an evaluation that nothing disturbed."""
    out = tmp_path_factory.mktemp("unbroken") / "out"
    done = run("evaluate", data_set / "labels.json", "--root", data_set, "--out", out, "--draws", 200)
    assert done.returncode == 0, done.stderr
    assert "SRCC" in done.stdout
    return out


def read(out: Path) -> dict:
    return json.loads((out / "result.json").read_text())


def test_every_figure_is_written_and_right(data_set: Path, unbroken: Path) -> None:
    found = read(unbroken)
    rows = pq.read_table(unbroken / "rows.parquet").to_pandas()
    labels = json.loads((data_set / "labels.json").read_text())
    assert rows["source"].tolist() == [each["image"] for each in labels]
    assert rows["label"].tolist() == [each["gt_score"] for each in labels]
    assert found["srcc"] == pytest.approx(stats.spearmanr(rows["score"], rows["label"]).statistic, abs=1e-9)
    assert found["plcc"] == pytest.approx(stats.pearsonr(rows["score"], rows["label"]).statistic, abs=1e-9)
    assert found["krcc"] == pytest.approx(stats.kendalltau(rows["score"], rows["label"]).statistic, abs=1e-9)
    assert found["rmse_raw"] == pytest.approx(np.sqrt(np.mean((rows["score"] - rows["label"]) ** 2)), abs=1e-9)
    assert found["rmse_logistic4"] == pytest.approx(np.sqrt(np.mean(rows["residual"] ** 2)), abs=1e-9)
    assert (found["n_expected"], found["n_scored"], found["n_failed"]) == (COUNT, COUNT, 0)
    assert found["srcc_interval"][0] < found["srcc"] < found["srcc_interval"][1]
    assert (found["protocol"], found["reproduced"], found["lower_better"]) == ("qalign", False, False)
    assert len(found["list_sha256"]) == 64
    assert found["units"] == SCENES == rows["unit"].nunique()
    assert found["srcc"] > 0.2  # the mini model sees damage


def test_pictures_and_page_are_there(unbroken: Path) -> None:
    for name in ("scatter", "residuals", "levels"):
        with Image.open(unbroken / f"{name}.png") as picture:
            assert np.ptp(np.asarray(picture.convert("L"))) > 200  # something is drawn
    page = (unbroken / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "http" not in page.replace("http-equiv", "")


def test_pyiqas_benchmark_takes_the_table(unbroken: Path) -> None:
    """It reads such a file by pandas, with the metric's name as the index, and sorts by the first figure."""
    table = pd.read_csv(unbroken / "pyiqa.csv", index_col="Metric name")
    assert table.columns.tolist() == ["labels(PLCC/SRCC/KRCC)"]
    plcc, srcc, krcc = map(float, table.iloc[0, 0].split("/"))
    found = read(unbroken)
    assert (plcc, srcc, krcc) == tuple(round(abs(found[name]), 4) for name in ("plcc", "srcc", "krcc"))


def test_an_evaluation_that_is_killed_goes_on(data_set: Path, unbroken: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [*CLI, "evaluate", data_set / "labels.json", "--root", data_set, "--out", out, "--draws", "200"]
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not list(out.glob("scores/part-*.parquet")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "result.json").exists()
    again = run(*command[len(CLI) :])
    assert again.returncode == 0, again.stderr
    assert "done before" in again.stderr
    assert read(out) == read(unbroken)


def test_rows_that_are_there_are_not_scored_again(data_set: Path, unbroken: Path) -> None:
    done = run("evaluate", data_set / "labels.json", "--rows", unbroken / "scores", "--json", "--draws", 200)
    assert done.returncode == 0, done.stderr
    found, expected = json.loads(done.stdout), read(unbroken)
    assert all(found[name] == expected[name] for name in FIGURES)
    assert "inputs" not in done.stderr


def test_a_run_against_another(data_set: Path, unbroken: Path, tmp_path: Path) -> None:
    rows = pq.read_table(unbroken / "rows.parquet").to_pylist()
    moved = [
        scored_row(row["source"], min(5.0, max(1.0, row["score"] + 0.1 * (-1) ** i))) for i, row in enumerate(rows)
    ]
    other = write_rows(tmp_path / "other.parquet", moved)
    done = run(
        *("evaluate", data_set / "labels.json", "--rows", other, "--against", unbroken / "rows.parquet"),
        *("--draws", 200, "--out", tmp_path / "out"),
    )
    assert done.returncode == 0, done.stderr
    assert "rank flips" in done.stdout
    found = read(tmp_path / "out")["against"]
    assert found["pairs"] == COUNT
    assert found["largest"] == pytest.approx(0.1, abs=1e-9)
    assert 0 < found["rank_flips"] < 0.2
    assert found["srcc_change_interval"][0] <= found["srcc_change"] <= found["srcc_change_interval"][1]
    assert "Against the other run" in (tmp_path / "out/report.html").read_text()


def test_several_lists_are_never_pooled(data_set: Path, unbroken: Path, tmp_path: Path) -> None:
    labels = json.loads((data_set / "labels.json").read_text())
    first, second = tmp_path / "labels.json", tmp_path / "b" / "labels.json"
    second.parent.mkdir()
    first.write_text(json.dumps(labels[: COUNT // 2]))
    second.write_text(json.dumps([each | {"gt_score": 20 * each["gt_score"]} for each in labels[COUNT // 2 :]]))
    scores = unbroken / "scores"
    out = tmp_path / "out"
    done = run("evaluate", first, second, "--rows", scores, "--rows", scores, "--out", out, "--draws", 200, "--json")
    assert done.returncode == 0, done.stderr
    both = json.loads(done.stdout)
    assert [each["n_expected"] for each in both] == [COUNT // 2, COUNT - COUNT // 2]
    assert both == [read(out / "labels"), read(out / "labels-2")]
    assert (out / "results.md").read_text().count("\n") == 4
    assert "All lists" in (out / "report.html").read_text()


def test_an_ensemble_with_another_projects_scores(data_set: Path, unbroken: Path, tmp_path: Path) -> None:
    labels = json.loads((data_set / "labels.json").read_text())
    dice = np.random.default_rng(0)
    lines = [f"{each['gt_score'] + dice.standard_normal():.4f}" for each in labels]
    (tmp_path / "fastvqa.txt").write_text("\n".join(lines))
    rows = unbroken / "rows.parquet"
    for member in (tmp_path / "fastvqa.txt", f"quality={rows}"):
        done = run(
            *("evaluate", data_set / "labels.json", "--rows", rows, "--ensemble", member),
            *("--protocol", "fastvqa", "--json", "--draws", 200),
        )
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["protocol"] == "fastvqa"
        if member == tmp_path / "fastvqa.txt":
            assert found["srcc"] > read(unbroken)["srcc"]
        else:
            assert found["srcc"] == pytest.approx(read(unbroken)["srcc"], abs=1e-12)


def test_a_picture_that_is_missing_is_counted_and_told(data_set: Path, tmp_path: Path) -> None:
    labels = json.loads((data_set / "labels.json").read_text())[:6]
    labels[2]["image"] = "set/gone.jpg"
    labels.append(labels[0])  # twice in the list, once scored
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    done = run("evaluate", tmp_path / "labels.json", "--root", data_set, "--out", tmp_path / "out", "--draws", 100)
    assert done.returncode == 3
    found = read(tmp_path / "out")
    assert (found["n_expected"], found["n_scored"], found["n_failed"]) == (7, 6, 1)
    rows = pq.read_table(tmp_path / "out/rows.parquet").to_pylist()
    assert "no such file" in rows[2]["error"].lower()
    assert rows[0]["score"] == rows[6]["score"]
    assert len(pq.read_table(next((tmp_path / "out/scores").glob("*.parquet")))) == 6


def test_a_folder_with_the_scores_of_another_list_is_refused(data_set: Path, tmp_path: Path) -> None:
    """The longer list's new names were counted as failed: the job there had finished, and went on with none."""
    labels, out = json.loads((data_set / "labels.json").read_text()), tmp_path / "out"
    (tmp_path / "labels.json").write_text(json.dumps(labels[:4]))
    command = "evaluate", tmp_path / "labels.json", "--root", data_set, "--out", out, "--draws", 100
    assert run(*command).returncode == 0
    (tmp_path / "labels.json").write_text(json.dumps(labels[:6]))
    done = run(*command)
    assert done.returncode == 1
    assert "the scores of another list (4 names there, 6 in this list); --out names another folder" in done.stderr
    (tmp_path / "labels.json").write_text(json.dumps([each | {"gt_score": 5 - i} for i, each in enumerate(labels[:4])]))
    assert run(*command).returncode == 0  # other labels of the same names need no other scores
    done = run(*command[:3], tmp_path, *command[4:])  # another root
    assert done.returncode == 1
    assert "--out names another folder" in done.stderr
    assert "--force starts anew" in done.stderr
    (tmp_path / "labels.json").write_text(json.dumps(labels[:6]))
    assert run(*command, "--force").returncode == 0
    assert read(out)["n_scored"] == 6


def test_an_adapters_base_may_be_named(data_set: Path, tmp_path: Path) -> None:
    """Published figures are of an adapter that names a path of its authors' machine."""
    labels = json.loads((data_set / "labels.json").read_text())[:3]
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    adapter = shutil.copytree(GOLDEN / "lora-112", tmp_path / "lora")
    told = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(told | {"base_model_name_or_path": "/far/away"}))
    command = ("evaluate", tmp_path / "labels.json", "--root", data_set, "--json", "--draws", 100, "--model", adapter)
    lost = run(*command)
    assert lost.returncode == 1
    assert "--base" in lost.stderr
    done = run(*command, "--base", GOLDEN / "narrow-112")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["task"], found["n_scored"]) == ("quality-paper", 3)


def test_without_a_folder_nothing_stays(data_set: Path, tmp_path: Path) -> None:
    labels = json.loads((data_set / "labels.json").read_text())[:5]
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    before = sorted(tmp_path.iterdir())
    done = run("evaluate", tmp_path / "labels.json", "--root", data_set, "--json", "--draws", 100, "--task", "quality")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["n_scored"] == 5
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ([], 2, "--root"),
        (["--root", "nowhere"], 1, "nowhere: no such folder"),
        (["--root", ".", "--root", ".", "--root", "."], 2, "3 given for 1 lists"),
        (["--rows", "a", "--rows", "b"], 2, "2 given for 1 lists"),
        (["--rows", "a", "--model", "b"], 2, "nothing is scored with --rows"),
        (["--rows", "a", "--published", "b"], 1, "no figures are known of 'b'"),
        (["--rows", "nowhere.jsonl"], 1, "nowhere.jsonl"),
        (["--root", ".", "--task", "beauty"], 1, "task 'beauty' is not in this model; it has: quality"),
        (["--root", ".", "--model", "http://127.0.0.1:9"], 1, "score with the server first"),
        (["--root", ".", "--protocol", "mine"], 2, "'mine' is not one of"),
    ],
)
def test_a_wrong_wish_is_one_line(tmp_path: Path, options: list[str], code: int, message: str) -> None:
    (tmp_path / "labels.json").write_text('[{"image": "a.jpg", "gt_score": 1}]')
    done = run("evaluate", tmp_path / "labels.json", *options)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_wrong_list_is_one_line(tmp_path: Path) -> None:
    for name, text in {"gone.json": None, "text.json": "[{", "empty.json": "[]"}.items():
        if text is not None:
            (tmp_path / name).write_text(text)
        done = run("evaluate", tmp_path / name, "--root", tmp_path)
        assert done.returncode == 1
        assert name in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_the_markdown_is_a_table(unbroken: Path) -> None:
    lines = (unbroken / "result.md").read_text().splitlines()
    table = pd.read_csv(io.StringIO("\n".join([lines[0], *lines[2:]])), sep="|").iloc[:, 1:-1]
    assert table.columns[0].strip() == "list"
    assert f"{COUNT} / {COUNT} / 0" in lines[2]
