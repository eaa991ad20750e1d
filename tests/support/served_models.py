"""Models for a server's tests, whose scores do not depend on a batch: what the server says can be held to the bit."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qalign_export.options import ExportOptions
from qalign_export.pictures import generate_pictures
from qalign_export.writer import export_artifact
from support.goldens import GOLDEN


def two_tasks(folder: Path) -> Path:
    """An artifact with quality and aesthetics, for the native engine."""
    options = ExportOptions("int8", ["torch"], calibration=generate_pictures(4))
    return export_artifact(GOLDEN / "narrow-112", folder / "two-tasks", options)


def multipart(*parts: tuple[str, str | None, bytes]) -> tuple[bytes, dict[str, str]]:
    """Fields' names, files' names (None: no file) and contents -> a body and its header."""
    boundary = "a-boundary-that-no-file-has"
    body = b""
    for name, filename, content in parts:
        disposition = f'form-data; name="{name}"' + ("" if filename is None else f'; filename="{filename}"')
        body += f"--{boundary}\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + content + b"\r\n"
    return body + f"--{boundary}--\r\n".encode(), {"content-type": f"multipart/form-data; boundary={boundary}"}


def log_lines(log: Path) -> list[dict[str, Any]]:
    """What a server has written. Raises AssertionError for a line that is no JSON."""
    lines = log.read_text("utf-8").split("\n")
    assert lines.pop() == ""
    odd = [line for line in lines if not line.startswith("{")]
    assert odd == []
    return [json.loads(line) for line in lines]


def faults(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """What should be in no server's log: errors, tracebacks, and what asyncio has to complain of."""
    return [line for line in lines if line["level"] in ("error", "critical") or line.keys() & {"exception", "exc_info"}]
