"""`qalign-fast bench`: the models that it measures, mistakes in its options, and its scenarios."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qalign_bench.cli import command
from qalign_bench.cli.options import Options, WrongOptionError
from qalign_bench.cli.progress import Progress
from qalign_bench.contestants.command_lines import SEED, peer_contestants
from qalign_bench.contestants.models import prepare
from qalign_bench.figures import report
from qalign_bench.scenarios import pipeline
from qalign_export.parameters import ONE_ALIGN
from qalign_fast.errors import QAlignError
from qalign_fast.families.mplug_owl2.config_json import read_config
from qalign_fast.families.mplug_owl2.sizes import pixel_rule
from qalign_fast.pixels.picture import load_pixels
from support.bench import REQUIRED
from support.goldens import GOLDEN, PICTURES, ROOT

pytestmark = pytest.mark.usefixtures("kernels")  # of a user who has built them
CLI = [sys.executable, "-m", "qalign_fast.cli", "bench"]


def bench(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [*CLI, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_what_is_no_artifact_is_exported_once(tmp_path: Path) -> None:
    remarks: list[str] = []
    reference = f"random:{GOLDEN / 'narrow-112'}"

    def get(reference: str, precision: str | None, engine: str = "onnx") -> Any:
        return prepare(reference, precision, engine, tmp_path, remarks.append, lambda *_: None)

    first = get(reference, "fp32")
    assert (first.config, first.parameters) == (read_config(GOLDEN / "narrow-112"), reference)
    assert first.weights_bytes > 1e5
    assert get(reference, "fp32").directory == first.directory
    assert len(remarks) == 1
    assert get(reference, None).manifest.precision == "int8"
    assert len(remarks) == 2
    checkpoint = get(str(GOLDEN / "narrow-112"), "fp32")
    assert checkpoint.directory != first.directory
    assert checkpoint.parameters == str(GOLDEN / "narrow-112")
    given = get(str(first.directory), None)
    assert (given.directory, given.parameters) == (first.directory, reference)
    assert first.numbers == given.numbers == "parameter"
    other = dataclasses.replace(given.manifest, source={"name": reference, "sha256": "of other numbers"})
    assert dataclasses.replace(given, manifest=other).numbers is None
    with pytest.raises(QAlignError, match="has no precision 'bf16'; available: fp32"):
        get(str(first.directory), "bf16")


def test_peers_are_scripts_with_a_spec() -> None:
    options = Options("latency", peers=("upstream=/code", "bnb-nf4"), peer_python="/other/python", threads=2)
    upstream, nf4 = peer_contestants(options, "random:one-align", ONE_ALIGN)
    assert upstream.argv[0] == "/other/python"
    assert Path(upstream.argv[1]).is_file()
    assert Path(nf4.argv[1]).is_file()
    assert upstream.spec == {
        "model": "random:one-align",
        "engine": None,
        "precision": None,
        "device": "auto",
        "threads": 2,
        "seed": SEED,
        "random_numbers": str(ROOT / "export/qalign_export/random_numbers.py"),
        "numbers": "parameter",
        "checkout": "/code",
    }
    assert nf4.spec["precision"] == "nf4"
    assert 16.3e9 < upstream.weights_bytes < 16.5e9  # 8.2 B of two bytes
    with pytest.raises(WrongOptionError, match="upstream=PATH, hf-eager"):
        peer_contestants(Options("latency", peers=("upstream",)), None, None)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("speed",), 2, "Invalid value"),
        (("latency", "--peer", "tgi"), 2, "upstream=PATH, hf-eager, bnb-int8, bnb-nf4"),
        (("latency", "--peer", "hf-eager"), 2, "peers need a checkpoint"),
        (("latency", "--json", "--markdown"), 2, "one or the other"),
        (("startup", "--batch", "4"), 2, "is no option of startup; it is one of: latency, throughput, pipeline"),
        (("latency", "--tune"), 2, "is no option of latency; it is one of: operations"),
        (("operations", "--tune", "--device", "cpu"), 2, "is for NVIDIA GPUs, not for 'cpu'"),
        (("operations", "--tune", "--device", "cuda:99"), 1, "device 'cuda:99'"),
        (("latency", "--plot", "x.txt"), 2, "--plot"),
        (("pipeline", "/nowhere.jpg"), 1, "error: /nowhere.jpg: no such file"),
        (("latency", "--precision", "bf16"), 1, "has no precision 'bf16'; available: int8"),
        (("latency", "--device", "tpu"), 1, "error: device 'tpu' is not one"),
    ],
)
def test_mistakes_are_one_line_and_no_traceback(arguments: tuple[str, ...], code: int, said: str) -> None:
    done = bench(*arguments)
    assert done.returncode == code
    assert done.stdout == ""
    assert said in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr


def test_startup_is_taken_warm_and_cold(tmp_path: Path) -> None:
    done = bench("startup", "--repeat", 1, "--json", "--work", tmp_path)
    assert done.returncode == 0
    runs = json.loads(done.stdout)["runs"]
    assert [run["pages"] for run in runs] == ["warm", "cold"]
    for run in runs:
        assert set(REQUIRED) <= run.keys()
        assert list(run["stations_ms"]) == ["python", "import", "load", "first score"]
        assert sum(run["stations_ms"].values()) == pytest.approx(run["ms_p50"])


def test_pipeline_tells_how_busy_the_engine_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pipeline, "_SECONDS", 0.0)  # two batches are enough
    files = tuple(str(path) for path in sorted(PICTURES.iterdir()))
    command.bench(Options("pipeline", repeat=1, batches=(4,), files=files, work=tmp_path), form="json")
    [run] = json.loads(capsys.readouterr().out)["runs"]
    assert set(REQUIRED) <= run.keys()
    assert (run["files"], run["pictures"]) == (len(files), 8)
    assert 0 < run["engine_busy_share"] <= 1
    assert run["stations_ms"]["engine"] == pytest.approx(run["engine_busy_share"] * run["ms_p50"])
    alone = run["engine_only_images_per_second"]
    assert run["of_engine_only"]["share"] == pytest.approx(run["images_per_second"] / alone)


def test_pixels_are_those_of_load_pixels_in_every_form(capsys: pytest.CaptureFixture[str]) -> None:
    files = tuple(str(PICTURES / name) for name in ("chelsea_small.png", "rocket_landscape.jpg"))
    command.bench(Options("pixels", repeat=1, files=files), form="json")
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [run["file"] for run in runs[:2]] == list(files)
    for run in runs:
        assert set(REQUIRED) <= run.keys()
        assert run["sha256"] == hashlib.sha256(load_pixels(run["file"], pixel_rule(448)).tobytes()).hexdigest()
        assert sum(run["stations_ms"].values()) == pytest.approx(run["ms_p50"])
    assert report._bits(runs) == ["pixels: equal, bit for bit"]
    runs[0]["sha256"] = "0"
    assert report._bits([runs[0], runs[0] | {"sha256": "1"}]) == [f"pixels differ between contestants: {files[0]}"]


def test_interrupting_prints_what_was_done(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A KeyboardInterrupt, which Ctrl-C raises, comes at the start of the second round."""

    class Interrupting(Progress):
        def show(self, done: int, total: int, what: str) -> None:
            if what.startswith("round 2 of 3: int8"):
                raise KeyboardInterrupt

    monkeypatch.setattr(command, "Progress", Interrupting)
    with pytest.raises(KeyboardInterrupt):
        command.bench(Options("latency", repeat=3), form="json")
    found = json.loads(capsys.readouterr().out)
    assert (found["interrupted"], found["rounds"], found["of_rounds"]) == (True, 1, 3)
    assert found["runs"][0]["timed"] == 1
    assert found["runs"][0]["peak_share"] > 0
