"""Our correlations against scipy's."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from qalign_export.correlations import pearson, ranks, spearman


def test_correlations_are_scipys_ties_included() -> None:
    rng = np.random.default_rng(0)
    for levels in (3, 10, 10_000):
        x, y = rng.integers(0, levels, (2, 200))
        assert spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y).statistic, abs=1e-12)
        assert pearson(x, y) == pytest.approx(scipy.stats.pearsonr(x, y).statistic, abs=1e-12)
        np.testing.assert_array_equal(ranks(x), scipy.stats.rankdata(x))
    assert (spearman([1, 1], [2, 2]), spearman([1, 1], [2, 3])) == (1, 0)
