"""The documents' examples for the tool in whose environment this runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from support.documents import ROOT, examples, run_example

TOOL = Path(sys.prefix).name


@pytest.mark.parametrize(("document", "program"), list(examples(TOOL)))
def test_python_runs_as_written(document: str, program: str, tmp_path: Path) -> None:
    run_example(document, program, tmp_path, ROOT / "qalign_fast/mini")
