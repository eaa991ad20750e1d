"""Distances, shifts and orders against scipy, and against counting pair by pair."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from qalign_fast.analysis.measures import (
    Z95,
    flip_share,
    flips,
    inversions,
    ks_distance,
    mean_ranks,
    paired_shift,
    pearson,
    spearman,
    welch_shift,
)
from qalign_fast.analysis.scales import from_unit, level_places, score_from, share_from, to_unit
from qalign_fast.errors import OptionError
from qalign_fast.levels import LEVELS, level_of

few = st.lists(st.integers(0, 5), min_size=2, max_size=40)  # with many ties
pairs = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=40)


def draw(seed: int, count: int, digits: int = 4) -> np.ndarray:
    return np.round(np.random.default_rng(seed).normal(3, 0.5, count), digits)


@pytest.mark.parametrize(("m", "n", "digits"), [(1, 1, 4), (30, 50, 4), (300, 200, 1), (1000, 1000, 2)])
def test_ks_is_scipys(m: int, n: int, digits: int) -> None:
    a, b = draw(1, m, digits), draw(2, n, digits) + 0.1
    assert ks_distance(a, b) == pytest.approx(stats.ks_2samp(a, b).statistic, abs=1e-15)


@given(few, few)
def test_ks_is_scipys_with_ties(a: list[int], b: list[int]) -> None:
    expected = stats.ks_2samp(a, b, method="asymp").statistic
    assert ks_distance(np.array(a, float), np.array(b, float)) == pytest.approx(expected, abs=1e-15)


@given(pairs)
def test_flips_are_those_counted_pair_by_pair(found: list[tuple[int, int]]) -> None:
    old, new = np.array(found, float).T
    expected = sum((a[0] - b[0]) * (a[1] - b[1]) < 0 for a, b in combinations(found, 2))
    assert flips(old, new) == expected
    assert flip_share(old, new) == expected / (len(found) * (len(found) - 1) // 2)


@given(pairs)
def test_spearman_is_scipys(found: list[tuple[int, int]]) -> None:
    old, new = np.array(found, float).T
    if len(set(old)) == 1 or len(set(new)) == 1:
        assert spearman(old, new) is None
    else:
        assert spearman(old, new) == pytest.approx(stats.spearmanr(old, new).statistic, abs=1e-12)


@given(pairs)
def test_pearson_is_scipys(found: list[tuple[int, int]]) -> None:
    old, new = np.array(found, float).T
    if len(set(old)) == 1 or len(set(new)) == 1:
        assert pearson(old, new) is None
    else:
        assert pearson(old, new) == pytest.approx(stats.pearsonr(old, new).statistic, abs=1e-12)


def test_flips_of_many_rows_agree_with_kendalls_tau() -> None:
    """Without ties tau is 1 - 4 flips / (n (n - 1))."""
    rng = np.random.default_rng(0)
    old, new = rng.permutation(20_000).astype(float), rng.permutation(20_000).astype(float)
    tau = stats.kendalltau(old, new).statistic
    assert flip_share(old, new) == pytest.approx((1 - tau) / 2, abs=1e-12)


def test_inversions_of_a_reversed_list_are_all_pairs() -> None:
    assert inversions(np.arange(1000)[::-1]) == 499_500
    assert inversions(np.arange(1000)) == inversions(np.zeros(5, int)) == inversions(np.empty(0, int)) == 0


def test_ranks_are_scipys() -> None:
    values = draw(3, 500, 1)
    np.testing.assert_array_equal(mean_ranks(values), stats.rankdata(values))


def test_the_paired_interval_is_the_normal_one() -> None:
    old, new = draw(1, 400), draw(1, 400) + draw(2, 400) / 10
    found = paired_shift(old, new)
    expected = stats.norm.interval(0.95, loc=np.mean(new - old), scale=stats.sem(new - old))
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-12)
    assert (found.mean, found.count) == (pytest.approx(np.mean(new - old)), 400)


def test_the_unpaired_interval_has_welchs_variance() -> None:
    old, new = draw(1, 400), 1.5 * draw(2, 150)
    found, welch = welch_shift(old, new), stats.ttest_ind(new, old, equal_var=False)
    error = (np.mean(new) - np.mean(old)) / welch.statistic  # the statistic is the shift over its error
    assert (found.mean, found.count) == (pytest.approx(new.mean() - old.mean()), 150)
    assert (found.low, found.high) == pytest.approx((found.mean - Z95 * error, found.mean + Z95 * error))
    assert pytest.approx(stats.norm.ppf(0.975), abs=1e-15) == Z95


def test_what_cannot_be_computed_is_none() -> None:
    none, one = np.empty(0), np.array([3.0])
    assert ks_distance(none, one) is spearman(one, one) is flip_share(one, one) is None
    assert (paired_shift(none, none).mean, paired_shift(one, one).mean, paired_shift(one, one).low) == (None, 0.0, None)
    assert (welch_shift(none, one).mean, welch_shift(one, one).low) == (None, None)


def test_levels_of_arrays_are_level_of() -> None:
    scores = np.concatenate([np.round(np.arange(1, 5.0001, 0.01), 2), [1.8, 2.6, 3.4, 4.2, np.nextafter(1.8, 2), 5]])
    scores = np.clip(scores, 1, 5)
    assert [LEVELS[i] for i in level_places(scores, (1, 5))] == [level_of(s, 1, 5) for s in scores.tolist()]


@given(st.integers(10_000, 50_000))
def test_both_scales_say_the_same_score(value: int) -> None:
    score = value / 10_000
    assert to_unit(score, (1, 5)) == float(Fraction(value - 10_000, 40_000))  # 3.4692 is 0.6173, with no digits behind
    assert from_unit(repr(to_unit(score, (1, 5))), (1, 5)) == score


def test_shares_and_scores_are_read_exactly() -> None:
    assert share_from("30%") * 10 == 3
    assert share_from("7%") * 100 == 7  # 0.07 * 100 is 7.000000000000001
    assert score_from("3.2", (1, 5)) == from_unit("0.55", (1, 5)) == 3.2
    for read in (share_from, lambda text: score_from(text, (1, 5)), lambda text: from_unit(text, (1, 5))):
        for wrong in ("", "x", "nan", "-1", "101%", "6", "0%"):
            with pytest.raises(OptionError):
                read(wrong)
