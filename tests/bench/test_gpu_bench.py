"""bench/gpu.sh and what it runs, as far as they need no GPU: random models, the sweep of tiles, ceilings, the profile's
arithmetic, the summary; the script itself with a stand-in for Python, for what it does when it is cut off.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.goldens import GOLDEN, ROOT

pytest.importorskip("triton", reason="Triton is for Linux")

from device_export import export
from qalign_bench.contestants import worker
from qalign_bench.contestants.models import prepare
from qalign_bench.contestants.random_model import DeviceParameters, make, open_engine, pack_on_device
from qalign_bench.figures import gpu_summary
from qalign_bench.peers import hf_eager
from qalign_bench.peers.loop import parse_spec
from qalign_bench.profiling import ceilings, tune
from qalign_bench.profiling.graph_check import largest_difference
from qalign_bench.profiling.kernel_times import Span, median_step, step_of, table
from qalign_bench.profiling.tune import (
    BATCHES,
    FORMS,
    Product,
    Shape,
    Timing,
    by_matrix,
    candidates,
    fastest,
    model_products,
    summary,
    sweep,
    table_text,
    ways,
    with_fastest,
)
from qalign_export import random_numbers
from qalign_export.parameters import ONE_ALIGN
from qalign_export.random_numbers import counted
from qalign_fast import Scorer
from qalign_fast.artifact.manifest import open_artifact
from qalign_fast.engines.torch_cpu import load_folded
from qalign_fast.errors import DeviceError
from qalign_fast.families.mplug_owl2.prompts import prompt
from qalign_kernels.contract.attention import BACKENDS
from qalign_kernels.contract.ops import PLAIN
from qalign_kernels.cuda.launch import Device
from qalign_kernels.cuda.tiles import Tile, table_key, tile_for

H100 = Device(90, 132, 227 * 1024)
NARROW = f"random:{GOLDEN / 'narrow-112'}"


@pytest.mark.parametrize("precision", ["fp16", "fp8", "int8", "int4"])
def test_a_random_artifact_scores(precision: str, tmp_path: Path) -> None:
    export(DeviceParameters(NARROW), tmp_path / "a", precision)
    scorer = Scorer.load(tmp_path / "a")
    assert scorer.engine.precision == precision
    scores = scorer.score([ROOT / "samples/coffee.jpg", ROOT / "samples/rocket.jpg"])
    assert scores[0].value != scores[1].value


@pytest.mark.parametrize("precision", ["fp16", "fp8", "int8", "int4"])
def test_all_of_a_random_model_is_made_on_its_device(precision: str) -> None:
    """meta stands in for a GPU: what meets a tensor on the CPU there is an error."""
    places = set()
    source = DeviceParameters(NARROW, torch.device("meta"))
    packed = pack_on_device(source, precision, [prompt("quality")], lambda _, x: places.add(x.device.type))
    places |= {x.device.type for x in (*packed.prefixes.values(), *packed.suffixes.values())}
    assert places == {"meta"}


def test_counted_numbers_are_the_same_in_any_part_and_spread_as_they_should(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, name = torch.device("cpu"), "model.layers.0.mlp.up_proj.weight"
    whole = counted(name, (300, 400), cpu)
    monkeypatch.setitem(counted.__globals__, "_PART", 1000)
    assert torch.equal(counted(name, (300, 400), cpu), whole)
    assert whole.std().item() == pytest.approx(1 / 20, rel=0.01)  # 400 inputs
    assert abs(whole.mean().item()) < 1e-3
    other = counted("model.layers.1.mlp.up_proj.weight", (300, 400), cpu)
    assert abs(torch.corrcoef(torch.stack((whole.flatten(), other.flatten())))[0, 1].item()) < 0.02
    assert counted("model.norm.weight", (1000,), cpu).mean().item() == pytest.approx(1, abs=0.01)
    expected = [counted_by_hand(place, name) / 147.8 / 20 for place in (0, 1, 99_999)]
    assert whole.flatten()[[0, 1, 99_999]].tolist() == pytest.approx(expected)


def counted_by_hand(place: int, name: str) -> int:
    """The sum of a hash's four bytes, in whole numbers that no machine's width cuts off."""
    digest = hashlib.sha256(name.encode()).digest()
    x = place ^ int.from_bytes(digest[:4], "big")
    for i, factor in enumerate((0x7FEB352D, 0x846CA68B) * 2):
        x ^= x >> (16 - i % 2)
        x = x * factor % 2**32
        x ^= int.from_bytes(digest[4:8], "big") if i == 1 else 0
    x ^= x >> 16
    return 2 + sum(byte - 256 * (byte > 127) for byte in x.to_bytes(4, "big"))


def random_pictures(count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, 112, 112, 3), np.uint8)


@pytest.mark.parametrize("precision", ["fp16", "fp8", "int8", "int4"])
def test_a_model_in_memory_is_the_one_in_a_file(precision: str, tmp_path: Path) -> None:
    export(DeviceParameters(NARROW), tmp_path / "a", precision)
    written = load_folded(open_artifact(tmp_path / "a"), ops=PLAIN)
    made = open_engine(NARROW, precision, "cpu")
    assert made.prompts == written.prompts
    assert largest_difference(made, written, 2, seed=0) == 0
    assert largest_difference(made, open_engine(NARROW, "fp32", "cpu"), 2, seed=0) > 0


def test_random_models_for_a_gpu_are_in_no_file(tmp_path: Path) -> None:
    def get(*rest: Any, reference: str = NARROW, precision: str | None = None, engine: str = "torch") -> Any:
        return prepare(reference, precision, engine, tmp_path, print, lambda *_: None, *rest)

    for engine in ("torch", "auto"):
        model = get("cuda", engine=engine, precision="fp8")
        assert (model.directory, model.loaded, model.engine) == (None, NARROW, "torch")
        assert (model.manifest.precision, model.numbers, model.parameters) == ("fp8", "counted", NARROW)
    assert get("cuda:1").manifest.precision == "int8"
    assert not list(tmp_path.iterdir())
    assert get("cuda", True).directory is not None  # what is read from files
    assert get("cpu").directory is not None
    export(DeviceParameters(NARROW), tmp_path / "a", "int8")
    assert get("cuda", reference=str(tmp_path / "a")).numbers == "counted"  # a peer can have these too


def test_a_worker_makes_what_is_random(tmp_path: Path) -> None:
    spec = {"model": NARROW, "device": "cpu", "precision": "int8", "engine": "torch", "threads": None, "seed": 0}
    ready, handlers = worker.load(spec)
    assert (ready["engine"], ready["precision"], ready["device"]) == ("torch", "int8", "cpu")
    assert ready["weights_bytes"] == make(NARROW, "int8", torch.device("cpu")).bytes
    answer = handlers["latency"]({"batch": 2, "tasks": ["quality"], "warmup": 0, "repeat": 1})
    assert len(answer["scores"][0]) == 2


def test_a_peer_has_the_numbers_of_a_model_in_memory() -> None:
    spec = {"model": NARROW, "device": "cpu", "precision": "fp32", "numbers": "counted"}
    peer = hf_eager.load(parse_spec(json.dumps(spec)))
    pixels = random_pictures(2)
    mine = open_engine(NARROW, "fp32", "cpu")
    found = Scorer(mine).engine.decode(mine.encode(pixels), prompt("quality"))
    weights = np.exp(found) / np.exp(found).sum(1, keepdims=True)
    expected = weights @ np.array([5, 4, 3, 2, 1], np.float32)
    np.testing.assert_allclose(peer.score(peer.prepare(pixels), "quality"), expected, atol=1e-4)
    other = hf_eager.load(parse_spec(json.dumps(spec | {"numbers": "parameter"})))
    assert np.abs(np.array(other.score(other.prepare(pixels), "quality")) - expected).max() > 1e-3


def test_upstreams_own_model_has_them_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(hf_eager.__file__).parent))  # it is a script's sibling there
    own = importlib.import_module("upstream_model")

    class Small(torch.nn.Module):
        def __init__(self, config: object) -> None:
            super().__init__()
            self.norm, self.up = torch.nn.LayerNorm(8), torch.nn.Linear(8, 6, bias=False)

    spec = {"model": NARROW, "device": "cpu", "precision": "fp16", "random_numbers": random_numbers.__file__}
    model = own.random_model(Small, None, parse_spec(json.dumps(spec | {"numbers": "counted"})))
    assert torch.equal(model.up.weight, counted("up.weight", (6, 8), torch.device("cpu")).half())
    assert torch.equal(model.norm.weight, counted("norm.weight", (8,), torch.device("cpu")).half())
    before = own.random_model(Small, None, parse_spec(json.dumps(spec)))
    assert torch.equal(before.up.weight, torch.from_numpy(random_numbers.parameter("up.weight", (6, 8))).half())


def test_only_random_models_are_launched_one_kernel_after_another(tmp_path: Path) -> None:
    from qalign_fast.engines.cuda_graphs import Direct

    with pytest.raises(DeviceError, match=r"only random:\.\.\. is launched in other ways"):
        open_engine(str(tmp_path), None, "cuda:0", Direct(torch.device("cpu")))


def test_the_sweep_is_over_the_models_products() -> None:
    products = model_products(ONE_ALIGN, [64])
    assert products[0] == Product(Shape(77 * 64, 4096, 22016))  # gate and up: most of the arithmetic
    assert Product(Shape(1025 * 64, 1024, 3072), bias=True) in products  # vision's q, k and v
    assert Product(Shape(1025 * 64, 1024, 4096), bias=True, gelu=True) in products
    assert Product(Shape(1025 * 64, 4096, 1024), bias=True, residual=True) in products
    assert Product(Shape(77 * 64, 11008, 4096), residual=True) in products
    assert Product(Shape(65 * 64, 4096, 8192)) in products  # the decoder's k and v


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("m", [12, 77, 1025, 4928])
def test_candidates_fit_the_device_and_are_several(form: str, m: int) -> None:
    tiles = list(candidates(H100, Shape(m, 4096, 4096), form))
    assert len(tiles) > 1
    assert len(set(tiles)) == len(tiles)
    for tile in tiles:
        size = 2 if form == "float16" else 1
        assert (tile.rows + tile.columns) * tile.inputs * size * tile.stages <= H100.shared
        assert tile.rows <= max(16, 2 * m)


def test_tiles_of_which_a_processor_holds_two_are_among_the_candidates() -> None:
    tiles = list(candidates(H100, Shape(64 * 1025, 1024, 4096), "int8"))
    assert Tile(128, 128, 128, 3, 4) in tiles
    assert any(2 * (t.rows + t.columns) * t.inputs * t.stages <= H100.shared for t in tiles)


def test_the_first_way_is_the_rules_tile_and_the_last_one_torchs() -> None:
    found = ways(H100, Shape(4928, 4096, 4096), "int8")
    assert [way.by for way in found] == ["rule", *["candidate"] * (len(found) - 2), "torch"]
    assert len({way.tile for way in found}) == len(found)


def test_a_product_is_timed_at_all_batches_before_the_next_one() -> None:
    groups = by_matrix(BATCHES)
    assert [len(group) for group in groups] == [3] * 11
    for group in groups:
        assert len({what.shape[1:] for what in group}) == 1
        assert [what.shape.m // group[0].shape.m for what in group] == [1, 8, 64]
    timings: list[int] = []
    few = [[Product(Shape(16, 16, 16)), Product(Shape(32, 16, 16))], [Product(Shape(16, 32, 16))]]
    found = sweep(H100, few, ["float16"], torch.device("cpu"), lambda launches: 1e-3, 60)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tune, "linear", lambda *_: torch.zeros(1))
        for so_far in found:
            timings.append(len(so_far))
            assert {(t.m, t.k) for t in so_far} == {(16, 16), (32, 16), (16, 32)} - (
                {(16, 32)} if len(timings) < 2 else set()
            )
    assert len(timings) == 2


def timing(tile: Tile | None, seconds: float | None, m: int = 77, form: str = "int8", by: str = "candidate") -> Timing:
    return Timing(form, m, 4096, 4096, by, list(tile) if tile else None, seconds, 1.0 if seconds else None)


def test_the_fastest_tile_that_ran_is_what_the_table_gives() -> None:
    slow, fast, failed = Tile(64, 64, 128, 3, 4), Tile(16, 128, 128, 4, 4), Tile(128, 128, 128, 4, 8)
    timings = [
        timing(slow, 3e-5, by="rule"),
        timing(fast, 2e-5),
        timing(failed, None),
        timing(None, 2.5e-5, by="torch"),
        timing(slow, 9e-5, m=4928, by="rule"),
        timing(slow, 9e-5, m=9856, by="rule"),
        timing(None, 8e-5, m=9856, by="torch"),
    ]
    assert fastest(timings)["int8", Shape(77, 4096, 4096)].tile == list(fast)
    key = table_key(H100)
    before = {key: {"int8": [[77, 4096, 4096, *slow], [1, 1, 1, *slow]]}, "90/132/3.5.0": {"int8": [[77, 1, 1]]}}
    after = json.loads(table_text(with_fastest(before, H100, timings)))
    assert tile_for(H100, "int8", 77, 4096, 4096, after) == fast
    assert tile_for(H100, "int8", 4000, 4096, 4096, after) == slow
    assert tile_for(H100, "int8", 9000, 4096, 4096, after) is None  # torch's own was faster
    assert [1, 1, 1, *slow] in after[key]["int8"]  # what was not measured this time stays
    assert after["90/132/3.5.0"] == before["90/132/3.5.0"]  # and what another Triton measured
    assert json.loads(table_text({})) == {}
    assert "| int8 | 77 x 4096 x 4096 | 16 128 128 4 4 | 20.0 | 1 | 30.0 | 25.0 |" in summary(timings)
    assert "| int8 | 9856 x 4096 x 4096 | torch | 80.0 | 1 | 90.0 | 80.0 |" in summary(timings)


def test_the_table_is_written_for_the_device_that_a_sweep_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tile, path = Tile(16, 128, 128, 4, 4), tmp_path / "tiles.json"
    path.write_text("{}")
    monkeypatch.setattr(tune, "TABLE", path)
    tune.write_table(H100._asdict(), [timing(tile, 2e-5)])
    assert json.loads(path.read_text()) == {table_key(H100): {"int8": [[77, 4096, 4096, *tile]]}}


@pytest.mark.parametrize("form", FORMS)
def test_the_sweep_runs_under_the_interpreter(form: str, tmp_path: Path) -> None:
    out = tmp_path / "tune.json"
    command = [
        sys.executable,
        "-m",
        "qalign_bench.profiling.tune",
        "--device",
        "cpu",
        "--seconds",
        "1e-3",
        "--json",
        str(out),
    ]
    run = subprocess.run(
        [*command, "--form", form, "--batch", "1"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    times = json.loads(out.read_text())["times"]
    torchs = ["torch"] if form not in ("int8", "int4") else []  # of 16 rows
    assert {t["by"] for t in times} == {"rule", "candidate", *torchs}
    assert not [t for t in times if t["error"]]
    assert "shrunk: no measurement" in json.loads(out.read_text())["device"]
    assert "out of time before" in run.stderr


def test_ceilings_are_taken_at_the_models_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "plain_clock", lambda launches: 1e-3 if launches[0]() is not None else 0.0)
    rows = list(ceilings.measured(torch.device("cpu"), [1]))
    assert len({tuple(row["shape"]) for row in rows if row["what"] == "product"}) > 5
    assert {row["by"] for row in rows if row["what"] == "attention"} == set(BACKENDS.values())
    failed = [row for row in rows if "error" in row]
    assert all(row["what"] == "attention" for row in failed)  # backends that a CPU lacks
    shape = next(row for row in rows if row["what"] == "product")["shape"]
    assert rows[-1]["tops"] == pytest.approx(2e-9 * np.prod(rows[-1]["shape"]))
    assert f"| product | {' x '.join(map(str, shape))} | torch.mm, float16:" in ceilings.table(rows)


def test_gaps_are_what_nothing_covers() -> None:
    spans = [Span("b", 30, 50), Span("a", 0, 10), Span("a", 5, 20), Span("c", 40, 45), Span("a", 60, 100)]
    step = step_of(spans, ["cudaGraphLaunch", "aten::cat", "cudaGraphLaunch", "cudaLaunchKernelExC"])
    assert (step.length, step.busy, step.largest_gap) == (100, 80, 10)
    assert step.gap_share == pytest.approx(0.2)
    assert step.kernels == [("a", 3, 65), ("b", 1, 20), ("c", 1, 5)]
    assert step.host_calls == {"cudaGraphLaunch": 2, "cudaLaunchKernelExC": 1}
    assert "gaps 20.0 % of the step" in table(step)
    others = [step_of([Span("a", 0, length)], []) for length in (300, 50)]
    assert median_step([*others, step]) is step


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


STAND_IN = """#!/usr/bin/env bash
# Python as far as gpu.sh is concerned: writes down what it is asked to do, and does nothing or, where told to, waits
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


def script(tmp_path: Path, *parts: str, slow: str = "no such command", **settings: str) -> subprocess.Popen[str]:
    """gpu.sh on a device that is said to be one, its commands in tmp_path/log."""
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
    """Ended, if nobody has waited for it yet."""
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
    """Part 3, at the smallest sizes: the sweep, and a throughput whose JSON is whole."""
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
