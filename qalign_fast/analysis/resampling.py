"""Pairs of numbers in, 95 % intervals of their correlations out, by a bootstrap that draws whole units.

A unit is what was drawn when the data were made: a reference picture with all its distorted copies, a source video, a
prompt. A draw is a count for each pair, which is all that a correlation needs: nothing is sorted again for a draw.

The interval is the studentized bootstrap's ("bootstrap-t": Efron and Tibshirani, An Introduction to the Bootstrap,
1993, section 12.5). Correlations are taken to Fisher's z, on which their spread hardly depends on their size. The
standard error, of the data and of each draw, is from the influence of each pair, summed over its unit. Percentiles of
the draws alone are too narrow where there are few units.

Letters: R draws, r some of them, n pairs, U units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Numbers: TypeAlias = npt.NDArray[np.float64]
    # counts [r, n] of pairs -> a figure [r] and each pair's influence on it [r, n]
    Figure: TypeAlias = Callable[[Numbers], tuple[Numbers, Numbers]]

DRAWS = 2000
FEWEST = 3  # units; fewer say nothing of a spread
_AT_A_TIME = 1_000_000  # counts of draws that are held in memory
_LARGEST = 1 - 1e-12  # correlation that Fisher's z takes


@dataclass(frozen=True)
class Interval:
    """A figure and its 95 % interval, which is None where it has none: of fewer than FEWEST units, of constants.

    units: how many units were drawn from.
    """

    value: float | None
    low: float | None
    high: float | None
    units: int


class Bootstrap:
    """Draws of units, the same ones for every figure that is asked for."""

    def __init__(self, units: Sequence[str], draws: int = DRAWS, seed: int = 0) -> None:
        """units: the name [n] of each pair's unit. The same seed gives the same draws."""
        _, codes = np.unique(np.array(units, str), return_inverse=True)
        self._order = np.argsort(codes, kind="stable")
        self._codes = codes[self._order]  # pairs of a unit stand together
        self._firsts = np.flatnonzero(np.diff(self._codes, prepend=-1))
        self._draws, self._seed = draws, seed

    @property
    def units(self) -> int:
        """U."""
        return len(self._firsts)

    def srcc(self, x: Numbers, y: Numbers) -> Interval:
        """Of Spearman's correlation of x and y [n]."""
        return self._interval(spearman_figure(*self._sorted(x, y)), _to_z)

    def plcc(self, x: Numbers, y: Numbers) -> Interval:
        """Of Pearson's correlation of x and y [n]."""
        return self._interval(pearson_figure(*self._sorted(x, y)), _to_z)

    def mean(self, x: Numbers) -> Interval:
        """Of the mean of x [n]."""
        return self._interval(mean_figure(*self._sorted(x)), _as_it_is)

    def srcc_change(self, old: Numbers, new: Numbers, y: Numbers) -> Interval:
        """Of the SRCC of `new` with y, less that of `old` with y, each [n]; drawn together, as they are paired."""
        old, new, y = self._sorted(old, new, y)
        return self._interval(_difference(spearman_figure(new, y), spearman_figure(old, y)), _as_it_is)

    def plcc_change(self, old: Numbers, new: Numbers, y: Numbers) -> Interval:
        """The same of the PLCC."""
        old, new, y = self._sorted(old, new, y)
        return self._interval(_difference(pearson_figure(new, y), pearson_figure(old, y)), _as_it_is)

    def _sorted(self, *values: Numbers) -> tuple[Numbers, ...]:
        return tuple(np.asarray(v, np.float64)[self._order] for v in values)

    def _counts(self) -> Iterator[Numbers]:
        """How often each pair is in each draw: [r, n], some draws at a time."""
        dice, step = np.random.default_rng(self._seed), max(1, _AT_A_TIME // len(self._codes))
        for first in range(0, self._draws, step):
            drawn = dice.integers(0, self.units, (min(step, self._draws - first), self.units))
            drawn += np.arange(len(drawn))[:, None] * self.units
            counts = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
            yield counts[:, self._codes].astype(np.float64)

    def _interval(self, figure: Figure, scale: _Scale) -> Interval:
        if not len(self._codes):
            return Interval(None, None, None, 0)
        value, error = (float(v[0]) for v in self._studentize(figure, np.ones((1, len(self._codes)))))
        if not np.isfinite(value):
            return Interval(None, None, None, self.units)
        if self.units < FEWEST:
            return Interval(value, None, None, self.units)
        if error <= 1e-12:  # the same in every draw
            return Interval(value, value, value, self.units)
        to, back, slope = scale
        steps = []
        for counts in self._counts():
            drawn, errors = self._studentize(figure, counts)
            with np.errstate(invalid="ignore", divide="ignore"):
                steps.append((to(drawn) - to(value)) / (errors * slope(drawn)))
        step = np.concatenate(steps)
        step = step[np.isfinite(step)]  # a draw of constants has no correlation
        if len(step) < self._draws // 2:
            return Interval(value, None, None, self.units)
        least, most = np.quantile(step, [0.025, 0.975])
        size = error * slope(value)
        return Interval(value, float(back(to(value) - most * size)), float(back(to(value) - least * size)), self.units)

    def _studentize(self, figure: Figure, counts: Numbers) -> tuple[Numbers, Numbers]:
        """The figure [r] of each draw, and its standard error [r]: the units are independent, their pairs are not."""
        value, influence = figure(counts)
        of_unit = np.add.reduceat(influence, self._firsts, axis=1)  # [r, U]
        times = counts[:, self._firsts]
        drawn = times.sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            error = np.sqrt((times * of_unit * of_unit).sum(1) * drawn / (drawn - 1)) / counts.sum(1)
        return value, error


def pearson_figure(x: Numbers, y: Numbers) -> Figure:
    """Pearson's correlation of x and y [n]. NaN where one of them is constant."""

    def figure(counts: Numbers) -> tuple[Numbers, Numbers]:
        return _pearson(np.broadcast_to(x, counts.shape), np.broadcast_to(y, counts.shape), counts)

    return figure


def spearman_figure(x: Numbers, y: Numbers) -> Figure:
    """Spearman's correlation of x and y [n]: Pearson's of their mean ranks.

    A pair also moves the ranks of others. Its influence is therefore that on the mean of 12 F(X) G(Y), F and G the
    distribution functions: its own product, and what it adds to the F and the G of the pairs above it.
    """
    ranked = [_Ranked(x), _Ranked(y)]

    def figure(counts: Numbers) -> tuple[Numbers, Numbers]:
        f, g = (r.below(counts) / counts.sum(1, keepdims=True) for r in ranked)
        value, direct = _pearson(f, g, counts)
        total = counts.sum(1, keepdims=True)
        moved = f * g + (ranked[0].above(counts * g) + ranked[1].above(counts * f)) / total
        moved -= (counts * moved).sum(1, keepdims=True) / total
        spread = np.sqrt(_variance(f, counts) * _variance(g, counts))[:, None]  # 1/12 where nothing ties
        with np.errstate(invalid="ignore", divide="ignore"):
            influence: Numbers = moved / spread
        influence[~np.isfinite(direct)] = np.nan
        return value, influence

    return figure


def mean_figure(x: Numbers) -> Figure:
    """The mean of x [n]."""

    def figure(counts: Numbers) -> tuple[Numbers, Numbers]:
        value = counts @ x / counts.sum(1)
        return value, x - value[:, None]

    return figure


class _Ranked:
    """Numbers [n] whose order is known, so that a draw's ranks need no sorting."""

    def __init__(self, x: Numbers) -> None:
        values, self._group = np.unique(x, return_inverse=True)
        self._order = np.argsort(self._group, kind="stable")
        self._firsts = np.searchsorted(self._group[self._order], np.arange(len(values)))

    def below(self, counts: Numbers) -> Numbers:
        """For each number, the counts of those below it and half of those that are equal [r, n]."""
        of_group = np.add.reduceat(counts[:, self._order], self._firsts, axis=1)
        found: Numbers = (np.cumsum(of_group, axis=1) - of_group / 2)[:, self._group]
        return found

    def above(self, weights: Numbers) -> Numbers:
        """For each number, the weights of those above it and half of those that are equal [r, n]."""
        found: Numbers = weights.sum(1, keepdims=True) - self.below(weights)
        return found


def _pearson(x: Numbers, y: Numbers, counts: Numbers) -> tuple[Numbers, Numbers]:
    """x, y [r, n] -> Pearson's correlation [r] and each pair's influence [r, n]."""
    total = counts.sum(1, keepdims=True)
    x, y = (v - (counts * v).sum(1, keepdims=True) / total for v in (x, y))
    of_x, of_y = ((counts * v * v).sum(1, keepdims=True) for v in (x, y))
    with np.errstate(invalid="ignore", divide="ignore"):
        value = (counts * x * y).sum(1, keepdims=True) / np.sqrt(of_x * of_y)
        x, y = x / np.sqrt(of_x / total), y / np.sqrt(of_y / total)
        influence: Numbers = x * y - value * (x * x + y * y) / 2
    return value[:, 0], influence


def _variance(x: Numbers, counts: Numbers) -> Numbers:
    """[r, n] -> [r]"""
    total = counts.sum(1)
    mean = (counts * x).sum(1) / total
    variance: Numbers = (counts * x * x).sum(1) / total - mean * mean
    return variance


def _difference(new: Figure, old: Figure) -> Figure:
    def figure(counts: Numbers) -> tuple[Numbers, Numbers]:
        (a, of_a), (b, of_b) = new(counts), old(counts)
        return a - b, of_a - of_b

    return figure


_Scale: TypeAlias = "tuple[Callable[..., Numbers], Callable[..., Numbers], Callable[..., Numbers]]"
# there, back, and the slope of the way there
_to_z: _Scale = (
    lambda r: np.arctanh(np.clip(r, -_LARGEST, _LARGEST)),
    np.tanh,
    lambda r: 1 / (1 - np.clip(r, -_LARGEST, _LARGEST) ** 2),
)
_as_it_is: _Scale = (np.asarray, np.asarray, np.ones_like)
