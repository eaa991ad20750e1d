"""A server that is loaded for minutes holds no more memory, descriptors and threads than before; a leak would be seen.

The server runs as users run it, on the C++ kernels. QALIGN_FULL=1 doubles the time; bench/studies/server_soak.py is the
same for ten minutes and more.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import server_soak
from qalign_fast.references import EMBEDDED
from support.amount import FULL

SIZE = (640, 480)  # of the pictures
SECONDS, CONTROL_SECONDS = (120.0 if FULL else 60.0), 30.0


@pytest.mark.usefixtures("kernels")
def test_nothing_grows_under_steady_load(tmp_path: Path) -> None:
    found = server_soak.study(tmp_path, str(EMBEDDED), SECONDS, size=SIZE)
    assert found["holds"], [window["verdicts"] for window in found["windows"]]
    outcomes = found["windows"][-1]["outcomes"]
    assert outcomes["right"] > 0
    assert outcomes["left"] > 0


@pytest.mark.usefixtures("kernels")
def test_a_server_that_leaks_is_caught(tmp_path: Path) -> None:
    """The same server, which keeps the first 32 KB of each body."""
    found = server_soak.study(tmp_path, str(EMBEDDED), CONTROL_SECONDS, leak=True, size=SIZE, most_windows=1)
    assert [name for name, verdict in found["verdicts"].items() if not verdict["holds"]] == ["memory_mb_per_minute"]
    assert found["verdicts"]["memory_mb_per_minute"]["value"] > 2 * server_soak.MOST_MB_PER_MINUTE


def test_the_slope_is_that_of_most_points() -> None:
    seconds = np.arange(0.0, 100.0)
    bytes_held = 5e8 + 2e5 * seconds
    assert server_soak.slope_of(seconds, bytes_held) == pytest.approx(2e5)
    bytes_held[::7] += 1e8  # some samples were taken in the middle of something
    assert server_soak.slope_of(seconds, bytes_held) == pytest.approx(2e5, rel=0.05)
    warming = np.where(seconds < 30, 3e6 * seconds, 9e7)
    assert server_soak.slope_of(seconds, warming, after=30.0) == 0
    assert server_soak.slope_of(seconds, warming) > 0
    assert server_soak.slope_of([1.0], [5.0]) == 0


@pytest.mark.parametrize(
    ("values", "grown"),
    [
        ([9, 9, 5, 5, 5, 5, 5, 5], 0),
        ([5, 5, 5, 9, 5, 5, 9, 5], 0),  # comes and goes
        ([5, 5, 5, 5, 5, 6, 6, 6], 1),
        ([1, 2, 3, 4, 5, 6, 7, 8], 3),
        ([5], 0),
        ([], 0),
    ],
)
def test_growth_is_what_is_never_given_back(values: list[int], grown: int) -> None:
    assert server_soak.growth_of(values) == grown
