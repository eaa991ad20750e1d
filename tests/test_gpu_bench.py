"""What bench/gpu.sh runs, as far as it needs no GPU: random artifacts, the sweep of tiles, the profile's arithmetic."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import GOLDEN, ROOT

pytest.importorskip("triton", reason="Triton is for Linux")

from qalign_bench import tune
from qalign_bench.device_export import DeviceSource, export, pack_on_device
from qalign_bench.kernel_times import Span, median_step, step_of, table
from qalign_bench.tune import (
    FORMS,
    Product,
    Shape,
    Timing,
    candidates,
    fastest,
    model_products,
    summary,
    table_text,
    with_fastest,
)
from qalign_export.source import ONE_ALIGN
from qalign_fast import Scorer
from qalign_fast.prompt import prompt
from qalign_kernels.tiles import Tile, table_key, tile_for
from qalign_kernels.triton_runtime import Device

H100 = Device(90, 132, 227 * 1024)
NARROW = f"random:{GOLDEN / 'narrow-112'}"


@pytest.mark.parametrize("precision", ["fp16", "fp8", "int8", "int4"])
def test_a_random_artifact_scores(precision: str, tmp_path: Path) -> None:
    export(DeviceSource(NARROW, torch.device("cpu")), tmp_path / "a", precision)
    scorer = Scorer.load(tmp_path / "a")
    assert scorer.engine.precision == precision
    scores = scorer.score([ROOT / "samples/coffee.jpg", ROOT / "samples/rocket.jpg"])
    assert scores[0].value != scores[1].value


@pytest.mark.parametrize("precision", ["fp16", "fp8", "int8", "int4"])
def test_all_of_a_random_model_is_made_on_its_device(precision: str) -> None:
    """meta stands in for a GPU: what meets a tensor on the CPU there is an error."""
    places = set()
    source = DeviceSource(NARROW, torch.device("meta"))
    packed = pack_on_device(source, precision, [prompt("quality")], lambda _, x: places.add(x.device.type))
    places |= {x.device.type for x in (*packed.prefixes.values(), *packed.suffixes.values())}
    assert places == {"meta"}


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


@pytest.mark.parametrize("form", [form for form in FORMS if form != "int4"])
def test_the_sweep_runs_under_the_interpreter(form: str, tmp_path: Path) -> None:
    out = tmp_path / "tune.json"
    command = [sys.executable, "-m", "qalign_bench.tune", "--device", "cpu", "--seconds", "1e-3", "--json", str(out)]
    run = subprocess.run(
        [*command, "--form", form, "--batch", "1"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    times = json.loads(out.read_text())["times"]
    assert {t["by"] for t in times} == {"rule", "candidate", *(["torch"] if form != "int8" else [])}  # of 16 rows
    assert not [t for t in times if t["error"]]
    assert "shrunk: no measurement" in json.loads(out.read_text())["device"]
    assert "out of time before" in run.stderr


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
