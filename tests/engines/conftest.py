"""What the tests of engines share: an artifact in float32, and upstream's numbers for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qalign_export.options import ExportOptions
from qalign_export.writer import export_artifact
from support.goldens import GOLDEN


@pytest.fixture(scope="session")
def folded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """narrow-112 in float32, as torch weights."""
    out = tmp_path_factory.mktemp("folded") / "narrow"
    return export_artifact(GOLDEN / "narrow-112", out, ExportOptions("fp32", ("torch",)))


@pytest.fixture(scope="session")
def expected() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / "narrow-112/expected.npz"))
