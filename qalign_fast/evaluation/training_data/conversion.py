"""Labels in; the level word of each, and what is lost on the way, out.

Source: Q-Align (ICML 2024), section 3.1: equation 1 makes levels of labels, table 2 says what that costs.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from qalign_fast.analysis.measures import pearson, spearman
from qalign_fast.errors import ListError
from qalign_fast.evaluation.training_data.labels import Labels
from qalign_fast.levels import FIVE_LEVELS, level_of

if TYPE_CHECKING:
    import numpy.typing as npt

    Numbers = npt.NDArray[np.float64]


RISING = FIVE_LEVELS.words[::-1]


@dataclass(frozen=True)
class Conversion:
    """The levels of N labels.

    low, high: the ends of the labels' scale, which is cut into five equal intervals. lower_better: whether low is the
    best end. words: the level of each label [N]. plcc, srcc: the correlation of the labels and of the values that their
    levels have (5 to 1), both rising with quality; None where all levels are the same.
    """

    low: float
    high: float
    lower_better: bool
    words: tuple[str, ...]
    plcc: float | None
    srcc: float | None

    @property
    def counts(self) -> dict[str, int]:
        """How many labels have each level, the best level first."""
        return {word: self.words.count(word) for word in FIVE_LEVELS.words}


def convert(
    labels: Labels,
    low: float | None = None,
    high: float | None = None,
    *,
    lower_better: bool = False,
    clip: bool = False,
) -> Conversion:
    """The level of each label, by equation 1. An end of the scale that is None is that of the labels themselves.

    Where lower is better, equation 1 is applied to the negated labels, so that words follow quality. Labels are
    compared as their decimals say. With `clip`, a label beyond an end of the scale has the level of that end. Raises
    ListError for a label that is not on the scale without it, and for a scale without length.
    """
    low = min(labels.values) if low is None else low
    high = max(labels.values) if high is None else high
    if not low < high:
        raise ListError(f"{labels.source}: its scale goes from {low:g} to {high:g}; --low and --high say another one")
    if not clip:
        _check_inside(labels, low, high)
    sign = -1 if lower_better else 1
    worst, best = sorted((sign * _exactly(low), sign * _exactly(high)))
    level = _levels(labels.values, worst, best, sign)
    words = tuple(level[value] for value in labels.values)
    quality = sign * np.array(labels.values, np.float64)
    return Conversion(low, high, lower_better, words, *cost(words, quality))


def cost(words: tuple[str, ...], quality: Numbers) -> tuple[float | None, float | None]:
    """PLCC and SRCC of labels [N], rising with quality, and of the values of their level words [N]."""
    worth = dict(zip(FIVE_LEVELS.words, FIVE_LEVELS.values, strict=True))
    values = np.array([worth[word] for word in words], np.float64)
    return pearson(values, quality), spearman(values, quality)


def _levels(values: Iterable[float], worst: Fraction, best: Fraction, sign: int) -> dict[float, str]:
    """The level of each label that there is. They rise with quality, so that their edges are found by halving."""

    def place(value: float) -> int:
        return RISING.index(level_of(min(max(sign * _exactly(value), worst), best), worst, best))

    ordered = sorted(set(values), key=lambda value: sign * value)
    level: dict[float, str] = {}
    start = 0
    for number, word in enumerate(RISING):
        end = bisect_right(ordered, number, start, key=place)
        level |= dict.fromkeys(ordered[start:end], word)
        start = end
    return level


def _check_inside(labels: Labels, low: float, high: float) -> None:
    for value, line in zip(labels.values, labels.lines, strict=True):
        if not low <= value <= high:
            found = f"the label {value:.12g} is not on the scale {low:.12g} to {high:.12g}"
            raise ListError(f"{labels.source}: line {line}: {found}; --clip gives it the level of the nearer end")


def _exactly(number: float) -> Fraction:
    """The decimals that stand for a double: 6.4 is 32/5, which no double is."""
    return Fraction(repr(float(number)))
