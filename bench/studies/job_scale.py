"""How a job's own files and memory grow, measured up to what fits here and extended to a billion pictures.

    python bench/studies/job_scale.py WORK

Prints JSON. Plans of made-up names are written, opened and read; journals of made-up lines are written and read.
Nothing is scored. Each measurement runs in a process of its own, whose memory is its own.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from qalign_bench.figures.environment import environment
from qalign_fast.jobs.decoding import Reading
from qalign_fast.jobs.entries import Entry
from qalign_fast.jobs.inputs.found import Group
from qalign_fast.jobs.journal import Journal, Line
from qalign_fast.jobs.plan import Plan, write_plan
from qalign_fast.jobs.rows import answer_of
from qalign_fast.levels import score_of

_PLANS = ((1_000_000, 1024), (4_000_000, 1024), (4_000_000, 65_536))  # inputs, inputs of a shard
_JOURNALS = (10_000, 100_000, 1_000_000)  # lines
_ROWS, _ROWS_SHARD = 100_000, 16_384
_BILLION = 1_000_000_000


def main(work: Path) -> None:
    """Measures plans, journals and rows, and prints them with what a billion would take."""
    work.mkdir(parents=True, exist_ok=True)
    plans = [_alone(_plan, work / "plan.parquet", inputs, size) for inputs, size in _PLANS]
    journals = [_alone(_journal, work / "journal.jsonl", lines) for lines in _JOURNALS]
    rows = _alone(_rows, work)
    found = {
        "scenario": "job_scale",
        "rows": rows,
        "plans": plans,
        "journals": journals,
        "a billion": [_extended(plans, journals, rows, size) for size in (1024, 16_384, 65_536)],
        "environment": environment(),
    }
    print(json.dumps(found, indent=1))


def _alone(measure: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found: dict[str, Any] = pool.apply(measure, arguments)
    print(found, file=sys.stderr)
    return found


def _plan(path: Path, inputs: int, shard_size: int) -> dict[str, Any]:
    started, before = time.perf_counter(), _memory()
    summary = write_plan(path, [Group(_names(inputs))], shard_size, ())
    written, peak = time.perf_counter(), _memory()
    plan = Plan(path, "/")
    opened, held = time.perf_counter(), _memory()
    entries = plan.entries(plan.shards // 2)
    assert len(entries) == min(shard_size, inputs)
    return {
        "inputs": inputs,
        "shard_size": shard_size,
        "shards": summary.shards,
        "bytes": path.stat().st_size,
        "write_s": written - started,
        "write_memory_bytes": peak - before,
        "open_s": opened - written,
        "open_memory_bytes": max(0, held - peak),
        "read_shard_s": time.perf_counter() - opened,
    }


def _names(count: int) -> Iterator[Entry]:
    for number in range(count):
        name = f"/data/set/{number // 1000:06d}/{number:09d}.jpg"
        yield Entry(
            name, name.encode(), size=400_000 + number % 9973, mtime_ns=1_790_000_000_000_000_000 + 7919 * number
        )


def _journal(path: Path, lines: int) -> dict[str, Any]:
    from dataclasses import asdict

    with path.open("w", encoding="ascii") as file:
        for shard in range(lines):
            line = Line(shard, f"part-{shard:05d}.parquet", 70_000, f"{shard:064x}", 1024, 1020, 3, 1, 0, 0)
            file.write(json.dumps(asdict(line)) + "\n")
    before, started = _memory(), time.perf_counter()
    found = Journal(path).read()
    assert len(found) == lines
    return {
        "lines": lines,
        "bytes": path.stat().st_size,
        "read_s": time.perf_counter() - started,
        "memory_bytes": _memory() - before,
    }


def _rows(work: Path) -> dict[str, Any]:
    """How many rows a second one process makes, writes, hashes and journals, and how large they are."""
    from qalign_fast.identity import identify_model
    from qalign_fast.jobs.folder import JobFolder, plan_job
    from qalign_fast.jobs.options import JobOptions

    with tempfile.TemporaryDirectory(dir=work) as out:
        job = JobOptions(("made up",), shard_size=_ROWS_SHARD)
        plan_job(Path(out), job, identify_model(None), [Group(_names(_ROWS))])
        folder = JobFolder(Path(out))
        plan = folder.open_plan()
        rng = np.random.default_rng(0)
        seconds = size = 0.0
        for shard in range(plan.shards):
            entries = plan.entries(shard)
            for entry in entries:
                score = score_of(rng.normal(0, 2, 5).astype(np.float32), "quality")
                entry.answers = {"quality": answer_of(score)}
                entry.reading = Reading(sha256=rng.bytes(32).hex(), seconds=rng.uniform(0.005, 0.02))
            started = time.perf_counter()
            line = folder.write(shard, [row for entry in entries for row in folder.layout.rows(entry)])
            seconds += time.perf_counter() - started
            size += line.bytes
    return {"rows": _ROWS, "rows_per_second": _ROWS / seconds, "bytes_per_row": size / _ROWS}


def _extended(
    plans: list[dict[str, Any]], journals: list[dict[str, Any]], rows: dict[str, Any], shard_size: int
) -> dict[str, Any]:
    """A billion inputs, by what a row and a shard of the measured ones take."""
    shards = -(-_BILLION // shard_size)
    by_rows = plans[-1]
    small, large = plans[0], plans[1]
    opening = (large["open_memory_bytes"] - small["open_memory_bytes"]) / (large["shards"] - small["shards"])
    line = journals[-1]
    return {
        "shard_size": shard_size,
        "shards": shards,
        "plan_gb": by_rows["bytes"] / by_rows["inputs"] * _BILLION / 1e9,
        "plan_hours": by_rows["write_s"] / by_rows["inputs"] * _BILLION / 3600,
        "plan_open_memory_gb": opening * shards / 1e9,
        "output_gb": rows["bytes_per_row"] * _BILLION / 1e9,
        "write_hours": _BILLION / rows["rows_per_second"] / 3600,
        "journal_mb": line["bytes"] / line["lines"] * shards / 1e6,
        "journal_read_s": line["read_s"] / line["lines"] * shards,
        "journal_memory_mb": line["memory_bytes"] / line["lines"] * shards / 1e6,
        "object_store_reads": _BILLION,
    }


def _memory() -> int:
    """Bytes of resident memory that no file has."""
    for text in Path("/proc/self/status").read_text("ascii").splitlines():
        if text.startswith("RssAnon:"):
            return 1024 * int(text.split()[1])
    raise AssertionError("the system does not tell")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
