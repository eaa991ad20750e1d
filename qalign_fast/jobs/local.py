"""Shards in, the same shards scored out, by one engine in this process: reading runs ahead over shards' borders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qalign_fast.feed.items import Item
from qalign_fast.jobs.fetching import Fetcher
from qalign_fast.jobs.reader import IsolatedReader
from qalign_fast.jobs.rows import answer_of
from qalign_fast.scorer import Scorer
from qalign_kernels.cores import cores

if TYPE_CHECKING:
    from qalign_fast.engines.contract import Engine
    from qalign_fast.feed.batching import Feed
    from qalign_fast.feed.reading import Read
    from qalign_fast.jobs.dedup import Duplicates
    from qalign_fast.jobs.entries import Entry
    from qalign_fast.jobs.options import JobOptions, RunOptions


@dataclass(frozen=True)
class EngineSetup:
    """What an engine needs to know, in this process or another."""

    job: JobOptions
    run: RunOptions
    device: str
    threads: int | None
    workers: int

    def load(self) -> Scorer:
        """The model. Raises what `Scorer.load` raises, and TaskError."""
        run = self.run
        scorer = Scorer.load(
            run.model,
            device=self.device,
            precision=run.precision,
            engine=run.engine,
            threads=self.threads,
            verify=run.verify,
            limits=self.job.limits,
            base=run.base,
        )
        scorer.require(self.job.tasks)
        return scorer


class LocalEngine:
    """An engine and the processes that decode for it. `close` ends them."""

    def __init__(self, setup: EngineSetup, duplicates: Duplicates | None = None) -> None:
        """Loads the model. Raises what `EngineSetup.load` raises."""
        job = setup.job
        self._scorer, self._setup, self._duplicates = setup.load(), setup, duplicates
        self._fetcher = Fetcher(job.taking, job.limits, setup.run.time_limit)
        self._reader = IsolatedReader(
            self._scorer.engine,
            job.limits,
            job.tasks,
            workers=setup.workers,
            time_limit=setup.run.time_limit,
            clip=job.clip,
            fetcher=self._fetcher,
        )

    def run(
        self, shards: Iterable[list[Entry]], scored: Callable[[Entry], None] = lambda _: None
    ) -> Iterator[list[Entry]]:
        """Scores shards, in order, and leaves in each entry what was found. `scored` hears of each entry.

        A batch never holds entries of two shards, so that a shard's scores do not depend on which are scored before it.
        Raises what the engine raises.
        """
        started: dict[int, list[Entry]] = {}
        batches: Iterable[list[Read[Any]]] = self.feed.read_ahead(
            _items(shards, started),
            self._reader,
            batch_size=self._setup.run.batch_size,
            workers=self._reader.threads,
            group=lambda entry: entry.shard,
        )
        if self._duplicates is not None:
            batches = self._duplicates.mark(batches)
        for batch in self.feed.score_batches(batches):
            for each in batch:
                entry: Entry = each.key
                if each.scores is not None:
                    entry.answers = {task: answer_of(score) for task, score in each.scores.items()}
                if self._duplicates is not None:
                    self._duplicates.settle(entry)
                scored(entry)
                if entry is started[entry.shard][-1]:
                    yield started.pop(entry.shard)

    @property
    def engine(self) -> Engine:
        """What runs the model."""
        return self._scorer.engine

    @property
    def feed(self) -> Feed:
        """What scores its pictures."""
        return self._scorer.feed

    def close(self) -> None:
        self._reader.close()
        self._fetcher.close()
        self._scorer.close()


def default_workers() -> int:
    """Processes that decode, where the user names no number: one for each core, and two at least."""
    return max(2, cores())


def _items(shards: Iterable[list[Entry]], started: dict[int, list[Entry]]) -> Iterator[Item[Entry]]:
    for entries in shards:
        started[entries[0].shard] = entries
        for entry in entries:
            yield Item(entry, entry.source, entry.medium)
