"""Statistics of times: percentiles, the range of the rounds' medians, ratios round by round."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from qalign_bench.figures.spread import median, percentile, ratio, spread


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
