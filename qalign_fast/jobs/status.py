"""A job's folder in, facts about how far it is out, without a model and without its lock."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qalign_fast.jobs.folder import is_locked, read_about
from qalign_fast.jobs.journal import Journal, totals
from qalign_fast.records import JOB_FOLDER


def status_of(path: Path) -> dict[str, Any]:
    """Facts about the job in a folder, by what its journal says. Raises QAlignError where there is none."""
    about = read_about(path)
    lines = Journal(path / JOB_FOLDER / "journal.jsonl").read(mend=False)
    counts = totals(lines.values())
    plan, model = about["plan"], about["model"]
    done = sum(counts[name] for name in ("ok", "failed", "unavailable", "quarantined"))
    running = is_locked(path)
    return {
        "state": "running" if running else "complete" if len(lines) == plan["shards"] else "ended early",
        "inputs": f"{done} of {plan['inputs']} ({100 * done / plan['inputs']:.1f} %)",
        "shards": f"{len(lines)} of {plan['shards']}",
        **{name: counts[name] for name in ("rows", "ok", "failed", "unavailable", "quarantined", "changed")},
        "bytes": sum(line.bytes for line in lines.values()),
        "model": f"{model['name']}, {model['precision']}, sha256 {model['sha256'][:12]}",
        "tasks": ", ".join(about["tasks"]),
        "format": about["options"]["format"],
    }
