"""How numbers are taken and told: rounds, statistics, what is printed. No test asserts how fast anything is."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qalign_bench.cli import command
from qalign_bench.cli.options import Options, WrongOptionError
from qalign_bench.cli.progress import Progress
from qalign_bench.cli.session import Session
from qalign_bench.contestants import peak
from qalign_bench.contestants.command_lines import SEED, our_contestant, peer_contestants
from qalign_bench.contestants.matrix_products import products
from qalign_bench.contestants.models import prepare
from qalign_bench.contestants.process import Contestant
from qalign_bench.contestants.rounds import fit_together, play, play_in_turns
from qalign_bench.figures import energy, machine_noise, report, tables
from qalign_bench.figures.datasheets import datasheet_gops
from qalign_bench.figures.environment import environment
from qalign_bench.figures.flop import our_work, upstream_work
from qalign_bench.figures.runs import baseline, compare_runs
from qalign_bench.figures.spread import median, percentile, ratio, spread
from qalign_bench.scenarios import forwards, pipeline
from qalign_export.parameters import ONE_ALIGN
from qalign_fast.artifact.manifest import EMBEDDED, open_artifact
from qalign_fast.engines.load import load_engine
from qalign_fast.errors import QAlignError
from qalign_fast.families.mplug_owl2.config_json import read_config
from qalign_fast.families.mplug_owl2.prompts import prompt
from qalign_fast.families.mplug_owl2.sizes import PixelRule
from qalign_fast.levels import score_of
from qalign_fast.pixels.picture import load_pixels
from support.goldens import GOLDEN, PICTURES, ROOT

CLI = [sys.executable, "-m", "qalign_fast.cli.app", "bench"]
BOTH = (prompt("quality"), prompt("aesthetics"))
REQUIRED = (  # of every run, by the issue
    "images_per_second",
    "ms_p50",
    "ms_p90",
    "ms_p99",
    "stations_ms",
    "peak_memory_bytes",
    "gflop_per_image",
    "peak_share",
    "environment",
    "baseline",
)


def bench(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [*CLI, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def session(**options: Any) -> Session:
    remarks: list[str] = []
    made = Session(Options(**options), remarks.append, lambda *_: None)
    made.facts["remarks"] = remarks
    return made


# --- statistics


@given(st.lists(st.lists(st.floats(1, 1e6), min_size=4, max_size=4), min_size=1, max_size=9))
def test_the_median_of_all_lies_within_the_rounds_range(rounds: list[list[float]]) -> None:
    found = spread(rounds)
    assert found.low <= found.middle <= found.high
    assert found.middle in [t for times in rounds for t in times]


def test_percentiles_are_nearest_rank() -> None:
    values = random.Random(0).sample(range(1, 101), 100)
    assert [percentile(values, p) for p in (0.5, 0.9, 0.99, 1.0)] == [50, 90, 99, 100]
    assert percentile([7.0], 0.99) == median([7.0]) == 7


def test_ratios_are_taken_round_by_round() -> None:
    slow, fast = [20.0, 200.0, 21.0], [10.0, 100.0, 7.0]  # in the second round the machine was ten times slower
    found = ratio(slow, fast)
    assert (found.low, found.middle, found.high) == (2, 2, 3)


# --- rounds


class Fake(Contestant):
    """Writes down when it is started, has its turn and ends."""

    log: ClassVar[list[str]] = []

    @contextmanager
    def start(self) -> Iterator[Any]:
        self.log.append(f"+{self.name}")
        yield self
        self.log.append(f"-{self.name}")


class Logged:
    def loading(self, contestant: Contestant) -> None:
        pass

    def turn(self, _: int, process: Any) -> None:
        Fake.log.append(process.name)

    def after(self) -> None:
        Fake.log.append("|")


def test_contestants_are_interleaved_and_take_turns_where_they_must() -> None:
    both = [Fake("a", (), {}), Fake("b", (), {})]
    Fake.log.clear()
    play(Logged(), both, 2)
    assert " ".join(Fake.log) == "+a +b a b | a b | -b -a"
    Fake.log.clear()
    play_in_turns(Logged(), both, 2)
    assert " ".join(Fake.log) == "+a a -a +b b -b | +a a -a +b b -b |"


def test_contestants_too_large_together_do_not_fit() -> None:
    small, large = Contestant("small", (), {}, 1), Contestant("large", (), {}, 1 << 60)
    assert fit_together([small])
    assert not fit_together([small, large])


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ('print(\'{"error": "no such checkout"}\'); raise SystemExit(1)', "x: no such checkout"),
        ("raise RuntimeError('no weights')", r"x: its process ended \(status 1\): RuntimeError: no weights"),
        ("import os; os.kill(os.getpid(), 9)", "out of memory"),
    ],
)
def test_a_contestant_that_fails_says_why(code: str, said: str) -> None:
    with pytest.raises(QAlignError, match=said):
        Contestant("x", (sys.executable, "-c", code), {}).start()


def test_a_contestant_that_dies_between_commands_says_why() -> None:
    code = "print('{}', flush=True); input(); raise ValueError('gone')"
    with Contestant("x", (sys.executable, "-c", code), {}).start() as process:
        with pytest.raises(QAlignError, match="ValueError: gone"):
            process.ask("latency")
        with pytest.raises(QAlignError, match="ValueError: gone"):
            process.ask("latency")


def test_a_missing_interpreter_is_one_line() -> None:
    with pytest.raises(QAlignError, match="x: /nowhere/python: No such file"):
        Contestant("x", ("/nowhere/python",), {}).start()


# --- what is told


@pytest.fixture(scope="module")
def compared() -> dict[str, Any]:
    """The embedded model beside itself with an engine that sleeps, in two rounds of one forward of two pictures."""
    made = session(scenario="latency", repeat=2, batches=(2,))
    models = made.models()
    ours = our_contestant(models[0], made.options)
    slow = dataclasses.replace(ours, name="slow", argv=(sys.executable, str(ROOT / "tests/support/slow_worker.py")))
    forwards.compare(made, models, [ours, slow])
    return report.results(made)


def test_a_slowed_engine_is_reported_slower(compared: dict[str, Any]) -> None:
    ours, slow = compared["runs"]
    assert slow["images_per_second_range"][1] < ours["images_per_second_range"][0]
    assert ours["against"]["contestant"] == "slow"
    assert ours["against"]["range"][0] > 1
    assert ours["against"]["largest_score_difference"] == 0
    assert slow["stations_ms"]["encode"] > ours["stations_ms"]["encode"]


def test_scores_are_the_engines_own_for_the_pictures_of_the_seed(compared: dict[str, Any]) -> None:
    engine = load_engine(EMBEDDED)
    side = engine.config.pixels.side
    pixels = np.random.default_rng(SEED).integers(0, 256, (2, side, side, 3)).astype(np.uint8)
    logits = engine.decode(engine.encode(pixels), engine.prompts[0])
    expected = [score_of(row, "quality").value for row in logits]
    np.testing.assert_allclose(compared["runs"][0]["scores"], [expected], rtol=0, atol=1e-6)


def test_a_run_has_every_key_and_they_agree(compared: dict[str, Any]) -> None:
    config = open_artifact(EMBEDDED).manifest.config
    works = our_work(config, BOTH[:1]), upstream_work(config, BOTH[:1])  # what is no model of ours is a peer
    for run, work in zip(compared["runs"], works, strict=True):
        assert all(run[key] is not None for key in REQUIRED)
        assert run["images_per_second"] == pytest.approx(2e3 / run["ms_p50"])
        assert run["ms_p50"] <= run["ms_p90"] <= run["ms_p99"]
        low, high = run["images_per_second_range"]
        assert low <= run["images_per_second"] <= high
        assert run["timed"] == compared["rounds"] == 2
        assert run["gflop_per_image"] == pytest.approx(1e-9 * work.total)
        assert run["peak_share"] == pytest.approx(
            run["gflop_per_image"] * run["images_per_second"] / run["peak"]["gops"]
        )
        assert run["peak_memory_bytes"]["host"] > 50e6
        assert run["baseline"]["ratio"] is None
        assert run["baseline"]["measured_on"] == run["device"]
    json.dumps(compared)


def test_tables_say_what_belongs_beside_a_number(compared: dict[str, Any]) -> None:
    text, markdown = report.as_text(compared), report.as_markdown(compared)
    for shown in (text, markdown):
        assert "against the 23 fps RTX 3090 baseline of the paper's summary: not compared" in shown
        assert "int8 onnx computes with onnxruntime" in shown
        assert "SRCC" in shown
        assert "measured peak, int8:" in shown
        assert environment()["cpu"] in shown
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(rows) == 8
    assert len({line.count("|") for line in rows[:4]}) == 1


def test_only_one_align_is_compared_with_the_baseline() -> None:
    assert baseline(46, "H100", True)["ratio"] == 2
    assert baseline(46, "H100", False)["ratio"] is None
    run = {"contestant": "int8 torch", "images_per_second": 46.0, "batch": 4, "is_peer": False}
    [line] = report._baseline([run | {"baseline": baseline(46, "H100", True)}])
    assert line.endswith("46.0 pictures/s, 2.0 of it, by int8 torch at batch 4 on H100")


def test_runs_are_compared_with_a_peer_of_the_same_batch() -> None:
    runs: list[dict[str, Any]] = [
        {"contestant": name, "is_peer": name == "peer", "batch": batch, "ms_round_medians": times, "scores": [[score]]}
        for name, batch, times, score in (("a", 1, [1, 2], 3.0), ("peer", 1, [3, 4], 3.5), ("a", 2, [5], 3.0))
    ]
    compare_runs(runs)
    assert runs[0]["against"] == {
        "contestant": "peer",
        "times_as_fast": 2,
        "range": [2, 3],
        "largest_score_difference": 0.5,
    }
    assert "against" not in runs[1]
    assert "against" not in runs[2]


@pytest.mark.parametrize(
    ("value", "shown"), [(1234.5, "1234"), (12.345, "12.3"), (0.012345, "0.0123"), (0, "0"), (None, "")]
)
def test_numbers_keep_three_digits(value: float | None, shown: str) -> None:
    assert report.number(value) == shown


def test_every_product_there_is_can_be_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "_SECONDS", 0)
    for precision in ("int8", "fp32", "bf16", "fp16"):
        makers = products(precision, "cpu")
        assert any("torch" in by for by in makers)
        assert any("onnxruntime" in by for by in makers)  # of 16-bit floats what multiplies float32
        for make in makers.values():
            assert peak._time(make((16, 32, 48)), cuda=False) > 0
    assert not any("onnxruntime" in by for by in products("int8", "cpu", "avx2"))  # which cannot be held to it


def test_fp8_on_a_cpu_is_held_to_what_multiplies_it_there() -> None:
    """torch._scaled_mm by one core at a time would take minutes, and no engine here uses it."""
    assert products("fp8", "cpu").keys() == products("fp32", "cpu").keys()


def test_datasheets_are_of_the_device_named() -> None:
    assert datasheet_gops("NVIDIA H100 80GB HBM3", "int4") == 1979e3
    assert datasheet_gops("NVIDIA L4", "bf16") == 121e3
    assert datasheet_gops("NVIDIA GeForce RTX 4090", "fp8") == 330e3
    assert datasheet_gops("NVIDIA A100-SXM4-80GB", "fp8") is None
    assert datasheet_gops("NVIDIA L40S", "bf16") is None
    assert datasheet_gops("NVIDIA GeForce RTX 3090 Ti", "fp16") is None
    assert datasheet_gops("NVIDIA H100 PCIe", "fp16") is None
    assert datasheet_gops("AMD EPYC, 2 cores", "int8") is None


def test_readme_has_the_tables_that_the_results_give() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert tables.with_tables(text, ROOT / "bench/results") == text
    assert text.count("<!-- table: ") >= 2


def test_a_bench_saved_as_json_becomes_a_table(compared: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "mini.json").write_text(json.dumps(compared))
    made = tables.with_tables("a\n<!-- table: mini -->\nold\n<!-- end -->\nb", tmp_path)
    ours, slow = compared["runs"]
    for run in (ours, slow):
        assert f"| {run['contestant']} | {report.number(run['images_per_second'])} |" in made
    assert f"| {report.number(ours['against']['times_as_fast'])} (" in made
    assert made.startswith("a\n<!-- table: mini -->\n| contestant |")
    assert made.endswith(
        f"{ours['environment']['date'][:10]}; {'; '.join(report.names([ours, slow]))}; measured peaks in "
        f"GOP/s: int8 {report.number(ours['peak']['gops'])}.\n<!-- end -->\nb"
    )
    with pytest.raises(SystemExit, match="no '<!-- end -->'"):
        tables.with_tables("<!-- table: mini -->\n", tmp_path)


@pytest.mark.parametrize("scenario", ["latency", "throughput"])
def test_plots_are_drawn(compared: dict[str, Any], scenario: str, tmp_path: Path) -> None:
    from qalign_bench.figures.plot import draw

    more = [run | {"batch": 4} for run in compared["runs"]]
    draw(compared | {"scenario": scenario, "runs": [*compared["runs"], *more]}, tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.format == "PNG"
        colours = {colour[:3] for _, colour in picture.convert("RGB").getcolors(1 << 24) or []}
    assert {(0x00, 0x72, 0xB2), (0xE6, 0x9F, 0x00)} <= colours  # two contestants, or two stations


# --- the machine


def test_uneven_rounds_and_other_processes_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def watched(busy: float, samples: list[float]) -> Any:
        ticks = iter([machine_noise._Ticks(100, 50, 0, 10), machine_noise._Ticks(200, 50 + busy, 0, 40)])
        monkeypatch.setattr(machine_noise._Ticks, "now", lambda: next(ticks))
        watch = machine_noise.Noise()
        watch._samples = samples
        return watch.report()["warning"]

    assert watched(30, [1.0, 1.05]) is None
    assert watched(60, [1.0]) == "noisy machine: other processes used 30% of the cores' time"
    assert "up to 50% longer" in watched(30, [1.0, 1.5, 1.1])


def test_joules_are_summed_over_packages_and_wrap(tmp_path: Path) -> None:
    counters = []
    for package in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"):  # the last is a part of the first
        zone = tmp_path / package
        zone.mkdir()
        (zone / "max_energy_range_uj").write_text("9999999")
        (zone / "energy_uj").write_text("9000000\n")
        counters.append(zone / "energy_uj")
    meter = energy._rapl(tmp_path)
    assert meter is not None
    before = meter()
    counters[0].write_text("1000000\n")  # past its end
    counters[1].write_text("9500000\n")
    assert meter() - before == pytest.approx(2.5)
    assert energy._rapl(tmp_path / "nothing") is None


class Clocked:
    """Products of known speeds in GOP/s, and a clock that says so; what was timed is written down."""

    def __init__(self, speeds: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
        self.timed: list[tuple[str, Any]] = []
        makers = {by: lambda shape, by=by: lambda: (by, shape) for by in speeds}
        monkeypatch.setattr(peak, "products", lambda *_: makers)
        monkeypatch.setattr(peak, "_time", lambda run, _: self.time(*run(), speeds))

    def time(self, by: str, shape: tuple[int, int, int], speeds: dict[str, float]) -> float:
        self.timed.append((by, shape))
        return peak._gop(shape) / speeds[by]


def test_the_peak_is_the_fastest_product_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = peak._SHAPES["cpu"][0], peak._SHAPES["cpu"][1:]
    speeds = {"scalar": 4.0, "slow": 300.0, "fast": 500.0}
    clocked, limit = Clocked(speeds, monkeypatch), peak.Peaks("cpu")
    assert limit.peak("int8") == {"gops": pytest.approx(500), "by": "fast", "shape": max(large)}
    assert clocked.timed == [(by, small) for by in speeds] + [(by, s) for s in large for by in ("slow", "fast")]
    clocked.timed.clear()
    speeds["fast"] = 450.0  # the machine is slower now
    assert limit.peak("int8")["gops"] == pytest.approx(450)
    assert clocked.timed == [("fast", max(large))]


def test_a_peak_is_its_median_over_the_rounds() -> None:
    match = forwards._Match(session(scenario="latency"), 1, 3, 1, ExitStack())
    match._peaks["int8"] = [{"gops": gops} for gops in (900.0, 600.0, 650.0)]
    assert match.peaks == {"int8": {"gops": 650.0}}


def test_no_run_for_a_peak_is_known_to_take_longer_than_half_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clocked = Clocked({"scalar": 1.0, "float": 40.0}, monkeypatch)
    small, middle, *large = peak._SHAPES["cpu"]
    assert peak.Peaks("cpu").peak("fp32")["shape"] == middle
    assert clocked.timed == [("scalar", small), ("float", small), ("float", middle)]
    assert min(map(peak._gop, large)) > 40 / 2


# --- models and options


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
        (("startup", "--batch", "4"), 2, "has no part in startup"),
        (("latency", "--tune"), 2, "has no part in latency; it has in operations"),
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


# --- the command line


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
        assert run["sha256"] == hashlib.sha256(load_pixels(run["file"], PixelRule(448)).tobytes()).hexdigest()
        assert sum(run["stations_ms"].values()) == pytest.approx(run["ms_p50"])
    assert report._bits(runs) == ["pixels: equal, bit for bit"]
    runs[0]["sha256"] = "0"
    assert report._bits([runs[0], runs[0] | {"sha256": "1"}]) == [f"pixels differ between contestants: {files[0]}"]


def test_interrupting_prints_what_was_done(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As Ctrl-C does, at the start of the second round."""

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
