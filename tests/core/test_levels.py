from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from qalign_fast.levels import LEVELS, Score, level_of, probability_better, score_of


def test_a_score_is_the_weighted_softmax() -> None:
    logits = np.array([2.0, 1.0, 0.0, -1.0, 0.5], np.float32)
    exp = [math.exp(x) for x in logits]
    expected = sum(w * e for w, e in zip((5, 4, 3, 2, 1), exp)) / sum(exp)
    score = score_of(logits, "quality")
    assert score.value == pytest.approx(expected, abs=1e-6)
    assert score.unit == pytest.approx((expected - 1) / 4, abs=1e-6)
    assert list(score.probabilities) == list(LEVELS)
    assert sum(score.probabilities.values()) == pytest.approx(1, abs=1e-6)
    assert score.level == "good"  # 4.05, although "excellent" is the likeliest single word
    assert score.logits == tuple(logits)


def test_a_score_does_not_move_with_all_logits() -> None:
    logits = np.array([3.0, -2.0, 0.5, 1.0, 0.0], np.float32)
    assert score_of(logits + 1000, "quality").value == pytest.approx(score_of(logits, "quality").value, abs=1e-4)


def test_certain_levels_reach_both_ends_of_the_scale() -> None:
    for value, i in zip((5, 4, 3, 2, 1), range(5)):
        logits = np.full(5, -100, np.float32)
        logits[i] = 100
        assert score_of(logits, "quality").value == value


@pytest.mark.parametrize(
    ("mos", "level"),
    [
        (0, "bad"),  # the lowest interval holds its lower end too
        (20, "bad"),  # closed at the upper end
        (20.001, "poor"),
        (40, "poor"),
        (60, "fair"),
        (60.001, "good"),
        (80, "good"),
        (80.001, "excellent"),
        (100, "excellent"),
    ],
)
def test_rating_to_level_is_five_equal_intervals_closed_above(mos: float, level: str) -> None:
    assert level_of(mos, 0, 100) == level


@pytest.mark.parametrize(("low", "high"), [(1, 10), (0, 9), (0, 3), (1, 5), (0, 100)])
def test_a_rating_on_the_edge_of_two_levels_has_the_lower_one(low: int, high: int) -> None:
    """In doubles as in fractions, on scales of whole numbers: AVA's is 1 to 10, where 6.4 is fair."""
    for i, word in enumerate(LEVELS[:0:-1], 1):
        edge = low + Fraction(i, 5) * (high - low)
        assert level_of(float(edge), low, high) == word
        assert level_of(edge, Fraction(low), Fraction(high)) == word


def test_a_rating_off_its_scale_is_refused() -> None:
    for mos in (-0.1, 100.1, float("nan")):
        with pytest.raises(ValueError, match="not on a scale"):
            level_of(mos, 0, 100)


def test_a_scores_level_does_not_depend_on_the_order_of_its_probabilities() -> None:
    score = score_of(np.array([9, 1, 0, 0, 0], np.float32), "quality")
    again = Score("quality", score.value, score.logits, dict(sorted(score.probabilities.items())))
    assert (again.level, again.unit) == ("excellent", score.unit)
    assert Score("quality", 3.0, (), {}).level == "fair"


def test_the_probability_of_being_better_counts_a_tie_as_half() -> None:
    sure, other = (score_of(np.array(row, np.float32), "quality") for row in ([50, 0, 0, 0, 0], [0, 50, 0, 0, 0]))
    even = score_of(np.zeros(5, np.float32), "quality")
    assert probability_better(sure, other) == pytest.approx(1)
    assert probability_better(other, sure) == pytest.approx(0)
    assert probability_better(even, even) == pytest.approx(0.5)
    assert probability_better(sure, even) == pytest.approx(0.8 + 0.2 / 2)
    a, b = (score_of(np.array(row, np.float32), "quality") for row in ([1, 2, 0, -1, 0], [0, 0, 1, 2, 3]))
    p, q = (list(score.probabilities.values()) for score in (a, b))
    above = sum(p[i] * q[j] for i in range(5) for j in range(5) if i < j) + sum(x * y for x, y in zip(p, q)) / 2
    assert probability_better(a, b) == pytest.approx(above)
