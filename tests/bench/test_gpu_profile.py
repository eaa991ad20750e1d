"""Measurements on a GPU beside tiles: the ceilings of libraries, and the gaps between kernels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="Triton is for Linux")

from qalign_bench.profiling import ceilings
from qalign_bench.profiling.kernel_times import Span, median_step, step_of, table
from qalign_kernels.contract.attention import BACKENDS


def test_ceilings_are_taken_at_the_models_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "clock_of", lambda _: lambda launches: 1e-3 if launches[0]() is not None else 0.0)
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
