"""How long `qalign-fast report` takes for 100,000 rows, and how large its page is, for each format of rows.

    python bench/studies/rows_report.py WORK

Prints JSON. The rows are made up, in 2,000 folders; every hundredth has one of 50 errors.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from qalign_bench.figures.environment import environment
from qalign_bench.figures.spread import median
from qalign_fast.errors import ImageError
from qalign_fast.jobs.decoding import Reading
from qalign_fast.jobs.entries import Entry
from qalign_fast.jobs.options import FORMATS
from qalign_fast.jobs.rows import Layout, answer_of
from qalign_fast.levels import FIVE_LEVELS, score_of

_ROWS, _REPEAT = 100_000, 5


def main(work: Path) -> None:
    """Times a report of each format and prints the times and sizes."""
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work) as folder:
        cases = [_case(Path(folder), form) for form in FORMATS]
    verdicts = {
        "report_s": _at_most(max(case["seconds"] for case in cases), 10),
        "page_bytes": _at_most(max(case["page_bytes"] for case in cases), 5_000_000),
    }
    print(
        json.dumps(
            {"scenario": "rows_report", "verdicts": verdicts, "cases": cases, "environment": environment()}, indent=1
        )
    )


def _case(folder: Path, form: Any) -> dict[str, Any]:
    layout = Layout(form, FIVE_LEVELS, ("quality",), {}, False, {"tasks": ["quality"]})
    file, page = folder / f"rows.{form}", folder / "page.html"
    layout.write([row for entry in _entries() for row in layout.rows(entry)], file)
    times = []
    for _ in range(_REPEAT):
        started = time.perf_counter()
        command = [sys.executable, "-m", "qalign_fast.cli", "report", str(file), "-o", str(page), "--overwrite"]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        times.append(time.perf_counter() - started)
    found = {"format": form, "rows": _ROWS, "rows_bytes": file.stat().st_size, "seconds": median(times)}
    return found | {"seconds_range": [min(times), max(times)], "page_bytes": page.stat().st_size}


def _entries() -> list[Entry]:
    rng = np.random.default_rng(0)
    found = []
    for number in range(_ROWS):
        entry = Entry(f"set/{number % 2000:04d}/{number:06d}.jpg", b"")
        if number % 100:
            score = score_of(rng.normal(0, 2, 5).astype(np.float32), "quality")
            entry.answers = {"quality": answer_of(score)}
            entry.reading = Reading(sha256=rng.bytes(32).hex(), seconds=rng.uniform(0.005, 0.02))
        else:
            entry.reading = Reading(error=ImageError(f"{entry.source}: error {number // 100 % 50}"), status="failed")
        found.append(entry)
    return found


def _at_most(value: float, most: float) -> dict[str, Any]:
    return {"value": value, "most": most, "holds": value <= most}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
