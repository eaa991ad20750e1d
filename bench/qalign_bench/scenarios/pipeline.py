"""`pipeline`: files on disk to scores, as `Scorer` does it, beside the engine alone over batches of the same size.

A round is a pass over the files, which are repeated for about a second, and as many forwards of pictures in memory. The
two take turns, so that their ratio is fair. The engine is busy while it is inside `encode` or `decode`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import cycle, islice

from qalign_bench.cli.session import Run, Session
from qalign_bench.contestants.command_lines import our_contestant
from qalign_bench.contestants.generated_pictures import generated_pictures
from qalign_bench.contestants.models import Model
from qalign_bench.contestants.process import Process
from qalign_bench.contestants.wire import Message
from qalign_bench.figures.runs import of_times, of_work, our_run
from qalign_bench.figures.spread import median, ratio

_ROUNDS = 9
_DISTINCT, _SIZE = 16, (1632, 1224)  # generated files, 2 MP
_BATCH = 8
_WORKERS = 4  # as in `Scorer.score_iter`
_SECONDS = 1.0  # about the time of a pass of the engine alone
_LEAST, _MOST = 2, 64  # batches in a pass


@dataclass
class _Passes:
    """One model's rounds at one batch size. Times are in ms for a picture."""

    ready: Message
    batch: int
    batches: int  # of a pass
    files: list[str]
    total: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    memory: dict[str, int | None] = field(default_factory=dict)

    def play(self, process: Process, tasks: list[str]) -> None:
        """Plays a round."""
        asked = {"batch": self.batch, "tasks": tasks}
        pictures = self.batch * self.batches
        found = process.ask("pipeline", **asked, files=list(islice(cycle(self.files), pictures)), workers=_WORKERS)
        forwards = process.ask("latency", **asked, warmup=0, repeat=self.batches)
        self.total.append(1e3 * found["seconds"] / pictures)
        self.busy.append(1e3 * found["engine_busy_s"] / pictures)
        self.alone.append(median(forwards["ms"]) / self.batch)
        self.memory = found["peak_memory_bytes"]


def measure(session: Session) -> None:
    """Leaves a run for every model and batch. Raises QAlignError where an engine or a file fails."""
    options = session.options
    models = session.models()
    files = list(options.files) or generated_pictures(options.work, _DISTINCT, *_SIZE)
    batches = sorted(set(options.batches)) or [_BATCH]
    rounds = options.repeat or _ROUNDS
    steps = [(model, batch) for model in models for batch in batches]
    for s, (model, batch) in enumerate(steps):
        contestant = our_contestant(model, options)
        passes = None
        with contestant.start() as process:
            try:
                for r in range(rounds):
                    what = f"{contestant.name}, batch {batch}, round {r + 1} of {rounds}"
                    session.progress(s * rounds + r, len(steps) * rounds, what)
                    passes = passes or _begin(process, batch, files, list(options.tasks))
                    passes.play(process, list(options.tasks))
                    session.noise.sample()
            finally:
                if passes and passes.alone:
                    session.runs.append(_run(session, model, passes))


def _begin(process: Process, batch: int, files: list[str], tasks: list[str]) -> _Passes:
    """Warms the engine up and decides how many batches a pass has."""
    [ms] = process.ask("latency", batch=batch, tasks=tasks, warmup=1, repeat=1)["ms"]
    return _Passes(process.ready, batch, max(_LEAST, min(_MOST, round(1e3 * _SECONDS / ms))), files)


def _run(session: Session, model: Model, passes: _Passes) -> Run:
    share = ratio(passes.alone, passes.total)
    run = our_run(session, model, passes.ready) | {
        "batch": passes.batch,
        "ms_of": "a picture of a pass over files",
        **of_times(passes.total, passes.total, 1),
        "stations_ms": {"engine": median(passes.busy), "engine idle": median(passes.total) - median(passes.busy)},
        "peak_memory_bytes": passes.memory,
        "pictures": passes.batch * passes.batches,
        "files": len(passes.files),
        "workers": _WORKERS,
        "engine_busy_share": median([busy / total for busy, total in zip(passes.busy, passes.total)]),
        "engine_only_images_per_second": 1e3 / median(passes.alone),
        "of_engine_only": {"share": share.middle, "range": [share.low, share.high]},
    }
    return run | of_work(session, run, as_upstream=False, peaks={})
