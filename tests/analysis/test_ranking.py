"""Ranks against scipy's, probabilities against `levels.probability_better`."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from qalign_fast.analysis.ranking import better, make_ranking
from qalign_fast.levels import probability_better, score_of


@given(st.lists(st.integers(10, 15), min_size=1, max_size=30))
def test_ranks_are_standard_competition_ranks(values: list[int]) -> None:
    scores = np.array(values) / 10
    places = make_ranking([str(i) for i in range(len(values))], scores, None)
    expected = stats.rankdata(-scores, "min").astype(int)
    assert {place.source: place.rank for place in places} == {str(i): rank for i, rank in enumerate(expected.tolist())}
    assert [place.tied for place in places] == [values.count(round(10 * place.score)) for place in places]
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))  # ties in the order in which they come
    assert [place.source for place in places] == [str(i) for i in order]


def test_scores_tie_to_four_digits() -> None:
    places = make_ranking(list("abcd"), np.array([3.00004, 2.0, 3.00001, 2.0002]), None)
    assert [(place.rank, place.source, place.tied) for place in places] == [
        (1, "a", 2),
        (1, "c", 2),
        (3, "d", 1),
        (4, "b", 1),
    ]


def test_neighbours_are_compared_as_levels_does() -> None:
    logits = np.random.default_rng(0).normal(0, 2, (20, 5)).astype(np.float32)
    scores = [score_of(row, "quality") for row in logits]
    probabilities = np.array([list(score.probabilities.values()) for score in scores])
    places = make_ranking([str(i) for i in range(20)], np.array([score.value for score in scores]), probabilities)
    ranked = [scores[int(place.source)] for place in places]
    for place, a, b in zip(places, ranked, ranked[1:]):
        assert place.better_than_next == pytest.approx(probability_better(a, b), abs=1e-12)
    assert places[-1].better_than_next is None


def test_the_same_picture_is_better_than_itself_half_the_time() -> None:
    p = np.random.default_rng(1).dirichlet(np.ones(5), 10)
    np.testing.assert_allclose(better(p, p), 0.5, rtol=0, atol=1e-12)
    certain = np.eye(5)
    np.testing.assert_array_equal(better(certain[:-1], certain[1:]), np.ones(4))


def test_a_row_without_probabilities_has_no_neighbour_to_compare() -> None:
    p = np.array([[1.0, 0, 0, 0, 0], [np.nan] * 5, [0, 0, 0, 0, 1.0]])
    assert [place.better_than_next for place in make_ranking(list("abc"), np.array([5.0, 3, 1]), p)] == [None] * 3
    assert make_ranking([], np.empty(0), np.empty((0, 5))) == []
