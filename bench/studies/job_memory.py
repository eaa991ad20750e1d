"""Whether a job's memory grows with its inputs: the peak of the job and its processes, for several numbers of pictures.

    python bench/studies/job_memory.py WORK COUNT [COUNT ...]

Prints JSON. WORK keeps 16 small pictures, whose names a list repeats COUNT times; each is read and scored every time.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from qalign_bench.contestants.generated_pictures import generated_pictures
from qalign_bench.figures.environment import environment

_EVERY = 0.5  # seconds between two looks


def main(work: Path, counts: list[int]) -> None:
    """Runs a job for each count and prints what it held."""
    files = generated_pictures(work, 16, 96, 64)
    cases = [_case(work, files, count) for count in counts]
    first, last = (case["peak_bytes"]["all"] for case in (cases[0], cases[-1]))
    lost = sum(case["pictures"] - case["ok"] for case in cases)
    verdicts = {
        "memory_of_most_to_fewest": {"value": last / first, "most": 1.05, "holds": last <= 1.05 * first},
        "pictures_without_score": {"value": lost, "most": 0, "holds": lost == 0},
    }
    print(
        json.dumps(
            {"scenario": "job_memory", "verdicts": verdicts, "cases": cases, "environment": environment()}, indent=1
        )
    )


def _case(work: Path, files: list[str], count: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=work) as folder:
        names = Path(folder, "names.txt")
        names.write_text("".join(f"{Path(file).absolute()}\n" for file in islice(cycle(files), count)))
        command = [sys.executable, "-m", "qalign_fast.cli", "run", str(names), "--out", f"{folder}/out", "--json"]
        started = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            peaks = {"main": 0, "all": 0}
            ended = threading.Event()
            watch = threading.Thread(target=_watch, args=(process.pid, peaks, ended))
            watch.start()
            out, said = process.communicate()
            ended.set()
            watch.join()
        if process.returncode:
            raise SystemExit(said)
        seconds = time.perf_counter() - started
        counts = json.loads(out)
    print(f"{count:,} pictures: {peaks['all'] / 1e6:.1f} MB, {count / seconds:.1f}/s", file=sys.stderr)
    return {"pictures": count, "ok": counts["ok"], "seconds": seconds, "peak_bytes": peaks}


def _watch(pid: int, peaks: dict[str, int], ended: threading.Event) -> None:
    """The most that the job, and the job with its processes, held of memory that is their own."""
    while not ended.wait(_EVERY):
        own = [_private(each) for each in (pid, *_children(pid))]
        peaks["main"] = max(peaks["main"], own[0])
        peaks["all"] = max(peaks["all"], sum(own))


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()] + [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            if task.name != str(pid)
            for child in (task / "children").read_text("ascii").split()
        ]
    except OSError:
        return []


def _private(pid: int) -> int:
    """Bytes of resident memory that no file has."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text("ascii").splitlines():
            if line.startswith("RssAnon:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    return 0


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(count) for count in sys.argv[2:]])
