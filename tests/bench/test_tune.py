"""The sweep of tiles: the products and tiles that it tries, and the tiles that the table keeps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is for Linux")

from qalign_bench.profiling import tile_timings, tune
from qalign_bench.profiling.model_products import BATCHES, Product, Shape, by_matrix, model_products
from qalign_bench.profiling.tile_candidates import candidates, ways
from qalign_bench.profiling.tile_timings import Timing, fastest, summary, table_text, with_fastest, write_table
from qalign_bench.profiling.tune import FORMS, sweep
from qalign_export.parameters import ONE_ALIGN
from qalign_kernels.cuda.launch import Device
from qalign_kernels.cuda.tiles import Tile, table_key, tile_for

H100 = Device(90, 132, 227 * 1024)


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
    monkeypatch.setattr(tile_timings, "TABLE", path)
    write_table(H100._asdict(), [timing(tile, 2e-5)])
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
