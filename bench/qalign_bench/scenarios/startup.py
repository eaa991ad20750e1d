"""`startup`: from the start of a process to its first score, with the artifact's pages warm and cold.

Cold means that the system has dropped the artifact's pages, but not those of Python and its packages. Hashes of large
files are remembered from the first process on, as they are for a user. The mini model's files are small and are always
checked.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from qalign_bench.cli.session import Run, Session
from qalign_bench.contestants.models import Model
from qalign_bench.contestants.wire import Message
from qalign_bench.figures.runs import of_times, our_run
from qalign_bench.figures.spread import median
from qalign_fast.errors import QAlignError

_REPEAT = 7
_STATIONS = ("python", "import", "load", "first score")
_COLD = hasattr(os, "posix_fadvise")
_SCRIPT = """
import time
started = time.perf_counter()
from qalign_fast import Scorer
imported = time.perf_counter()
import json, resource, sys
spec = json.loads(sys.argv[1])
scorer = Scorer.load(spec["model"], device=spec["device"], engine=spec["engine"], threads=spec["threads"])
loaded = time.perf_counter()
scorer.score_tasks(spec["picture"], spec["tasks"])
scored = time.perf_counter()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
times = {"import": imported - started, "load": loaded - imported, "first score": scored - loaded}
print(json.dumps({"s": times, "peak": peak, "device": scorer.engine.device, "engine": scorer.engine.name}), flush=True)
"""


@dataclass
class _Starts:
    """What the processes of one case answered. Times are in ms."""

    device: str = "cpu"
    engine: str = ""
    total: list[float] = field(default_factory=list)
    stations: list[dict[str, float]] = field(default_factory=list)
    peak: int = 0


def measure(session: Session) -> None:
    """Leaves a run for every model, warm and cold. Raises QAlignError where a process fails."""
    options = session.options
    models = session.models()
    repeat = options.repeat or _REPEAT
    kinds = ("warm", "cold") if _COLD else ("warm",)
    starts = {(m, kind): _Starts() for m in range(len(models)) for kind in kinds}
    for m in range(len(models)):
        _start(session, models[m], _Starts())  # reads its pages and remembers its hashes
    try:
        for r in range(repeat):
            for s, ((m, kind), found) in enumerate(starts.items()):
                session.progress(r * len(starts) + s, repeat * len(starts), f"process {r + 1} of {repeat}, {kind}")
                if kind == "cold":
                    for name in models[m].manifest.files:
                        drop_pages(Path(models[m].loaded, name))
                _start(session, models[m], found)
            session.noise.sample()
    finally:
        session.runs += [_run(session, models[m], kind, s) for (m, kind), s in starts.items() if s.total]


def _start(session: Session, model: Model, found: _Starts) -> None:
    options = session.options
    picture = options.files[0] if options.files else _bundled_picture()
    asked = {"model": model.loaded, "engine": model.engine, "picture": picture, "tasks": options.tasks}
    spec = json.dumps(asked | {"device": options.device, "threads": options.threads})
    started = time.perf_counter()
    command = [sys.executable, "-P", "-c", _SCRIPT, spec]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        total = time.perf_counter() - started
        if not line:
            raise QAlignError(f"{model.reference}: {(process.stderr.read().strip().splitlines() or ['failed'])[-1]}")
    told: Message = json.loads(line)
    stations = {name: 1e3 * seconds for name, seconds in told["s"].items()}
    found.device, found.engine = told["device"], told["engine"]
    found.total.append(1e3 * total)
    found.stations.append({"python": 1e3 * total - sum(stations.values())} | stations)
    found.peak = max(found.peak, told["peak"])


def _bundled_picture() -> str:
    """A photograph of 600 x 400 pixels."""
    import qalign_export

    return str(Path(qalign_export.__file__).parent / "photographs" / "coffee.jpg")


def drop_pages(path: Path) -> None:
    """Drops a file's pages from the system's cache, so that its next reader reads the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _run(session: Session, model: Model, kind: str, starts: _Starts) -> Run:
    ready: Message = {
        "name": "qalign-fast",
        "precision": model.manifest.precision,
        "engine": starts.engine,
        "kernels": None,
        "device": starts.device,
        "weights_bytes": model.weights_bytes,
        "load_s": 1e-3 * median([s["load"] for s in starts.stations]),
        "versions": {},
    }
    measured = {
        "pages": kind,
        "ms_of": "starting Python to a first score",
        **of_times(starts.total, starts.total, 1),
        "images_per_second": None,
        "images_per_second_range": None,
        "stations_ms": {station: median([s[station] for s in starts.stations]) for station in _STATIONS},
        "peak_memory_bytes": {"host": starts.peak, "device": None},
    }
    return our_run(session, model, ready) | measured
