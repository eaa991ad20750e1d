"""A scorer whose reading and scoring are held until a test lets them go, and which notes all that it is given."""

from __future__ import annotations

import asyncio
import gc
import zlib
from collections.abc import Awaitable, Callable, Sequence
from functools import wraps
from math import inf
from queue import SimpleQueue
from threading import Condition
from types import SimpleNamespace
from typing import Any

import numpy as np

from qalign_fast.errors import ImageError, QAlignError, TaskError
from qalign_fast.feed.items import ClipOptions, Item, Scored
from qalign_fast.feed.reading import Read
from qalign_fast.levels import Score, score_of
from qalign_fast.serve.batcher import Answer, Batcher, Ticket, Wanted
from qalign_fast.serve.metrics import Metrics
from qalign_fast.serve.settings import Settings

PATIENCE = 20.0  # seconds until a test gives up
FACTS = {"family": "none", "precision": "none", "engine": "none"}


class Gate:
    """What threads pass through: all of them at once, as at first, or as many as are let through."""

    def __init__(self) -> None:
        self._free = inf
        self._changed = Condition()
        self.came: SimpleQueue[Any] = SimpleQueue()  # what each one that came had with it

    def hold(self) -> None:
        self._set(0)

    def open(self) -> None:
        self._set(inf)

    def let(self, count: int = 1) -> None:
        self._set(self._free + count)

    def go_through(self, having: Any) -> None:
        self.came.put(having)
        with self._changed:
            assert self._changed.wait_for(lambda: self._free > 0, PATIENCE)
            self._free -= 1

    async def next(self) -> Any:
        """What the next one had that came."""
        return await asyncio.to_thread(self.came.get, True, PATIENCE)

    def all(self) -> list[Any]:
        return [self.came.get() for _ in range(self.came.qsize())]

    def _set(self, free: float) -> None:
        with self._changed:
            self._free = free
            self._changed.notify_all()


class HeldScorer:
    """Takes media {"bytes", "path"}. Bytes that begin with "bad" cannot be read; "poison" among them fails a batch."""

    def __init__(self, in_flight: int = 1) -> None:
        self.feed = self
        self.engine = SimpleNamespace(
            in_flight=in_flight,
            family=SimpleNamespace(clip_frames=31),
            config=SimpleNamespace(max_frames=lambda _: 118),
        )
        self.reading, self.scoring = Gate(), Gate()  # names; lists of names
        self.scored: list[tuple[str, tuple[str, ...]]] = []  # names and tasks
        self.closed = False

    def read(self, item: Item[str], tasks: Sequence[str]) -> Read[str]:
        self.reading.go_through(item.key)
        if isinstance(item.media, QAlignError):
            return Read(item.key, item.medium, error=item.media)
        media: Any = item.media
        if media["bytes"].startswith(b"bad"):
            return Read(item.key, item.medium, error=ImageError(f"{item.key}: not a picture"))
        return Read(item.key, item.medium, tuple(tasks), media["bytes"])  # type: ignore[arg-type]

    def score_read(self, batch: Sequence[Read[str]]) -> list[Scored[str]]:
        self.scoring.go_through([read.key for read in batch])
        for read in batch:
            self.scored.append((read.key, read.prompts))  # type: ignore[arg-type]
        if any(b"poison" in read.pixels for read in batch):  # type: ignore[operator]
            raise RuntimeError("the engine\nfell over")
        return [Scored(r.key, {task: score_for(r.pixels, task) for task in r.prompts}) for r in batch]  # type: ignore

    def tasks(self, _: str = "image") -> tuple[str, ...]:
        return "quality", "aesthetics"

    def usual_tasks(self, medium: str = "image") -> tuple[str, ...]:
        return self.tasks(medium)

    def require(self, tasks: Sequence[str], medium: str = "image") -> None:
        if unknown := set(tasks) - set(self.tasks(medium)):
            raise TaskError(f"no task {', '.join(sorted(unknown))}")

    def close(self) -> None:
        self.closed = True

    def names(self) -> list[str]:
        """Of all that was scored."""
        return [name for name, _ in self.scored]


def score_for(data: bytes, task: str = "quality") -> Score:
    """What these bytes score."""
    drawn = np.random.default_rng(zlib.crc32(data + task.encode()))
    return score_of(drawn.standard_normal(5).astype(np.float32), task)


def wanted(
    name: str, data: bytes | None = None, *, clip: ClipOptions | None = None, digest: bytes | None = None
) -> Any:
    """A picture that its name makes different from others, or one of these bytes."""
    media = Media(bytes=name.encode() if data is None else data, path=name)
    return Wanted(Item(name, media, "video" if clip else "image", clip or ClipOptions()), digest=digest)


class Media(dict[str, Any]):
    """A dict to which weak references can be had."""


def on_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Runs a test on an event loop, and holds that the loop had nothing to complain of.

    Garbage is collected at its end alone: a test may hold that something is gone before.
    """

    @wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        complaints: list[Any] = []

        async def main() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
            async with asyncio.timeout(PATIENCE):
                await test(*arguments, **named)

        gc.freeze()  # what was there before need not be looked through
        gc.disable()
        try:
            asyncio.run(main())
            gc.collect()  # futures complain when they go
        finally:
            gc.enable()
            gc.unfreeze()
        assert complaints == []

    return run


def make(scorer: HeldScorer, **settings: Any) -> tuple[Batcher, Metrics]:
    metrics = Metrics()
    return Batcher(scorer, Settings(**settings), metrics.of_model("m", FACTS)), metrics  # type: ignore[arg-type]


async def until(true: Callable[[], bool]) -> None:
    """For what no event tells of: what the loop does with what a thread has handed over."""
    async with asyncio.timeout(PATIENCE):
        while not true():
            await asyncio.sleep(0.001)


async def answers(tickets: Sequence[Ticket]) -> list[Answer]:
    return [await ticket.future for ticket in tickets]


def count_of(metrics: Metrics, name: str) -> float:
    """A metric's only sample."""
    lines = [line for line in metrics.text().decode().splitlines() if line.startswith((f"{name}{{", f"{name} "))]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)
