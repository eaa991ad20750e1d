"""The server's state and its one way to scores: uploads in, answers out, for whichever protocol asks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from qalign_fast.errors import QAlignError
from qalign_fast.feed.items import ClipOptions, Item
from qalign_fast.scorer import Scorer
from qalign_fast.serve.batcher import Answer, Batcher, Ticket, Wanted
from qalign_fast.serve.bodies import Bodies
from qalign_fast.serve.cache import digest_of
from qalign_fast.serve.fetching import Fetching
from qalign_fast.serve.metrics import Metrics
from qalign_fast.serve.problems import NotFound, Problem, QueueFull, Unavailable, Unprocessable
from qalign_fast.serve.served import Served, facts_of, load_scorer
from qalign_fast.serve.urls import UrlGuard
from qalign_fast.serve.visit import ClientGone, visit_of

if TYPE_CHECKING:
    from starlette.requests import Request

    from qalign_fast.serve.settings import Settings
    from qalign_fast.serve.tracing import Tracing
    from qalign_fast.serve.uploads import Upload

_LOADING_RETRY = 5  # seconds
_POLL = 0.02  # seconds between two looks at whether all work is done
_PROMPT = 0.1  # seconds within which a client that goes is not noticed
_LINGER = 0.25  # seconds for last answers to be written, and for others to learn that it is not ready
log = structlog.get_logger("qalign_fast.serve")


class Service:
    """What all routes share. It is ready when every model is loaded and warm, until it is told to stop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.bodies = Bodies(settings)
        self.fetching = Fetching(settings.queue)
        self.guard = UrlGuard(settings.url_hosts, max_bytes=settings.limits.picture_bytes)
        self.models: dict[str, Served] = {}
        self.draining = False
        self.visits = 0  # requests that are being answered
        self.tracing: Tracing | None = None  # None: no spans

    @property
    def ready(self) -> bool:
        """Whether requests are answered."""
        return not self.draining and len(self.models) == len(self.settings.models)

    async def load(self) -> None:
        """Loads all models that are not there, one after the other, while health is answered already.

        Raises what `Scorer.load` raises.
        """
        for name, reference in self.settings.models:
            if name in self.models:
                continue
            self.add(name, reference, await asyncio.to_thread(load_scorer, reference, self.settings))
            log.info("model loaded", **self.models[name].facts)

    def add(self, name: str, reference: str | None, scorer: Scorer) -> None:
        """Serves a model that is loaded and warm."""
        facts = facts_of(name, reference, scorer, self.settings)
        batcher = Batcher(scorer, self.settings, self.metrics.of_model(name, facts))
        self.models[name] = Served(name, scorer, batcher, facts)

    async def drain(self) -> None:
        """Takes no more requests, and waits for those under way, at most `grace` seconds."""
        self.draining = True
        log.info("draining", requests=self.visits)
        with suppress(TimeoutError):
            async with asyncio.timeout(self.settings.grace):
                await asyncio.sleep(_LINGER)
                while self.visits:
                    await asyncio.sleep(_POLL)

    def close(self) -> None:
        """Ends the threads."""
        self.fetching.close()
        for served in self.models.values():
            served.batcher.close()

    def model(self, name: str | None) -> Served:
        """A model by its name, or the first. Raises Unavailable while it is not ready, NotFound for another name."""
        if not self.ready:
            raise self.unavailable()
        if name is None or name == "":
            return next(iter(self.models.values()))
        if name not in self.models:
            raise NotFound(f"model {name[:200]!r} is not here; there are: {', '.join(self.models)}")
        return self.models[name]

    def unavailable(self) -> Unavailable:
        """The answer of a server that is not ready."""
        if self.draining:
            return Unavailable("the server is about to stop", 1)
        return Unavailable("the server loads its models", _LOADING_RETRY)

    def full(self) -> QueueFull | None:
        """The refusal, where no model has room for one picture more."""
        full = None
        for served in self.models.values() if self.ready else ():
            try:
                served.batcher.check_room(1, self.settings.timeout)
            except QueueFull as refusal:
                full = refusal
            else:
                return None
        return full

    def check_room(self, name: str | None) -> None:
        """Raises QueueFull before a body is read that there would be no room for. Raises as `model`."""
        self.model(name).batcher.check_room(1, self.settings.timeout)

    async def score(
        self, request: Request, served: Served, uploads: Sequence[Upload], tasks: Sequence[str], **how: Any
    ) -> list[Answer]:
        """An answer for each upload, in order; `how` as `submit`. Raises Problem, and ClientGone where nobody waits."""
        tickets = await self.submit(request, served, uploads, tasks, **how)
        try:
            answers = await _until_gone(request, tickets)
        except BaseException:
            served.batcher.cancel(tickets)
            raise
        self.note(request, served, answers)
        return answers

    async def stream(
        self, request: Request, served: Served, tickets: Sequence[Ticket]
    ) -> AsyncIterator[tuple[str, Answer | Problem]]:
        """Each source and its answer, in order, as they are ready. Who asks for it cancels the tickets at its end."""
        for ticket in tickets:
            try:
                answer: Answer | Problem = await ticket.future
                assert isinstance(answer, Answer)
                self.note(request, served, [answer])
            except Problem as problem:
                answer = problem
            yield ticket.wanted.item.key, answer

    async def submit(
        self,
        request: Request,
        served: Served,
        uploads: Sequence[Upload],
        tasks: Sequence[str],
        *,
        clip: ClipOptions | None = None,
        timeout: float | None = None,
    ) -> list[Ticket]:
        """Takes the uploads into the queue: pictures, or with `clip` each as a clip. Raises Problem."""
        if not uploads:
            raise Unprocessable("there is no picture in the body")
        limit = self.deadline(request, timeout)
        fetched = await self._fetch(request, uploads, limit)
        wanted = [await self._wanted(upload, clip) for upload in fetched]
        return served.batcher.submit(wanted, tasks, visit_of(request).client, limit)

    async def score_frames(
        self, request: Request, served: Served, frames: Sequence[Upload], tasks: Sequence[str], clip: ClipOptions
    ) -> list[Answer]:
        """One answer for a clip that is given as its frames."""
        frames = await self._fetch(request, frames, self.deadline(request))
        for frame in frames:
            if isinstance(frame.data, QAlignError):
                raise Unprocessable(str(frame.data))
        item = Item("frames", [frame.media for frame in frames], "video", clip)
        tickets = served.batcher.submit([Wanted(item)], tasks, visit_of(request).client, self.deadline(request))
        try:
            answers = await _until_gone(request, tickets)
        except BaseException:
            served.batcher.cancel(tickets)
            raise
        self.note(request, served, answers)
        return answers

    def deadline(self, request: Request, timeout: float | None = None) -> float:
        """Seconds that a request may wait: the server's, or fewer where the client says so."""
        text = request.headers.get("x-request-timeout", "")
        with suppress(ValueError):
            if text and float(text) > 0:
                timeout = float(text)
        return min(timeout or self.settings.timeout, self.settings.timeout)

    def note(self, request: Request, served: Served, answers: Sequence[Answer]) -> None:
        """Counts what came of a request's pictures."""
        visit = visit_of(request)
        visit.count(answers)
        if self.tracing:
            self.tracing.note(visit, served.name, answers)
        asyncio.get_running_loop().call_soon(self._count, served, answers)  # it would hold up the answer

    def _count(self, served: Served, answers: Sequence[Answer]) -> None:
        for answer in answers:
            scored = answer.scored
            failed = type(scored.error).__name__ == "InternalError"
            self.metrics.images.labels("ok" if not scored.error else "failed" if failed else "bad").inc()
            for task, score in (scored.scores or {}).items():
                self.metrics.score.labels(served.name, task).observe(score.value)

    async def _fetch(self, request: Request, uploads: Sequence[Upload], timeout: float) -> Sequence[Upload]:
        return await self.fetching.fetch(uploads, partial(self.bodies.hold, visit_of(request)), timeout)

    async def _wanted(self, upload: Upload, clip: ClipOptions | None) -> Wanted:
        digest = None
        if self.settings.cache and isinstance(upload.data, bytes):
            digest = await asyncio.to_thread(digest_of, upload.data, clip)
        item = Item(upload.source, upload.media, "video" if clip else "image", clip or ClipOptions())
        return Wanted(item, digest)


async def _until_gone(request: Request, tickets: Sequence[Ticket]) -> list[Answer]:
    """All answers. Raises the first problem at once, ClientGone when the client closes its connection.

    Whether it does is only asked after a moment: that costs more than to wait for a prompt answer.
    """
    one = len(tickets) == 1
    answers: asyncio.Future[Any] = tickets[0].future if one else asyncio.gather(*(ticket.future for ticket in tickets))
    gone: asyncio.Task[None] | None = None

    def listen() -> None:
        nonlocal gone
        gone = asyncio.ensure_future(_disconnect(request))
        gone.add_done_callback(lambda _: answers.cancel())
        answers.add_done_callback(lambda done: done.cancelled() or done.exception())  # perhaps nobody else asks for it

    timer = asyncio.get_running_loop().call_later(_PROMPT, listen)
    try:
        found = await answers
    except asyncio.CancelledError:
        if gone and gone.done() and not gone.cancelled():
            raise ClientGone from None
        raise
    finally:
        timer.cancel()
        if gone:
            gone.cancel()
    return [found] if one else found


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
