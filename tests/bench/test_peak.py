"""The measured peak: the products that there are, how the fastest is found, and the datasheets' figures beside it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest

from qalign_bench.contestants import peak
from qalign_bench.contestants.matrix_products import products
from qalign_bench.figures.datasheets import datasheet_gops
from qalign_bench.scenarios import forwards
from support.bench import session


class Clocked:
    """Products of known speeds in GOP/s, with a clock to match. It keeps what was timed."""

    def __init__(self, speeds: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
        self.timed: list[tuple[str, Any]] = []
        makers = {by: lambda shape, by=by: lambda: (by, shape) for by in speeds}
        monkeypatch.setattr(peak, "products", lambda *_: makers)
        monkeypatch.setattr(peak, "_time", lambda run, _: self.time(*run(), speeds))

    def time(self, by: str, shape: tuple[int, int, int], speeds: dict[str, float]) -> float:
        self.timed.append((by, shape))
        return peak._gop(shape) / speeds[by]


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
    """torch._scaled_mm takes minutes on a CPU, for it uses one core, and no engine here uses it."""
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
