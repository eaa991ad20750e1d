"""What several of the jobs' tests expect."""

from __future__ import annotations

from pathlib import Path

import pytest

from qalign_fast import Scorer
from support.job_inputs import SAMPLES


@pytest.fixture(scope="module", autouse=True)
def fast(kernels: Path) -> None:
    """Jobs run as users run them, on the C++ kernels."""


@pytest.fixture(scope="module")
def expected(fast: None) -> dict[str, float]:
    """The samples' scores by name."""
    scores = Scorer.load().score([str(path) for path in SAMPLES])
    return {path.name: round(score.value, 4) for path, score in zip(SAMPLES, scores, strict=True)}
