"""The machine while a number is taken: whether it is quiet, and the joules that it uses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qalign_bench.figures import energy, machine_noise


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
