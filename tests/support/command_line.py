"""The command line as a subprocess."""

from __future__ import annotations

import subprocess
import sys

CLI = [sys.executable, "-m", "qalign_fast.cli"]


def run(*arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CLI, *map(str, arguments)], input=stdin, capture_output=True, text=True, timeout=120, check=False
    )
