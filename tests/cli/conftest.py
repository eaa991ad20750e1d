"""How the commands are run."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="module", autouse=True)
def fast(kernels: Path) -> None:
    """As users run them, on the C++ kernels."""
