"""Times by round in, the figures that are printed out: percentiles, the spread of a median, the ratio of two series.

A round's median is steadier than one time, so the spread is the range of the rounds' medians. The same machine an hour
later should give a median within it. Percentiles are nearest-rank: each is a time that was measured, and the median of
all times always lies within the spread.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Rounds = Sequence[Sequence[float]]  # the times of each round


@dataclass(frozen=True)
class Spread:
    """A middle value, and the least and the largest value of a round."""

    middle: float
    low: float
    high: float


def percentile(values: Sequence[float], share: float) -> float:
    """The least value that is not exceeded by a `share` (0..1) of all values."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def median(values: Sequence[float]) -> float:
    """The percentile of one half: a value that was measured, the lower one of two in the middle."""
    return percentile(values, 0.5)


def spread(rounds: Rounds) -> Spread:
    """The median of all times, and the range of the rounds' medians."""
    medians = [median(times) for times in rounds]
    return Spread(median([t for times in rounds for t in times]), min(medians), max(medians))


def ratio(slow: Sequence[float], fast: Sequence[float]) -> Spread:
    """How many times `fast` fits into `slow`, both medians by round: the median and range of the rounds' ratios."""
    ratios = [a / b for a, b in zip(slow, fast)]
    return Spread(median(ratios), min(ratios), max(ratios))
