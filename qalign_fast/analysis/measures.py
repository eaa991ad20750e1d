"""Two sets of scores in; how far their distributions, means and orders are apart, out. All float64, all O(n log n)."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Numbers = npt.NDArray[np.float64]

Z95 = 1.959963984540054  # the normal distribution's quantile at 0.975


@dataclass(frozen=True)
class Shift:
    """A mean's shift, new less old, with its 95 % interval by the normal distribution; None below two scores.

    count: the number of pairs, or of the scores of the smaller set.
    """

    mean: float | None
    low: float | None
    high: float | None
    count: int


def ks_distance(a: Numbers, b: Numbers) -> float | None:
    """The largest distance between the two sets' distribution functions, 0..1; None where a set is empty.

    The two-sample statistic of Kolmogorov and Smirnov.
    """
    if not len(a) or not len(b):
        return None
    a, b = np.sort(a), np.sort(b)
    both = np.concatenate([a, b])
    at_most = (np.searchsorted(one, both, side="right") / len(one) for one in (a, b))
    return float(np.max(np.abs(np.subtract(*at_most))))


def paired_shift(old: Numbers, new: Numbers) -> Shift:
    """The mean of the differences of pairs [n], and its interval: mean ± 1.96 s / sqrt(n), s of n - 1."""
    difference = new - old
    return _shift(_mean(difference), _variance_of_mean(difference), len(difference))


def welch_shift(old: Numbers, new: Numbers) -> Shift:
    """The difference of two independent sets' means; each variance counts for itself, as Welch's test has it."""
    count = min(len(old), len(new))
    if not count:
        return Shift(None, None, None, 0)
    mean = float(new.mean() - old.mean())
    return _shift(mean, _variance_of_mean(old) + _variance_of_mean(new), count)


def spearman(a: Numbers, b: Numbers) -> float | None:
    """The correlation of the ranks of pairs [n], where ties have their mean rank; None where all of one set tie."""
    return pearson(mean_ranks(a), mean_ranks(b))


def pearson(a: Numbers, b: Numbers) -> float | None:
    """The linear correlation of pairs [n]; None below two of them, and where all of one set are equal."""
    if len(a) < 2:
        return None
    x, y = a - a.mean(), b - b.mean()
    size = sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / size if size else None


def mean_ranks(values: Numbers) -> Numbers:
    """Ranks [n] from 1, the smallest first; equal values have the mean of their ranks."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Numbers = (last - (counts - 1) / 2)[places]
    return ranks


def flips(old: Numbers, new: Numbers) -> int:
    """How many of the n (n - 1) / 2 pairs of rows have the opposite order in `new`; a tie in either is no flip."""
    in_order = new[np.lexsort((new, old))]  # ties of old stand in new's order, which makes them no inversions
    return inversions(np.unique(in_order, return_inverse=True)[1])


def flip_share(old: Numbers, new: Numbers) -> float | None:
    """The same as a share of all pairs, 0..1; None below two rows."""
    pairs = len(old) * (len(old) - 1) // 2
    return flips(old, new) / pairs if pairs else None


def inversions(values: npt.NDArray[np.integer[Any]]) -> int:
    """How many pairs stand in falling order, of whole numbers from 0.

    Numbers are parted by one bit after the other, the highest first. Two of them fall in the bit in which they first
    differ: there the first has 1 and the second 0, and all bits above are equal.
    """
    values, total = values.astype(np.int64), 0
    for bit in reversed(range(int(values.max(initial=0)).bit_length())):
        above, ones = values >> (bit + 1), (values >> bit) & 1  # `above` never falls: it was parted by it before
        before = np.cumsum(ones) - ones
        first = np.searchsorted(above, above)  # of those that are equal in the bits above
        total += int(np.sum((before - before[first])[ones == 0]))
        values = values[np.argsort(values >> bit, kind="stable")]
    return total


def _mean(values: Numbers) -> float | None:
    return float(values.mean()) if len(values) else None


def _variance_of_mean(values: Numbers) -> float:
    """NaN below two values."""
    return float(values.var(ddof=1)) / len(values) if len(values) > 1 else float("nan")


def _shift(mean: float | None, variance: float, count: int) -> Shift:
    if mean is None or np.isnan(variance):
        return Shift(mean, None, None, count)
    half = Z95 * sqrt(variance)
    return Shift(mean, mean - half, mean + half, count)
