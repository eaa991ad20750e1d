"""The README's Python runs as written, where its names are there: a photo and a folder made by `export`."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from support.goldens import ROOT, Golden

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS)
def test_examples_run(block: str, goldens: dict[str, Golden], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(ROOT / "samples/coffee.jpg", tmp_path / "photo.jpg")
    (tmp_path / "one-align-int8").symlink_to(goldens["narrow-448"].artifact)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})


def test_there_are_examples() -> None:
    assert len(BLOCKS) == 2
