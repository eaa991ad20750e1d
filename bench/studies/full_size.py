"""A geometry in, what exporting, loading and scoring it takes out: time, disk and memory, by precision and engine.

    python bench/studies/full_size.py WORK_FOLDER [--model random:one-align] [--json bench/results/full_size.json]

Exports and scores run in processes of their own. Their peaks are the kernel's count of resident pages, with those that
are mapped from files. Cold means that the artifact's pages were dropped from the page cache before.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from qalign_bench.figures.environment import study_environment
from qalign_bench.scenarios.startup import drop_pages

CASES = [(precision, engine) for engine in ("onnx", "torch") for precision in ("int8", "int4")]
_SCORES = 3


@dataclass(frozen=True)
class Result:
    """One case. Sizes are in bytes, times in seconds, peaks are of resident memory."""

    precision: str
    engine: str
    export_s: float
    export_peak: int
    disk: int
    load_cold_s: float
    load_warm_s: float
    score_s: float  # one picture, one task, the median of 3
    score_spread_s: tuple[float, float]
    score_peak: int
    score_anonymous_peak: int  # the part of it that the process owns and the system cannot simply drop

    def row(self) -> str:
        """A line of the table."""
        gb = [f"{n / 1e9:.2f}" for n in (self.disk, self.export_peak, self.score_peak)]
        times = f"{self.load_cold_s:.1f} / {self.load_warm_s:.1f} | {self.score_s:.1f}"
        return f"| {self.precision} | {self.engine} | {self.export_s:.0f} | {gb[0]} | {gb[1]} | {times} | {gb[2]} |"


HEADER = (
    "| precision | engine | export s | disk GB | export peak GB | load s, cold / warm | score s | scoring peak GB |\n"
    "|---|---|---|---|---|---|---|---|"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--model", default="random:one-align")
    parser.add_argument("--case", action="append", help="PRECISION-ENGINE; default: int8 and int4, onnx and torch")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cases = [tuple(case.split("-")) for case in options.case] if options.case else CASES
    print(HEADER, flush=True)
    known = options.json and options.json.exists()
    results = {r["case"]: r for r in json.loads(options.json.read_text())["results"]} if known else {}
    for precision, engine in cases:
        case = f"{precision}-{engine}"
        result = measure(options.model, options.work / case, precision, engine)
        print(result.row(), flush=True)
        facts = study_environment("onnx")
        results[case] = {"case": case, "model": options.model, **asdict(result), "environment": facts}
        if options.json:  # its other cases stay
            options.json.write_text(json.dumps({"results": list(results.values())}, indent=1) + "\n")


def measure(model: str, artifact: Path, precision: str, engine: str) -> Result:
    """Exports the model into the folder `artifact`, scores with it, and removes it."""
    command = [sys.executable, "-m", "qalign_fast.cli", "export", model, str(artifact)]
    command += ["--precision", precision, "--engine", engine, "--task", "quality"]
    started = time.perf_counter()
    peak = run(command)[1]
    export_s = time.perf_counter() - started
    files = [path for path in artifact.rglob("*") if path.is_file()]
    for path in files:
        drop_pages(path)
    cold, warm = (json.loads(run([sys.executable, "-c", SCORE, str(artifact), n])[0]) for n in ("1", str(_SCORES)))
    low, median, high = sorted(warm["score_s"])
    result = Result(
        precision,
        engine,
        export_s,
        peak,
        sum(path.stat().st_size for path in files),
        cold["load_s"],
        warm["load_s"],
        median,
        (low, high),
        warm["peak"],
        warm["anonymous_peak"],
    )
    shutil.rmtree(artifact)
    return result


SCORE = """
import json, resource, sys, threading, time
import numpy as np
start = time.perf_counter()
from qalign_fast import Scorer
anonymous = 0
def watch():
    global anonymous
    while True:
        status = dict(line.split(":", 1) for line in open("/proc/self/status"))
        anonymous = max(anonymous, int(status["RssAnon"].split()[0]) * 1024)
        time.sleep(0.05)
threading.Thread(target=watch, daemon=True).start()
scorer = Scorer.load(sys.argv[1])
load = time.perf_counter() - start
picture = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
times = []
for _ in range(int(sys.argv[2])):
    start = time.perf_counter()
    scorer.score(picture)
    times.append(time.perf_counter() - start)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"load_s": load, "score_s": times, "peak": peak, "anonymous_peak": anonymous}))
"""


def run(command: list[str]) -> tuple[str, int]:
    """What a process printed, and its peak of resident memory in bytes."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command[:6])} ... ended with status {status}")
    return output, usage.ru_maxrss * 1024


if __name__ == "__main__":
    main()
