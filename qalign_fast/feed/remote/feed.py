"""Items in, `Scored` out, by a server: several requests under way, results in order, memory bounded."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from qalign_fast.feed.batching import Feed
from qalign_fast.feed.items import Item, Key, Scored
from qalign_fast.feed.remote.courier import Courier
from qalign_fast.feed.snapshots import as_it_is
from qalign_fast.feed.threads import Task, Threads

if TYPE_CHECKING:
    from qalign_fast.engines.contract import Engine
    from qalign_fast.feed.remote.server import ServedModel
    from qalign_fast.pixels.limits import PictureLimits

_MOST_IN_FLIGHT = 32  # requests of one run
_MOST_THREADS = 256  # of all runs
_MOST_HELD = 256 << 20  # bytes of snapshots that wait


class RemoteFeed(Feed):
    """Scores items on a server, as `Feed` does with an engine; several threads may use it.

    An error about an item is in its Scored, whether it was found here or there. What the server or the connection does
    wrong is raised, as an engine's errors are.
    """

    def __init__(self, engine: Engine, model: ServedModel, limits: PictureLimits) -> None:
        super().__init__(engine, limits)
        self._model = model
        self._senders = Threads(_MOST_THREADS, "qalign-http")

    def score(self, item: Item[Key], tasks: Sequence[str]) -> Scored[Key]:
        """Scores one item in this thread."""
        self._senders.check_open()
        return Courier(self._engine, self._model, self._limits, tasks).take(item, as_it_is)[0]()

    def run(
        self,
        items: Iterable[Item[Key]],
        tasks: Sequence[str],
        *,
        batch_size: int = 16,
        workers: int = 4,
        strict: bool = False,
    ) -> Iterator[Scored[Key]]:
        """As `Feed.run`. At most `batch_size` items are under way, and 32; `workers` threads make pixels at a time."""
        most = min(batch_size, _MOST_IN_FLIGHT)
        courier = Courier(self._engine, self._model, self._limits, tasks, workers)
        waiting: deque[tuple[Task[Scored[Key]], int]] = deque()
        held = 0
        source = iter(items)
        try:
            while True:
                while len(waiting) < most and (held < _MOST_HELD or not waiting):
                    if (item := next(source, None)) is None:
                        break
                    self._senders.check_open()
                    work, size = courier.take(item)
                    waiting.append((self._senders.call(work), size))
                    held += size
                if not waiting:
                    return
                task, size = waiting.popleft()
                scored = task.result()
                held -= size
                if strict and scored.error:
                    raise scored.error
                yield scored
        finally:
            courier.stopped = True

    def close(self) -> None:
        """As `Feed.close`. Requests that are under way end."""
        super().close()
        self._senders.close()
        self._model.server.close()
