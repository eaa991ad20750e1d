"""The command line as a user meets it: subprocesses, what stands on stdout and stderr, exit codes."""

from __future__ import annotations

import csv
import io
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qalign_fast.levels import LEVELS
from qalign_kernels.cpu import native
from qalign_kernels.cpu.ops import load_native
from support.clips import constant, write_clip
from support.command_line import CLI, run
from support.goldens import PICTURES, Golden, Rounded


def rows(completed: subprocess.CompletedProcess[str]) -> list[dict]:
    return [json.loads(line) for line in completed.stdout.splitlines()]


@pytest.fixture(scope="module")
def model(narrow: Golden) -> tuple[str, str]:
    return ("--model", str(narrow.artifact))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("chelsea_small.png", "rocket_landscape.jpg"):
        shutil.copy(PICTURES / name, tmp_path)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "deeper").mkdir()
    shutil.copy(PICTURES / "noise_37x91.png", tmp_path / "deeper")
    return tmp_path


def test_rows_are_the_goldens_in_input_order(narrow: Golden, model: tuple[str, str]) -> None:
    done = run("score", *narrow.pictures, *model)
    assert done.returncode == 0
    found = rows(done)
    assert [row["source"] for row in found] == [str(p) for p in narrow.pictures]
    np.testing.assert_allclose(
        [row["score"] for row in found], narrow.expected["score_quality_image"], rtol=0, atol=2e-4
    )
    assert list(found[0]) == ["source", "task", "score", "level", "probabilities", "error"]
    assert list(found[0]["probabilities"]) == list(LEVELS)


def test_all_tasks_give_a_row_each(narrow: Golden, model: tuple[str, str]) -> None:
    found = rows(run("score", narrow.pictures[0], "--task", "all", *model))
    assert [row["task"] for row in found] == ["quality", "aesthetics"]


def test_csv_has_the_probabilities_as_columns(folder: Path, model: tuple[str, str]) -> None:
    done = run("score", folder / "chelsea_small.png", folder / "notes.txt", "--format", "csv", *model)
    good, bad = csv.DictReader(io.StringIO(done.stdout))
    assert sum(float(good[level]) for level in LEVELS) == pytest.approx(1, abs=1e-5)
    assert (bad["score"], bad["excellent"]) == ("", "")
    assert "not an image" in bad["error"]


def test_a_table_is_for_people(folder: Path, model: tuple[str, str]) -> None:
    done = run("score", folder, "--format", "table", *model)
    assert "score 1..5" in done.stdout
    assert "chelsea_small.png" in done.stdout
    assert "…" not in done.stdout


def test_folders_globs_and_recursion(folder: Path, model: tuple[str, str]) -> None:
    def names(*arguments: object) -> list[str]:
        return [Path(row["source"]).name for row in rows(run("score", *arguments, *model))]

    assert names(folder) == ["chelsea_small.png", "rocket_landscape.jpg"]
    assert names(folder, "--recursive") == ["chelsea_small.png", "noise_37x91.png", "rocket_landscape.jpg"]
    assert names(f"{folder}/*.png") == ["chelsea_small.png"]


def test_a_list_on_stdin(folder: Path, model: tuple[str, str]) -> None:
    listed = f"{folder}/rocket_landscape.jpg\n\n{folder}/chelsea_small.png\r\n"
    assert [Path(row["source"]).name for row in rows(run("score", "-", *model, stdin=listed))] == [
        "rocket_landscape.jpg",
        "chelsea_small.png",
    ]


def test_bad_files_are_rows_and_exit_3(folder: Path, model: tuple[str, str]) -> None:
    done = run(
        "score", folder / "chelsea_small.png", folder / "notes.txt", folder / "missing.jpg", f"{folder}/*.bmp", *model
    )
    assert done.returncode == 3
    found = rows(done)
    assert [row["error"] is None for row in found] == [True, False, False, False]
    assert found[1]["score"] is found[1]["level"] is found[1]["probabilities"] is None
    assert "Traceback" not in done.stderr
    assert "3 failed" in done.stderr


def test_a_path_that_the_system_refuses_is_a_row(folder: Path, model: tuple[str, str], tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    done = run("score", "a" * 300, "[a]" * 100, folder / "chelsea_small.png", "-o", out, *model)
    assert (done.returncode, done.stdout) == (3, "")
    long, pattern, good = (json.loads(line) for line in out.read_text().splitlines())
    assert "File name too long" in long["error"]
    assert pattern["error"]
    assert good["error"] is None


def test_clips_and_pictures_in_one_call(folder: Path, model: tuple[str, str]) -> None:
    clip = write_clip(folder / "clip.mkv", constant(60, 20), 20)
    (folder / "broken.mp4").write_bytes(b"junk")
    picture = folder / "chelsea_small.png"
    done = run("score", picture, clip, folder / "broken.mp4", picture, "--fps", 2, "--max-frames", 4, *model)
    found = rows(done)
    assert [row.get("frames") for row in found] == [None, 4, None, None]
    assert "4 of 6 frames" in found[1]["warnings"][0]
    assert found[2]["error"]
    assert found[0] == found[3]


def test_output_goes_to_a_file(folder: Path, model: tuple[str, str]) -> None:
    done = run("score", folder / "chelsea_small.png", "-o", folder / "out.jsonl", *model)
    assert done.stdout == ""
    assert json.loads((folder / "out.jsonl").read_text())["error"] is None


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (
            ("score", "x.jpg", "--task", "beauty"),
            1,
            "error: task 'beauty' is not in this model; for images it has: quality",
        ),
        (("score", "x.jpg", "--format", "xml"), 2, "Invalid value"),
        (("score", "x.jpg", "--batch-size", "0"), 2, "Invalid value"),
        (("score", "x.jpg", "--no-such-option"), 2, "No such option"),
        (("score",), 2, "Missing argument"),
        (("score", "x.jpg", "--model", "/nowhere"), 1, "error: /nowhere: no such directory"),
        (("score", "x.jpg", "--device", "cuda"), 1, "error: device 'cuda'"),
        (("score", "x.jpg", "--precision", "bnb-int8"), 1, "has no precision 'bnb-int8'; available: int8"),
        (("score", "x.jpg", "-o", "/nowhere/out"), 1, "No such file or directory"),
        (("info", "/nowhere"), 1, "error: /nowhere"),
        (("export", "/nowhere", "/tmp/out"), 1, "error: /nowhere: no such directory"),
        (("export", "random:llava", "/tmp/out"), 1, "known: one-align, mini"),
        (("export", "random:mini", "/tmp/out", "--precision", "int2"), 2, "Invalid value"),
        (("export", "random:mini", "/tmp/out", "--prompt", "sharp"), 1, "expected NAME=TEXT"),
        (("export", "random:mini", "/tmp/out", "--prompt", "a=b <image> c"), 1, "has no tokenizer"),
        (("export", "random:mini", "/tmp/out", "--precision", "int8", "--calibration", "/nowhere"), 1, "/nowhere"),
    ],
)
def test_mistakes_are_one_line_and_no_traceback(arguments: tuple[str, ...], code: int, said: str) -> None:
    done = run(*arguments)
    assert done.returncode == code
    assert done.stdout == ""
    assert said in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr
    if code == 1:
        assert done.stderr.count("\n") == 1


def test_export_then_info_then_score(narrow: Golden, tmp_path: Path) -> None:
    out = tmp_path / "artifact"
    assert run("export", narrow.checkpoint, out, "--task", "aesthetics", "--name", "tiny").returncode == 0
    facts = json.loads(run("info", out, "--json").stdout)
    assert (facts["name"], facts["tasks"], facts["precision"]) == ("tiny", "aesthetics", "fp32")
    assert "tiny" in run("info", out).stdout
    assert json.loads(run("info", narrow.checkpoint, "--json").stdout)["kind"] == "checkpoint"
    done = run("score", narrow.pictures[0], "--model", out, "--task", "aesthetics")
    assert rows(done)[0]["score"] == pytest.approx(narrow.expected["score_aesthetics_image"][0], abs=2e-4)
    assert "it has: aesthetics" in run("score", narrow.pictures[0], "--model", out).stderr


def test_interrupting_leaves_complete_rows_and_exits_130(tmp_path: Path, model: tuple[str, str]) -> None:
    for i in range(400):
        Image.new("RGB", (1500, 1500), (i % 256, 0, 0)).save(tmp_path / f"{i:03}.png")
    process = subprocess.Popen(
        [*CLI, "score", str(tmp_path), "--batch-size", "4", *model],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a run started in the background ignores SIGINT, and its children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 (no threads here)
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    lines = (first + rest).splitlines()
    assert 1 <= len(lines) < 400
    assert all(json.loads(line)["error"] is None for line in lines)
    assert "Traceback" not in errors


def test_a_reader_that_leaves_early_is_no_traceback(folder: Path, model: tuple[str, str]) -> None:
    sources = "\n".join([str(folder / "chelsea_small.png")] * 3000)
    command = f"{sys.executable} -m qalign_fast.cli score - --batch-size 1 {' '.join(model)} | head -n 1"
    done = subprocess.run(command, shell=True, input=sources, capture_output=True, text=True, timeout=120, check=False)
    assert json.loads(done.stdout)["error"] is None
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_help_names_every_command() -> None:
    shown = run("--help").stdout
    assert all(command in shown for command in ("score", "info", "export", "verify", "build", "bench"))
    assert "--recursive" in run("score", "--help").stdout
    assert run("--version").stdout.startswith("qalign-fast ")


def test_a_slow_way_says_what_the_fast_one_is(
    rounded: Rounded, narrow: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # of a user who has built nothing
    done = run("score", narrow.pictures[0], "--model", rounded("narrow-112", "int8"), "--engine", "torch")
    assert done.returncode == 0
    assert "`qalign-fast build`" in done.stderr
    assert len(rows(done)) == 1


def test_build_without_a_compiler_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    done = run("build")
    assert (done.returncode, done.stdout) == (1, "")
    assert "no-such-compiler cannot be run" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_build_and_info_say_what_the_cpu_computes_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rounded: Rounded, library: Path
) -> None:
    def info() -> str:
        return json.loads(run("info", artifact, "--json").stdout)["kernels"]

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    artifact, here = rounded("narrow-112", "int8"), native.library_path()
    assert "`qalign-fast build`" in info()
    here.parent.mkdir()
    for suffix in (".so", ".json"):  # built before: once is enough
        here.with_suffix(suffix).symlink_to(library.with_suffix(suffix))
    assert (built := run("build")).stdout == f"{here}\n"
    ops = load_native(library_path=library)
    assert ops is not None
    assert built.stderr.splitlines()[-1].startswith(f"kernels: {ops.name}")
    assert info().startswith(ops.name)


def test_a_cpu_without_vector_instructions_is_said_to_be_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, said in (("portable", "native portable (slow"), ("avx2", "native avx2")):
        monkeypatch.setattr(native, "chosen", lambda _, name=name: name)
        assert native.describe().startswith(said)


def test_rows_appear_while_scoring_goes_on(model: tuple[str, str]) -> None:
    process = subprocess.Popen(
        [*CLI, "score", "-", "--batch-size", "1", *model],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{PICTURES}/chelsea_small.png\n" * 4)
    process.stdin.flush()
    assert json.loads(process.stdout.readline())["error"] is None
    process.stdin.close()
    assert process.wait(timeout=60) == 0
