"""bench/gpu.sh with a stand-in for Python: what it runs, what it does when it is cut off, and its summary."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from support.goldens import GOLDEN, ROOT

pytest.importorskip("triton", reason="Triton is for Linux")

from qalign_bench.figures import gpu_summary

NARROW = f"random:{GOLDEN / 'narrow-112'}"
STAND_IN = """#!/usr/bin/env bash
# Stands in for gpu.sh's Python: writes down what it is asked to do and does nothing, or waits where it is told to
[[ $* == *gpu_summary* ]] && exec {python} "$@"
[[ $1 == -c || $1 == - ]] && exit {status}
echo "$*" >>{log}
if [[ $* == *{slow}* ]]; then
  setsid sleep 300 &
  echo $! >{log}.left
  trap 'echo "{{}}" ; exit 3' INT
  sleep 300 &
  wait
fi
"""


def run_of(batch: int, rate: float, **others: Any) -> dict[str, Any]:
    return {
        "contestant": "int8 torch", "is_peer": False, "precision": "int8", "device": "NVIDIA H100 80GB HBM3",
        "batch": batch, "images_per_second": rate, "ms_p50": 1e3 * batch / rate, "peak_share": 0.5, "against": None,
        "peak_memory_bytes": {"host": 1, "device": 9_000_000_000}, "stations_ms": {"encode": 2.0, "decode": 6.0},
    } | others  # fmt: skip


def test_the_summary_is_of_what_there_is_beside_what_was_predicted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(name: str, content: object) -> None:
        (tmp_path / name).write_text(json.dumps(content))

    peer = run_of(1, 25, contestant="hf-eager", is_peer=True)
    write("gpu_throughput_int8.json", {"runs": [run_of(1, 125), peer]})
    kernels = [
        {"name": name, "times": 2, "us": us} for name, us in (("_multiply", 4000), ("fmha_sm90", 1500), ("x", 500))
    ]
    write(
        "gpu_profile_int8.json",
        [{"precision": "int8", "batch": 1, "step_us": 7000, "gap_share": 0.1, "kernels": kernels}],
    )
    write("gpu_tune_int8.json", {"times": [
        {"form": "int8", "m": 77, "k": 4096, "n": 4096, "by": by, "tile": [1], "seconds": seconds, "tops": 1.0}
        for by, seconds in (("rule", 4e-5), ("candidate", 2e-5), ("torch", None))
    ]})  # fmt: skip
    (tmp_path / "gpu_graphs.json").write_text('{"batches": [')  # cut off
    (tmp_path / "gpu_tests.txt").write_text(
        "[gw0] [ 33%] PASSED tests/a.py::b\n[gw1] [ 66%] FAILED tests/a.py::c[int8]\ntests/a.py::d PASSED   [100%]\n"
    )
    stages = {"encode": 1.6, "products": 5.0}
    write("predicted.json", [
        {"gpu": "H100", "precision": "int8", "batch": 1, "ms": 10, "pictures_per_second": 100, "stages": stages},
        {"gpu": "RTX 3090", "precision": "int8", "batch": 1, "ms": 1, "pictures_per_second": 1, "stages": {}},
    ])  # fmt: skip
    command = ["gpu_summary", str(tmp_path), "--predicted", str(tmp_path / "predicted.json")]
    monkeypatch.setattr(sys, "argv", command)
    gpu_summary.main()
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "throughput_int8 int8 torch 1 125.0 100.0 1.25 8.00 9.00 50 % -" in lines
    assert "throughput_int8 hf-eager 1 25.0 - - 40.00 9.00 50 % -" in lines  # nothing was predicted of a peer
    assert "int8 torch 1 encode 2.000 1.600 1.25" in lines
    assert "int8 torch 1 decode 6.000 - -" in lines
    assert "int8 torch 1 products 4.000 5.000 0.80" in lines
    assert "int8 torch 1 attention 1.500 - -" in lines
    assert "int8 1 7000 10.0 % 6" in lines
    assert "int8 77 x 4096 x 4096 candidate 1 20.0 1 40.0 - 2.00" in lines
    assert {"passed 2", "failed 1", "tests/a.py::c[int8] FAILED"} <= set(lines)
    monkeypatch.setattr(sys, "argv", [*command[:2], "--predicted", str(tmp_path / "none.json")])
    gpu_summary.main()
    assert "int8 torch 1 125.0 - - 8.00" in " ".join(capsys.readouterr().out.split())


def script(tmp_path: Path, *parts: str, slow: str = "no such command", **settings: str) -> subprocess.Popen[str]:
    """Starts gpu.sh as if there were a GPU. The commands that it runs are in tmp_path/log."""
    python = tmp_path / "python"
    python.write_text(
        STAND_IN.format(python=sys.executable, log=tmp_path / "log", slow=slow, status=3 if "no_fp8" in settings else 0)
    )
    python.chmod(0o755)
    names = {"PYTHON": str(python), "OUT": str(tmp_path / "out"), "MODELS": str(tmp_path / "models")}
    command = [str(ROOT / "bench/gpu.sh"), *parts]
    environment = {**os.environ, **names, **settings}
    for name in ("PRECISIONS", "BATCHES", "REPEAT", "TUNE_SECONDS", "QALIGN_UPSTREAM"):
        environment = environment if name in settings else {k: v for k, v in environment.items() if k != name}
    out, err = ((tmp_path / name).open("w") for name in ("stdout", "stderr"))
    with out, err:
        # a job in the background of a shell has SIGINT ignored, and so has all that it starts
        ignored = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            return subprocess.Popen(command, env=environment, stdout=out, stderr=err, text=True)
        finally:
            signal.signal(signal.SIGINT, ignored)


def test_every_part_ends_within_six_minutes_and_measures_what_it_says(tmp_path: Path) -> None:
    process = script(tmp_path)
    process.wait(120)
    said = (tmp_path / "stderr").read_text()
    assert process.returncode == 0, said
    asked = (tmp_path / "log").read_text()
    for precision in ("int8", "fp8", "fp16"):
        assert re.search(rf"bench throughput --model random:one-align .*--batch=64 --precision {precision} ", asked)
        assert re.search(
            rf"kernel_times random:one-align --precision {precision} .*--batch=1 --batch=8 --batch=64", asked
        )
    assert re.search(r"--precision=int8 --precision=fp8 .*--peer hf-eager", asked)
    assert "graph_check random:one-align --precision int8" in asked
    assert asked.index("--form int8 --seconds 125") < asked.index("--form float8_e4m3fn --seconds 45")
    assert asked.rindex("compile_models") > asked.index("qalign_bench.profiling.tune")  # what the new table asks for
    limits: dict[str, int] = {}
    part = ""
    for line in said.splitlines():
        if begun := re.match(r"== (\S+), at most (\d+) s", line):
            part = part or "1"
            limits[part] = limits.get(part, 0) + int(begun[2])
        elif ended := re.match(r"part (\d)", line):
            part = str(int(ended[1]) + 1)
    assert limits.keys() == {"1", "2", "3"}
    assert all(seconds < 330 for seconds in limits.values()), limits


def test_a_gpu_without_fp8_is_asked_for_none(tmp_path: Path) -> None:
    process = script(tmp_path, "1", "2", no_fp8="1")
    assert process.wait(120) == 0
    asked = (tmp_path / "log").read_text()
    assert not re.search(r"--precision[ =]fp8", asked)
    assert "--precision=int8 --precision=fp16" in asked


def gone(pid: int) -> bool:
    """Whether the process has ended, even if nobody has waited for it yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_part_that_is_cut_off_prints_its_summary_and_leaves_nothing_running(sent: int, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/gpu_peer_hf-eager.json").write_text(json.dumps({"runs": [run_of(8, 125)]}))
    process = script(tmp_path, "1", slow="ceilings")
    left = tmp_path / "log.left"
    for _ in range(300):
        if left.exists() and left.read_text().strip():
            break
        time.sleep(0.1)
    process.send_signal(sent)
    assert process.wait(60) == 130
    printed, said = ((tmp_path / name).read_text() for name in ("stdout", "stderr"))
    assert re.search(r"peer_hf-eager +int8 torch +8 +125\.0", printed)
    assert "ceilings: interrupted" in said
    assert (tmp_path / "out/gpu_ceilings.md").read_text() == "{}\n"  # it could print what it had
    assert gone(int(left.read_text()))


def test_what_runs_over_its_time_is_ended_with_what_it_left_and_the_next_is_begun(tmp_path: Path) -> None:
    process = script(tmp_path, "3", slow="tune", TUNE_SECONDS="-12")
    process.wait(120)
    said = (tmp_path / "stderr").read_text()
    assert process.returncode == 1
    assert "ending what tune_int8 left running" in said
    assert "failed: tune_int8: status 124, over its 3 s" in said
    assert "bench throughput" in (tmp_path / "log").read_text()
    assert gone(int((tmp_path / "log.left").read_text()))


def test_parts_that_there_are_not_are_named(tmp_path: Path) -> None:
    process = script(tmp_path, "4")
    assert process.wait(60) == 2
    assert "no part 4; there are: 1, 2, 3, onnx" in (tmp_path / "stderr").read_text()


def test_the_script_runs_on_a_cpu_under_the_interpreter(tmp_path: Path) -> None:
    """Part 3 at the smallest sizes: the sweep, and a throughput whose JSON is complete."""
    names = {"PYTHON": sys.executable, "OUT": str(tmp_path / "out"), "MODELS": str(tmp_path / "models")}
    sizes = {
        "DEVICE": "cpu",
        "MODEL": NARROW,
        "PRECISIONS": "int8",
        "BATCHES": "1",
        "REPEAT": "1",
        "TUNE_SECONDS": "1",
        "PATIENCE": "20",
    }
    command = [str(ROOT / "bench/gpu.sh"), "3"]
    run = subprocess.run(command, env=os.environ | names | sizes, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert json.loads((tmp_path / "out/gpu_tune_int8.json").read_text())["times"]
    assert json.loads((tmp_path / "out/gpu_tuned_int8.json").read_text())["runs"][0]["images_per_second"] > 0
    assert re.search(r"tuned_int8 +int8 torch +1 ", run.stdout)
    assert "shrunk" in (tmp_path / "out/gpu_tune_int8.json").read_text()
