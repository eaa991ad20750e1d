"""A wheel in, what an environment of it alone takes and gives out: bytes, start, threads, memory, and full-size models.

    python bench/studies/slim_install.py WHEEL WORK [--full ARTIFACT ...] [--json bench/results/slim_install.json]

The environment gets the wheel and what it requires from the package index, nothing else. `--full` measures artifacts
with torch weights there, one picture in turn with the same weights on torch's memory in this environment.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qalign_bench.figures.environment import study_environment

PICTURE = Path(__file__).parents[2] / "samples" / "coffee.jpg"
_STARTS, _ROUNDS = 15, 11


def main() -> None:
    """Measures one part after another, and writes what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--full", type=Path, nargs="*", default=[])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    python = install(options.wheel, options.work)
    found: dict[str, Any] = {"wheel": options.wheel.name, "wheel_bytes": options.wheel.stat().st_size}
    found |= json.loads(run(python, SIZES)) | {"start": start(python)}
    print(json.dumps(found, indent=1), flush=True)
    found["threads"] = json.loads(run(python, THREADS))
    found["calls"] = json.loads(run(python, CALLS))
    print(json.dumps([found["threads"], found["calls"]]), flush=True)
    found["full"] = [full_size(python, artifact) for artifact in options.full]
    found["environment"] = study_environment()
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def install(wheel: Path, folder: Path) -> Path:
    """A new environment with the wheel in it; returns its Python."""
    venv.create(folder, clear=True, with_pip=False)
    python = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", str(wheel)]
    subprocess.run(command, check=True)
    return python


def run(python: Path | str, code: str, *arguments: object) -> str:
    """What a program printed in an environment."""
    command = [str(python), "-c", code, str(PICTURE), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def start(python: Path) -> dict[str, Any]:
    """Seconds from a process's start to the first score of the embedded model, and to what comes before it."""
    run(python, START)  # bytecode is written
    found = []
    for _ in range(_STARTS):
        began = time.perf_counter()
        with subprocess.Popen([python, "-c", START, PICTURE], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            told = json.loads(process.stdout.readline())
            found.append(told | {"total_s": time.perf_counter() - began})
    return {key: spread([one[key] for one in found]) for key in found[0]}


def full_size(python: Path, artifact: Path) -> dict[str, Any]:
    """One artifact here, beside torch's memory in the environment that this study runs in."""
    with worker(python, artifact, "native") as native, worker(sys.executable, artifact, "torch") as torch:
        both = {"native": native, "torch": torch}
        answers: dict[str, list[dict[str, Any]]] = {name: [] for name in both}
        for i in range(_ROUNDS + 1):
            for name in both if i % 2 else reversed(both):
                answers[name].append(both[name].ask())
    times = {name: [one["s"] for one in told[1:]] for name, told in answers.items()}  # the first one reads the file
    ratios = [a / b for a, b in zip(times["native"], times["torch"], strict=True)]
    result = {
        "artifact": artifact.name,
        "equal_bits": all(a["logits"] == b["logits"] for a, b in zip(answers["native"], answers["torch"])),
        "ratio": spread(ratios),
        **{
            name: told.facts | {"score_s": spread(times[name])} | answers[name][-1]["memory"]
            for name, told in both.items()
        },
        "interrupt_s": interrupt(python, artifact),
    }
    print(json.dumps(result), flush=True)
    return result


class Worker:
    """A process that holds one model, and scores the picture when it is asked."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.facts = self._read()

    def ask(self) -> dict[str, Any]:
        """One score, how long it took, and the memory since the start."""
        assert self.process.stdin is not None
        print("score", file=self.process.stdin, flush=True)
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        told: dict[str, Any] = json.loads(self.process.stdout.readline())
        return told


@contextmanager
def worker(python: Path | str, artifact: Path, engine: str) -> Iterator[Worker]:
    """A process with the artifact on that engine, whose files' hashes are remembered. It ends with the block."""
    remember = "import sys; from qalign_fast import Scorer; Scorer.load(sys.argv[2])"
    run(python, remember, artifact)  # the hashes of its files
    command = [str(python), "-c", WORKER, str(PICTURE), str(artifact), engine]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Worker(process)
        assert process.stdin is not None
        process.stdin.close()


def interrupt(python: Path, artifact: Path) -> list[float]:
    """Seconds from Ctrl-C to the end of a process that scores all the time, in several places of a score."""
    took = []
    for delay in (0.1, 0.7, 1.3):
        command = [str(python), "-c", FOREVER, str(PICTURE), str(artifact)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(delay)
            sent = time.perf_counter()
            process.send_signal(signal.SIGINT)
            process.wait()
            took.append(time.perf_counter() - sent)
    return took


def spread(values: list[float]) -> list[float]:
    """The least, the median and the most."""
    return [min(values), statistics.median(values), max(values)]


SIZES = """
import json, pathlib, sys
from importlib.metadata import distributions
def size(distribution):
    return sum(path.locate().stat().st_size for path in distribution.files if path.locate().exists())
packages = {distribution.metadata["Name"]: size(distribution) for distribution in distributions()}
whole = sum(p.lstat().st_size for p in pathlib.Path(sys.prefix).rglob("*") if p.is_file() and not p.is_symlink())
print(json.dumps({"packages_bytes": packages, "environment_bytes": whole}))
"""
START = """
import sys, time
began = time.perf_counter()
from qalign_fast import Scorer
imported = time.perf_counter()
scorer = Scorer.load()
loaded = time.perf_counter()
scorer.score(sys.argv[1])
scored = time.perf_counter()
import json
print(json.dumps({"import_s": imported - began, "load_s": loaded - imported, "score_s": scored - loaded}), flush=True)
"""
THREADS = """
import json, sys, time
from concurrent.futures import ThreadPoolExecutor
from qalign_fast import Scorer
scorer = Scorer.load()
expected, data = scorer.score(sys.argv[1]).logits, open(sys.argv[1], "rb").read()
def work(_):
    return [scorer.score(data).logits for _ in range(500)]
began = time.perf_counter()
with ThreadPoolExecutor(16) as pool:
    found = [logits for many in pool.map(work, range(16)) for logits in many]
took = time.perf_counter() - began
assert len(found) == 16 * 500
different = sum(logits != expected for logits in found)
print(json.dumps({"threads": 16, "calls_each": 500, "different": different, "s": took}))
"""
MEMORY = """
def memory():
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return {name: int(status[name].split()[0]) * 1024 for name in ("RssAnon", "VmHWM")}
"""
CALLS = (
    MEMORY
    + """
import json, sys
from qalign_fast import Scorer
scorer = Scorer.load()
found = {}
for i in range(1, 10_001):
    scorer.score(sys.argv[1])
    if i in (100, 1000, 10_000):
        found[i] = memory()["RssAnon"]
print(json.dumps({"anonymous_bytes_after": found}))
"""
)
WORKER = (
    MEMORY
    + """
import json, sys, threading, time
began = time.perf_counter()
from qalign_fast import Scorer
scorer = Scorer.load(sys.argv[2], engine=sys.argv[3])
print(json.dumps({"load_s": time.perf_counter() - began, "kernels": scorer.engine.kernels}), flush=True)
most = 0
def watch():
    global most
    while True:
        most = max(most, memory()["RssAnon"])
        time.sleep(0.02)
threading.Thread(target=watch, daemon=True).start()
for _ in sys.stdin:
    began = time.perf_counter()
    logits = scorer.score(sys.argv[1]).logits
    took = time.perf_counter() - began
    peaks = {"anonymous_peak_bytes": most, "resident_peak_bytes": memory()["VmHWM"]}
    print(json.dumps({"s": took, "logits": logits, "memory": peaks}), flush=True)
"""
)
FOREVER = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background is started without it
from qalign_fast import Scorer
scorer = Scorer.load(sys.argv[2])
scorer.score(sys.argv[1])
print("scored", flush=True)
while True:
    scorer.score(sys.argv[1])
"""

if __name__ == "__main__":
    main()
