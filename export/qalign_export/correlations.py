"""Two lists of numbers in, how well they agree out: Pearson's and Spearman's correlation coefficients."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def spearman(x: npt.ArrayLike, y: npt.ArrayLike) -> float:
    """Spearman's rank correlation of x [N] and y [N]. Ties get their mean rank. 1 if both are constant, 0 if one is."""
    return pearson(ranks(x), ranks(y))


def pearson(x: npt.ArrayLike, y: npt.ArrayLike) -> float:
    """Pearson's linear correlation of x [N] and y [N]. 1 if both are constant, 0 if one is."""
    a, b = (np.asarray(v, np.float64) for v in (x, y))
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale else float(not a.any() and not b.any())


def ranks(x: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """The rank [N] of each number of x [N], from 1 upwards. Ties get their mean rank."""
    _, inverse, counts = np.unique(np.asarray(x), return_inverse=True, return_counts=True)
    return np.asarray((counts.cumsum() - (counts - 1) / 2)[inverse], np.float64)
