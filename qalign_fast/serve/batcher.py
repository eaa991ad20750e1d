"""Pictures and clips of many requests in, their scores out: read on threads, then scored in batches by one model.

All of its state lives on the event loop, so that nothing here takes a lock. Threads get a piece of work and give back
its result by `call_soon_threadsafe`.

    submit -> waiting, fairly -> reading (threads) -> read -> scoring (a thread for each batch) -> each ticket's future
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import partial
from math import ceil
from typing import TYPE_CHECKING, Any

import structlog

from qalign_fast.errors import InternalError, one_line
from qalign_fast.feed.items import Item, Scored
from qalign_fast.feed.threads import Threads, give_way
from qalign_fast.pixels.encoded import media_name
from qalign_fast.serve.cache import ScoreCache
from qalign_fast.serve.fair_queue import FairQueue
from qalign_fast.serve.problems import Late, QueueFull, TooMany
from qalign_kernels.cores import cores

if TYPE_CHECKING:
    from qalign_fast.feed.reading import Read
    from qalign_fast.scorer import Scorer
    from qalign_fast.serve.metrics import ModelMetrics
    from qalign_fast.serve.settings import Settings

_READERS = 4, 32  # threads that read pictures: one a core, within these bounds
_AHEAD = 2  # batches that are read ahead
_SMALL = 1 << 20  # bytes of a picture that one thread may read and compute
_COMPARED = 8  # pictures in flight of one length that a new one is compared with
_LONGEST_RETRY = 60  # seconds
log = structlog.get_logger("qalign_fast.serve")


class State(IntEnum):
    """Where a job is. Up to READ it may still be given up."""

    WAITING = 0
    READING = 1
    READ = 2
    SCORING = 3
    DONE = 4


@dataclass(frozen=True, slots=True)
class Wanted:
    """A picture or clip that somebody wants scored.

    digest: of the media's bytes and of how they are read, by which scores are kept. None: they are not.
    """

    item: Item[str]  # its key is the source's name
    digest: bytes | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of it, and the seconds that it waited, was read and was computed (with its batch).

    times: when it came to each state, by time.monotonic; empty for kept scores. batch: pictures computed with it.
    """

    scored: Scored[str]
    waited: float = 0.0
    reading: float = 0.0
    inference: float = 0.0
    times: Mapping[State, float] = field(default_factory=dict)
    batch: int = 0


@dataclass(eq=False, slots=True)
class Ticket:
    """One request's wish for a job's result. Several may wait for one job."""

    wanted: Wanted
    future: asyncio.Future[Answer]
    job: Job | None = None  # None: the answer was there at once


@dataclass(eq=False, slots=True)
class Job:
    """A picture or clip that is computed once, in `tasks`, for all of its tickets."""

    wanted: Wanted
    tasks: tuple[str, ...]
    client: str
    request: int
    cost: int  # frames
    tickets: list[Ticket]
    state: State = State.WAITING
    read: Read[str] | None = None
    reads_alone: bool = False  # it is SCORING, and is still being read; its thread says when it is not
    times: dict[State, float] = field(default_factory=dict)  # when it came there

    def enter(self, state: State) -> None:
        self.state = state
        self.times[state] = time.monotonic()

    def seconds(self, start: State, end: State) -> float:
        return max(0.0, self.times.get(end, 0.0) - self.times.get(start, 0.0)) if start in self.times else 0.0


class Batcher:
    """Scores for one model. Every method is called on the loop; `settings` has the bounds."""

    def __init__(self, scorer: Scorer, settings: Settings, metrics: ModelMetrics) -> None:
        self.scorer = scorer
        self.pending = 0  # jobs that somebody waits for
        self._settings, self._metrics = settings, metrics
        self._cache = ScoreCache(settings.cache)
        self._loop = asyncio.get_running_loop()
        self._waiting: FairQueue[Job] = FairQueue()
        self._read: deque[Job] = deque()
        self._in_flight: dict[tuple[object, ...], list[Job]] = {}  # by what equal ones have in common
        self._reading = self._scoring = self._work = 0  # jobs, batches, frames that are pending
        self._most_readers = min(max(cores(), _READERS[0]), _READERS[1])
        self._readers = Threads(self._most_readers, "qalign-serve-read", give_way)
        self._engine = Threads(scorer.engine.in_flight, "qalign-serve-engine")
        self._frame_seconds = 0.0  # measured: wall seconds a frame while there is work
        self._last_end = 0.0
        self._requests = 0
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None

    def submit(self, wanted: Sequence[Wanted], tasks: Sequence[str], client: str, timeout: float) -> list[Ticket]:
        """Takes a request's pictures, all or none. Each ticket's future has its answer, or Late after `timeout` s.

        Raises TooMany for more than there can ever be room for, QueueFull for more than there is room for now.
        """
        self.check_room(len(wanted), timeout)
        self._requests += 1
        tickets = [self._ticket(each, tuple(tasks), client) for each in wanted]
        self._set_deadline([ticket for ticket in tickets if ticket.job], timeout)
        self._turn()
        return tickets

    def check_room(self, count: int, timeout: float) -> None:
        """Raises as `submit` does, where so many pictures have no room."""
        most = self._settings.queue
        if count > most:
            raise TooMany(f"{count} pictures in one request; the limit is {most}")
        if self.pending + count > most:
            raise QueueFull(f"the queue is full: {self.pending} of {most} pictures", self.retry_after())
        if self.pending and self.expected_wait() > timeout:
            raise QueueFull(f"the wait would be over {timeout:g} s", self.retry_after())

    def expected_wait(self) -> float:
        """Seconds until what is pending now is done, as measured."""
        return self._work * self._frame_seconds

    def retry_after(self) -> int:
        """Whole seconds after which there should be room again."""
        return min(max(1, ceil(self.expected_wait())), _LONGEST_RETRY)

    def cancel(self, tickets: Sequence[Ticket]) -> None:
        """Nobody waits for these any more. A job that nobody waits for is dropped before it is computed."""
        for ticket in tickets:
            ticket.future.cancel()
            self._leave(ticket)
        self._turn()

    def close(self) -> None:
        """Ends the threads and the scorer. Nothing that waits is begun any more."""
        self._closed = True
        self._readers.close()
        self._engine.close()
        self.scorer.close()

    def _set_deadline(self, tickets: Sequence[Ticket], timeout: float) -> None:
        if not tickets:
            return
        left = len(tickets)
        timer = self._loop.call_later(timeout, self._expire, tickets)

        def one_done(_: object) -> None:
            nonlocal left
            left -= 1
            if not left:
                timer.cancel()  # which also lets go of the tickets, and of their pictures

        for ticket in tickets:
            ticket.future.add_done_callback(one_done)

    def _ticket(self, wanted: Wanted, tasks: tuple[str, ...], client: str) -> Ticket:
        ticket = Ticket(wanted, self._loop.create_future())
        if wanted.digest and (scores := self._cache.get(wanted.digest, tasks)):
            self._metrics.cached.inc()
            ticket.future.set_result(Answer(Scored(wanted.item.key, scores)))
            return ticket
        job = self._equal_job(wanted, tasks)
        if job is None:
            job = self._new_job(wanted, tasks, client)
        ticket.job = job
        job.tickets.append(ticket)
        return ticket

    def _new_job(self, wanted: Wanted, tasks: tuple[str, ...], client: str) -> Job:
        job = Job(wanted, tasks, client, self._requests, self._cost(wanted.item), [])
        job.enter(State.WAITING)
        if kind := _kind(wanted):
            self._in_flight.setdefault(kind, []).append(job)
        self._count(job, 1)
        self._waiting.put(job, client, job.request, job.cost)
        return job

    def _cost(self, item: Item[str]) -> int:
        """The most frames that are computed for it. A clip that asks for more than fit is refused when it is read."""
        if item.medium == "image":
            return 1
        asked = item.clip.max_frames or self.scorer.engine.family.clip_frames
        return max(1, min(asked, int(self.scorer.engine.config.max_frames(0))))

    def _equal_job(self, wanted: Wanted, tasks: tuple[str, ...]) -> Job | None:
        """A job that computes the same picture. One that still waits takes on what tasks it lacks."""
        data = _data(wanted)
        for job in self._in_flight.get(_kind(wanted) or (), [])[:_COMPARED]:
            if _data(job.wanted) != data:
                continue
            if job.state == State.WAITING:
                job.tasks = tuple(dict.fromkeys((*job.tasks, *tasks)))
            if set(tasks) <= set(job.tasks):
                self._metrics.shared.inc()
                return job
        return None

    def _leave(self, ticket: Ticket) -> None:
        job = ticket.job
        if job is None or job.state == State.DONE:
            return
        if ticket in job.tickets:
            job.tickets.remove(ticket)
        if job.tickets or job.state >= State.SCORING:
            return
        if job.state == State.WAITING:
            self._waiting.remove(job, job.client, job.request, job.cost)
        elif job.state == State.READ:
            self._read.remove(job)
        self._finish(job)

    def _finish(self, job: Job) -> None:
        """Takes a job, which is in no queue any more, out of all counts, and lets go of its picture."""
        job.enter(State.DONE)
        self._count(job, -1)
        if kind := _kind(job.wanted):
            self._in_flight[kind].remove(job)
            if not self._in_flight[kind]:
                del self._in_flight[kind]
        job.read = None
        job.wanted = replace(job.wanted, item=replace(job.wanted.item, media=b""))

    def _count(self, job: Job, step: int) -> None:
        self.pending += step
        self._work += step * job.cost
        self._metrics.queue_size.set(self.pending)

    def _expire(self, tickets: Sequence[Ticket]) -> None:
        for ticket in tickets:
            job = ticket.job
            if not ticket.future.done() and job and (job.state < State.SCORING or job.reads_alone):
                ticket.future.set_exception(Late("the deadline passed in the queue", self.retry_after()))
                ticket.future.exception()  # a request that has ended asks for none of its futures: that is no fault
                self._leave(ticket)
        self._turn()

    def _turn(self) -> None:
        """Starts whatever can be started."""
        if self._closed:
            return
        self._begin_reading()
        while self._scoring < self.scorer.engine.in_flight and (batch := self._next_batch()):
            self._scoring += 1
            for job in batch:
                job.enter(State.SCORING)
            reads = [job.read for job in batch if job.read]
            self._engine.submit(partial(self._score_batch, batch, reads))
            self._begin_reading()  # in the places that the batch has left

    def _begin_reading(self) -> None:
        ahead = _AHEAD * self._settings.max_batch
        while self._reading < self._most_readers and self._reading + len(self._read) < ahead:
            if (job := self._waiting.pop()) is None:
                return
            job.enter(State.READING)
            if self._is_alone(job):
                job.state, job.reads_alone = State.SCORING, True  # it is not given up: one thread does all there is
                self._scoring += 1
                self._engine.submit(partial(self._score_alone, job))
            else:
                self._reading += 1
                self._readers.submit(partial(self._read_job, job))

    def _is_alone(self, job: Job) -> bool:
        """Whether there is nothing else to do, and it is soon read: then one thread reads it and computes it."""
        data, busy = _data(job.wanted), self._reading or self._scoring or self._read or self._settings.max_wait_ms
        is_small = isinstance(data, bytes) and len(data) <= _SMALL
        return self.pending == 1 and not busy and is_small and job.wanted.item.medium == "image"

    def _next_batch(self) -> list[Job]:
        """What is computed next: a clip alone, or pictures. None while others that are being read are worth a wait."""
        if not self._read:
            return []
        if self._read[0].wanted.item.medium == "video":
            return [self._read.popleft()]
        ready = [job for job in self._read if job.wanted.item.medium == "image"]
        batch = _in_turns(ready)[: self._settings.max_batch]
        if len(batch) < self._settings.max_batch and self._reading and self._waits_for_more(ready[0]):
            return []
        chosen = set(map(id, batch))
        self._read = deque(job for job in self._read if id(job) not in chosen)
        return batch

    def _waits_for_more(self, oldest: Job) -> bool:
        left = self._settings.max_wait_ms / 1e3 - (time.monotonic() - oldest.times[State.READ])
        if left <= 0:
            return False
        if self._timer is None:
            self._timer = self._loop.call_later(left, self._waited)
        return True

    def _waited(self) -> None:
        self._timer = None
        self._turn()

    def _read_job(self, job: Job) -> bool:
        """On a reading thread.

        The frames of an error lead to this one. What is read has no name here: both would live until garbage is
        collected, with the picture's bytes.
        """
        item = job.wanted.item
        if job.state == State.DONE:  # it was given up, and `item` may be without its picture
            self._hand_over(self._was_read, job, None)
        else:
            self._hand_over(self._was_read, job, self.scorer.feed.read(item, job.tasks))
        return False

    def _was_read(self, job: Job, read: Read[str] | None) -> None:
        self._reading -= 1
        if read and job.state == State.READING:
            job.read = read
            self._enter_read(job)
            if read.error:
                self._answer(job, Scored(read.key, None, read.error))
            else:
                self._read.append(job)
        self._turn()

    def _enter_read(self, job: Job) -> None:
        job.enter(State.READ)
        self._metrics.decode.observe(job.seconds(State.READING, State.READ))

    def _score_alone(self, job: Job) -> bool:
        """On an engine thread: one change of threads less, which is much beside a small model's score."""
        reads = [self.scorer.feed.read(job.wanted.item, job.tasks)]
        when, size = time.monotonic(), int(not reads[0].error)
        job.reads_alone = False
        found = self._score(reads) if size else [Scored(reads[0].key, None, reads[0].error)]
        self._hand_over(self._was_scored_alone, job, when, found, size)
        del reads, found  # see _read_job
        return False

    def _was_scored_alone(self, job: Job, when: float, found: Sequence[Scored[str]], size: int) -> None:
        job.times[State.READ] = when
        if size:
            job.times[State.SCORING] = when
        self._was_scored([job], found, size)
        self._loop.call_soon(self._metrics.decode.observe, job.seconds(State.READING, State.READ))

    def _score_batch(self, batch: Sequence[Job], reads: list[Read[str]]) -> bool:
        """On an engine thread."""
        self._hand_over(self._was_scored, batch, self._score(reads), len(reads))
        return False

    def _score(self, reads: list[Read[str]], *, again: bool = True) -> list[Scored[str]]:
        """A batch that fails is cut in two, once: what is wrong with one picture does not touch the other half."""
        try:
            return self.scorer.feed.score_read(reads)
        except Exception as error:
            if again and len(reads) > 1:
                middle = len(reads) // 2
                return [
                    scored for half in (reads[:middle], reads[middle:]) for scored in self._score(half, again=False)
                ]
            log.error("the model failed", pictures=len(reads), exc_info=error)
            fault = InternalError(f"the model failed ({type(error).__name__}: {one_line(error)})")
            fault.__cause__ = error.with_traceback(None)  # its frames have the batch's pixels, and this error
            return [Scored(read.key, None, fault) for read in reads]

    def _was_scored(self, batch: Sequence[Job], found: Sequence[Scored[str]], size: int) -> None:
        """`size`: of the batch that was computed; 0 where there was nothing to compute."""
        self._scoring -= 1
        now = time.monotonic()
        for job, scored in zip(batch, found, strict=True):
            self._answer(job, scored, size)
        if size:
            self._measure(now, batch)
            self._loop.call_soon(self._note_batch, size, now - batch[0].times[State.SCORING])
        self._turn()

    def _note_batch(self, size: int, seconds: float) -> None:
        """Called after the answers, which it would hold up."""
        self._metrics.batch_size.observe(size)
        self._metrics.inference.observe(seconds)

    def _measure(self, now: float, batch: Sequence[Job]) -> None:
        """Wall seconds a frame: since the last batch ended, or since the batch's first job came."""
        frames = sum(job.cost for job in batch)
        began = max(self._last_end, min(job.times[State.WAITING] for job in batch))
        latest = (now - began) / frames
        self._frame_seconds = latest if not self._frame_seconds else 0.8 * self._frame_seconds + 0.2 * latest
        self._last_end = now

    def _answer(self, job: Job, scored: Scored[str], batch: int = 0) -> None:
        self._finish(job)
        begun = State.SCORING if State.SCORING in job.times else State.READ
        waited = job.seconds(State.WAITING, State.READING) + job.seconds(State.READ, begun)
        self._loop.call_soon(self._metrics.queue.observe, waited)
        reading, inference = job.seconds(State.READING, State.READ), job.seconds(State.SCORING, State.DONE)
        if scored.scores and job.wanted.digest:
            self._cache.put(job.wanted.digest, scored)
        for ticket in job.tickets:
            if not ticket.future.done():
                own = _as_asked(scored, ticket.wanted.item.key)
                ticket.future.set_result(Answer(own, waited, reading, inference, job.times, batch))
        job.tickets.clear()  # each of them has its job: together they would live until garbage is collected

    def _hand_over(self, do: Callable[..., None], *given: Any) -> None:
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(do, *given)


def _in_turns(jobs: Sequence[Job]) -> list[Job]:
    """Each client's first one, then each one's second, and so on: one who came late waits for the next batch alone."""
    before: Counter[str] = Counter()
    turns: list[tuple[int, Job]] = []
    for job in jobs:
        turns.append((before[job.client], job))
        before[job.client] += 1
    return [job for _, job in sorted(turns, key=lambda turn: turn[0])]


def _as_asked(scored: Scored[str], source: str) -> Scored[str]:
    """A job's result for a ticket that calls the same picture by another name. Errors begin with the name."""
    name, error = media_name(scored.key), scored.error
    if error and scored.key != source and (text := str(error)).startswith(name):
        renamed = type(error)(media_name(source) + text[len(name) :])
        renamed.__cause__ = error.__cause__
        error = renamed
    return replace(scored, key=source, error=error)


def _data(wanted: Wanted) -> Any:
    """The bytes of a picture that was sent."""
    media = wanted.item.media
    return media.get("bytes") if isinstance(media, dict) else media


def _kind(wanted: Wanted) -> tuple[object, ...] | None:
    """What equal pictures have in common, and is quick to tell. None for what is not compared."""
    data = _data(wanted)
    return (wanted.item.medium, wanted.item.clip, len(data)) if isinstance(data, bytes) else None
