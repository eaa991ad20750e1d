"""The command line, and code, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

CLI = [sys.executable, "-m", "qalign_fast.cli"]


def run(*arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CLI, *map(str, arguments)], input=stdin, capture_output=True, text=True, timeout=120, check=False
    )


def python(code: str) -> str:
    """What code prints in a fresh interpreter. Raises CalledProcessError where it fails."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
