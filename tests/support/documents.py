"""The Python examples of the documents, and the environment that each runs in."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = (
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "bench/results/README.md"),
    *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").glob("*.md"))),
)
EXAMPLE = re.compile(r"(?:<!-- in: ([\w-]+) -->\n)?```python\n(.*?)```", re.DOTALL)


def examples(tool: str = "") -> Iterator[tuple[str, str]]:
    """(document, program) of those that run in a tool's environment: its name stands in a comment before them."""
    for document in DOCUMENTS:
        for found, program in EXAMPLE.findall((ROOT / document).read_text("utf-8")):
            if found == tool:
                yield document, program


def tools_named() -> set[str]:
    """The tools whose environments the documents name."""
    return {tool for document in DOCUMENTS for tool, _ in EXAMPLE.findall((ROOT / document).read_text("utf-8"))} - {""}


def run_example(document: str, program: str, folder: Path, model: Path) -> None:
    """As a program, because some start processes, beside a photo.jpg and an artifact called one-align-int8.

    A checkpoint, the embedded model's, is there as one-align.
    """
    shutil.copy(ROOT / "samples/coffee.jpg", folder / "photo.jpg")
    (folder / "one-align-int8").symlink_to(model)
    (folder / "one-align").symlink_to(ROOT / "models/mini")
    file = folder / f"{Path(document).stem}.py"
    file.write_text(program)
    run = subprocess.run([sys.executable, file], cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
