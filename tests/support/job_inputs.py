"""Inputs of jobs in; their entries, and their rows, out. Some samples, and a WebDataset of them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from qalign_fast.jobs.entries import Entry
from qalign_fast.jobs.inputs.found import find_entries
from qalign_fast.jobs.inputs.taking import InputOptions
from qalign_fast.jobs.job import run_job
from support.goldens import ROOT
from support.jobs import options, rows_of, run_options

SAMPLES = sorted((ROOT / "samples").glob("coffee*.jpg"))[:3]


def entries(*inputs: object, stdin: bytes = b"", **taking: Any) -> list[Entry]:
    groups = find_entries([str(name) for name in inputs], InputOptions(**taking), io.BytesIO(stdin))
    return [entry for group in groups for entry in group.entries]


def scored(out: Path, *inputs: object, stdin: bytes = b"", **taking: Any) -> list[dict[str, Any]]:
    job = options(*(str(name) for name in inputs), taking=InputOptions(**taking))
    assert run_job(out, job, run_options(), stdin=io.BytesIO(stdin)).complete
    return rows_of(out)


def members(prefix: str = "") -> dict[str, bytes]:
    """Three samples of a WebDataset, with captions and JSON."""
    found: dict[str, bytes] = {}
    for number, path in enumerate(SAMPLES):
        found[f"{prefix}{number:04d}.txt"] = f"caption {number}".encode()
        found[f"{prefix}{number:04d}.jpg"] = path.read_bytes()
        found[f"{prefix}{number:04d}.json"] = json.dumps({"width": number}).encode()
    return found
