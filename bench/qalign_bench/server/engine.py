"""The engine without a server, in a process of its own: the scores to expect, single scores, and `feed` over files.

    python -m qalign_bench.server.engine '<json>'        contestants/wire.py describes the messages

The spec has "model", "device" and "threads". The commands:

expected  {"requests"}                          -> {"expected": [the scores of each request's rows]}
score     {"files", "task"}                     -> {"ms": the time of Scorer.score of each file's bytes, in order}
feed      {"files", "task", "seconds", "batch"} -> {"finished": the moments at which scores came}
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import cycle
from pathlib import Path

from qalign_bench.contestants.wire import Handler, Message, serve
from qalign_bench.contestants.worker import weights_bytes
from qalign_bench.figures.environment import versions
from qalign_bench.server.requests import files_of
from qalign_fast import Scorer
from qalign_fast.errors import ImageError
from qalign_fast.feed.items import Item

_WORKERS = 4  # as in `Scorer.score_iter`


def load(spec: Message) -> tuple[Message, dict[str, Handler]]:
    """Loads the model that the spec asks for. Raises what `Scorer.load` raises."""
    started = time.perf_counter()
    scorer = Scorer.load(spec["model"], device=spec["device"], threads=spec["threads"]).warm()
    engine = scorer.engine
    ready = {
        "name": "Scorer",
        "load_s": time.perf_counter() - started,
        "versions": versions("qalign-fast", "numpy", "fastapi", "granian", "uvicorn"),
        "device": engine.device,
        "engine": engine.name,
        "precision": engine.precision,
        "kernels": engine.kernels,
        "weights_bytes": weights_bytes(Path(spec["model"]), engine.name),
        "tasks": scorer.tasks(),
    }
    read = cache(lambda file: Path(file).read_bytes())

    def expected(command: Message) -> Message:
        find = cache(lambda file, task: _score(scorer, read(file), task))
        return {
            "expected": [
                [find(file, task) for file in files_of(request) for task in request["tasks"]]
                for request in command["requests"]
            ]
        }

    def score(command: Message) -> Message:
        return {"ms": [_time(scorer, read(file), command["task"]) for file in command["files"]]}

    def feed(command: Message) -> Message:
        return {"finished": _feed(scorer, command["files"], command["task"], command["seconds"], command["batch"])}

    return ready, {"expected": expected, "score": score, "feed": feed}


def _score(scorer: Scorer, data: bytes, task: str) -> float | None:
    """A picture's score; None for a picture that has none."""
    try:
        return scorer.score(data, task).value
    except ImageError:
        return None


def _time(scorer: Scorer, data: bytes, task: str) -> float:
    started = time.perf_counter()
    scorer.score(data, task)
    return 1e3 * (time.perf_counter() - started)


def _feed(scorer: Scorer, files: Sequence[str], task: str, seconds: float, batch: int) -> list[float]:
    """The moments at which the scores of the files came, which are repeated for so many seconds."""
    started = time.perf_counter()

    def items() -> Iterator[Item[None]]:
        for file in cycle(files):
            if time.perf_counter() - started > seconds:
                return
            yield Item(None, Path(file))

    scored = scorer.feed.run(items(), (task,), batch_size=batch, workers=_WORKERS)
    return [time.perf_counter() - started for _ in scored]


if __name__ == "__main__":
    serve(load)
