"""Several runs' scores of the same entries in, one score for each entry out: the mean of their z-scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from qalign_fast.evaluation.mapping import standardize

if TYPE_CHECKING:
    import numpy.typing as npt

    Numbers = npt.NDArray[np.float64]


def combine(runs: Sequence[Numbers]) -> Numbers:
    """Each run's scores [n], of any scale, less their mean and over their standard deviation; the mean of the runs.

    The z-scores are over the entries that all runs have a score of; others are NaN. They depend on the entries: a
    picture's ensemble score changes with the list that it stands in. FAST-VQA sums its branches in this way, and
    Q-Align's published figures with FAST-VQA are of such a sum.
    """
    all_runs = np.array(runs, np.float64)
    combined = np.full(all_runs.shape[1:], np.nan)
    if (has := np.isfinite(all_runs).all(axis=0)).any():
        combined[has] = np.mean([standardize(run[has]) for run in all_runs], axis=0)
    return combined
