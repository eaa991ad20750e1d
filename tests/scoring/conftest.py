"""A scorer of a small model."""

from __future__ import annotations

import pytest

from qalign_fast import Scorer
from support.goldens import Golden


@pytest.fixture(scope="module")
def scorer(narrow: Golden) -> Scorer:
    return Scorer.load(narrow.artifact)
