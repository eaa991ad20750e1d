"""The bootstrap's figures against scipy's, its errors against theory, and its intervals against the truth."""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy import stats

from qalign_fast.analysis.resampling import Bootstrap, pearson_figure, spearman_figure
from support.amount import FULL

if TYPE_CHECKING:
    from qalign_fast.analysis.resampling import Figure

Pairs = tuple[np.ndarray, np.ndarray]


def correlated(rho: float, n: int, dice: np.random.Generator) -> Pairs:
    """n independent pairs of two normal variables."""
    x = dice.standard_normal(n)
    return x, rho * x + sqrt(1 - rho**2) * dice.standard_normal(n)


def in_scenes(scenes: int, each: int, dice: np.random.Generator) -> Pairs:
    """Distorted versions of scenes; a scene's content shifts all its scores."""
    quality = dice.standard_normal(scenes * each)
    content = 0.3 * np.repeat(dice.standard_normal(scenes), each)
    return quality, quality + content + 0.3 * dice.standard_normal(len(quality))


def names(units: int, each: int = 1) -> list[str]:
    return [str(i // each) for i in range(units * each)]


@pytest.mark.parametrize("digits", [12, 1, 0])  # 0: nearly all tie
def test_a_draws_figures_are_scipys_of_the_pairs_in_it(digits: int) -> None:
    dice = np.random.default_rng(digits)
    x, y = (np.round(v, digits) for v in correlated(0.7, 60, dice))
    counts = dice.multinomial(60, np.full(60, 1 / 60), size=5).astype(float)
    for figure, theirs in ((pearson_figure, stats.pearsonr), (spearman_figure, stats.spearmanr)):
        found, _ = figure(x, y)(counts)
        expected = [theirs(np.repeat(x, c.astype(int)), np.repeat(y, c.astype(int))).statistic for c in counts]
        np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("figure", [pearson_figure, spearman_figure])
def test_a_pairs_influence_is_the_figures_slope_in_its_weight(figure: Figure) -> None:
    x, y = correlated(0.8, 400, np.random.default_rng(0))
    even, step = np.ones((1, 400)), 1e-4
    value, influence = figure(x, y)(even)
    for i in (0, 17, 399):
        more = even.copy()
        more[0, i] += step
        slope = (figure(x, y)(more)[0] - value) / step * 400
        # Spearman's: ranks of so few pairs are not yet the distribution function
        assert slope[0] == pytest.approx(influence[0, i], abs=1e-3 if figure is pearson_figure else 2e-2)


def test_the_same_seed_gives_the_same_interval() -> None:
    x, y = correlated(0.8, 50, np.random.default_rng(0))
    first, again, other = (Bootstrap(names(50), 200, seed).srcc(x, y) for seed in (1, 1, 2))
    assert first == again != other


def test_the_order_of_pairs_does_not_matter() -> None:
    x, y = in_scenes(12, 5, np.random.default_rng(0))
    order = np.random.default_rng(1).permutation(60)
    units = names(12, 5)
    found = Bootstrap(units).srcc(x, y)
    mixed = Bootstrap([units[i] for i in order]).srcc(x[order], y[order])
    assert (found.value, found.low, found.high) == pytest.approx((mixed.value, mixed.low, mixed.high), abs=1e-12)


def test_what_has_no_interval_says_so() -> None:
    few, flat = Bootstrap(["a", "a", "b"]), Bootstrap(names(5))
    rising = np.arange(5.0)
    assert few.srcc(rising[:3], rising[:3] ** 2).low is None
    assert few.srcc(rising[:3], rising[:3] ** 2).value == 1
    assert flat.srcc(rising, np.ones(5)).value is None
    assert flat.srcc(rising, rising) == flat.plcc(rising, rising)
    assert (flat.mean(np.full(5, 0.25)).low, flat.mean(np.full(5, 0.25)).high) == (0.25, 0.25)
    assert Bootstrap([]).mean(np.empty(0)).value is None


# pictures or clips of a list, its published SRCC, and the 95 % half-width of it that is quoted for so many
LISTS = {
    "KonIQ": (2010, 0.941, 0.005),
    "LSVQ": (7186, 0.886, 0.005),
    "LSVQ 1080p": (3573, 0.803, 0.012),
    "AGIQA": (2982, 0.801, 0.013),
    "LIVE-C": (1169, 0.881, 0.013),
    "KoNViD": (1200, 0.876, 0.014),
    "LIVE": (982, 0.887, 0.015),
    "CSIQ": (750, 0.881, 0.019),
}


@pytest.mark.parametrize("name", LISTS)
def test_half_widths_of_known_lists_come_out(name: str) -> None:
    n, srcc, half = LISTS[name]
    pearson = 2 * np.sin(np.pi * srcc / 6)  # of normal variables with this Spearman's correlation
    widths = []
    for seed in range(4):
        found = Bootstrap(names(n), 600, seed).srcc(*correlated(pearson, n, np.random.default_rng(seed)))
        widths.append((found.high - found.low) / 2)
    # The quoted ones have three digits, and are of real scores; normal ones have a little wider intervals.
    assert np.mean(widths) == pytest.approx(half, abs=0.0005 + 0.15 * half)
    theory = 1.96 * (1 - srcc**2) * sqrt((1 + srcc**2 / 2) / n)  # Bonett and Wright, Psychometrika 2000
    assert np.mean(widths) == pytest.approx(theory, rel=0.15)


TIMES = 2000 if FULL else 400


@pytest.mark.parametrize("figure", ["srcc", "plcc"])
@pytest.mark.parametrize(("units", "each"), [(200, 1), (60, 5)])
def test_intervals_cover_the_truth_as_often_as_they_say(units: int, each: int, figure: str) -> None:
    slack = 0 if FULL else 0.01  # what a share of 400 may be off by chance
    assert 0.93 - slack <= coverage(units, each, figure) <= 0.97 + slack


@pytest.mark.parametrize("figure", ["srcc", "plcc"])
def test_intervals_of_few_units_are_a_little_too_narrow(figure: str) -> None:
    """With 30 units 92.7 % of 2000 intervals of PLCC held the truth."""
    assert 0.91 <= coverage(30, 10, figure) <= 0.98


def coverage(units: int, each: int, figure: str) -> float:
    """The share of simulated data sets whose 95 % interval holds the true correlation."""
    truth, covered = true_correlation(figure, each), 0
    for seed in range(TIMES):
        dice = np.random.default_rng([seed, units])
        pairs = correlated(0.9, units, dice) if each == 1 else in_scenes(units, each, dice)
        found = getattr(Bootstrap(names(units, each), 500, seed), figure)(*pairs)
        covered += found.low <= truth <= found.high
    return covered / TIMES


def true_correlation(figure: str, each: int) -> float:
    """Of normal variables: Pearson's, and the Spearman's that belongs to it."""
    pearson = 0.9 if each == 1 else 1 / sqrt(1 + 0.3**2 + 0.3**2)
    return pearson if figure == "plcc" else float(6 / np.pi * np.arcsin(pearson / 2))


def test_a_paired_interval_sees_what_two_apart_cannot() -> None:
    dice = np.random.default_rng(0)
    labels, old = correlated(0.94, 2010, dice)
    new = old + 0.08 * dice.standard_normal(2010)  # what rounding might do
    draws = Bootstrap(names(2010), 1000)
    change, before, after = draws.srcc_change(old, new, labels), draws.srcc(old, labels), draws.srcc(new, labels)
    assert change.value == pytest.approx(after.value - before.value, abs=1e-12)
    assert change.low < change.high < 0
    assert before.low < after.value  # apart, nothing is to be seen
    assert change.high - change.low < (before.high - before.low) / 3
    assert draws.plcc_change(old, new, labels).high < 0
