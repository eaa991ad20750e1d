"""What a job would be: inputs, shards, and the time and disk that it would take, by a sample that is scored."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable
from io import BufferedIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qalign_fast.identity import identify_model
from qalign_fast.jobs.folder import JobFolder, check_same, is_planned, own_options, plan_job
from qalign_fast.jobs.inputs.found import find_entries
from qalign_fast.jobs.job import engines_for
from qalign_fast.sources import tell_skipped

if TYPE_CHECKING:
    from qalign_fast.jobs.entries import Entry
    from qalign_fast.jobs.options import JobOptions, RunOptions
    from qalign_fast.jobs.plan import Plan

_SAMPLE = 32  # inputs that are scored, spread over the plan


def dry_run(
    path: Path, job: JobOptions, run: RunOptions, stdin: BufferedIOBase, planning: Callable[[int], None]
) -> dict[str, Any]:
    """Plans into a temporary folder, scores a sample, and returns facts. Nothing is written into the job's folder.

    For a folder with a job, its inputs are compared with what is there now. Raises what `run_job` raises.
    """
    if is_planned(path):
        job = own_options(path, job)
    model = identify_model(run.model, run.precision, run.base)
    skipped: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="qalign-plan-") as temporary:
        groups = find_entries(job.inputs, job.taking, stdin, lambda kind: skipped.update([kind]))
        plan_job(Path(temporary), job, model, groups, planning)
        planned = JobFolder(Path(temporary))
        plan, summary = planned.open_plan(), planned.summary
        facts: dict[str, Any] = {
            "inputs": summary.inputs,
            "of them clips": summary.clips,
            "skipped": tell_skipped(skipped) or "nothing",
            "bytes": f"{summary.bytes / 1e6:.1f} MB, of those whose size is known",
            "shards": f"{summary.shards}, {summary.name(0)}.{job.format} to "
            f"{summary.name(summary.shards - 1)}.{job.format}",
            "rows": summary.inputs * len(job.tasks),
            "plan": f"{(planned.inside / 'plan.parquet').stat().st_size / 1e6:.2f} MB",
            "model": f"{model['name']}, {model['precision']}, sha256 {model['sha256'][:12]}",
        }
        if is_planned(path):
            there = JobFolder(path)
            check_same(there.about, job, model)
            facts["since the job was planned"] = _changes(there.open_plan(), plan)
        return facts | _estimate(planned, plan, job, run)


def _estimate(planned: JobFolder, plan: Plan, job: JobOptions, run: RunOptions) -> dict[str, Any]:
    sample = _sample(plan)
    engines = engines_for(job, run, None)
    try:
        for entries in engines.run(iter([sample[:1]]), lambda _: None):  # the first one loads and warms
            assert entries
        started = time.perf_counter()
        rows = [
            row
            for entries in engines.run(iter([sample]), lambda _: None)
            for entry in entries
            for row in planned.layout.rows(entry)
        ]
        each = (time.perf_counter() - started) / len(sample)
    finally:
        engines.close()
    file = planned.path / "sample"
    planned.layout.write(rows, file)
    bytes_each = file.stat().st_size / len(sample)
    errors = sum(row["status"] != "ok" for row in rows[:: len(job.tasks)])
    return {
        "sample": f"{len(sample)} inputs, {errors} with an error, {1 / each:.1f} a second",
        "estimated time": shown_time(each * planned.summary.inputs),
        "estimated disk": f"{bytes_each * planned.summary.inputs / 1e6:.1f} MB",
    }


def _sample(plan: Plan) -> list[Entry]:
    """Inputs spread over the plan, as if they were one shard."""
    found: list[Entry] = []
    count = min(_SAMPLE, plan.shards)
    shards = sorted({i * plan.shards // count for i in range(count)})
    for shard in shards:
        entries = plan.entries(shard)
        found += entries[:: max(1, len(entries) * len(shards) // _SAMPLE)]
    for entry in (found := found[:_SAMPLE]):
        entry.shard = 0
    return found


def _changes(before: Plan, now: Plan) -> str:
    """How many inputs are new, gone and changed."""
    old, new = _known(before), _known(now)
    changed = sum(old[place] != state for place, state in new.items() if place in old)
    return f"{len(new.keys() - old.keys())} new, {len(old.keys() - new.keys())} gone, {changed} changed"


def _known(plan: Plan) -> dict[tuple[bytes, int], tuple[int, int]]:
    entries = (entry for shard in range(plan.shards) for entry in plan.entries(shard))
    return {(entry.place, entry.offset): (entry.size, entry.mtime_ns) for entry in entries}


def shown_time(seconds: float) -> str:
    """ "3 h 20 min", "4 min 10 s", "12 s"."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    if hours >= 48:
        return f"{hours // 24} days {hours % 24} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"
