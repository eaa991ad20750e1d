"""Settings in, the ASGI application out. It loads its models when it starts, and answers health meanwhile."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from qalign_fast.errors import QAlignError
from qalign_fast.serve import document, operations, routes, tracing
from qalign_fast.serve.gate import Gate
from qalign_fast.serve.problems import Problem, of_error, problem_response
from qalign_fast.serve.protocols import kserve_v1, open_inference, rerank, text_embeddings, vllm
from qalign_fast.serve.service import Service
from qalign_fast.serve.settings import Settings
from qalign_fast.version import __version__

_CANNOT_LOAD = 1  # the exit code of a worker whose model cannot be loaded
_LAST_SECONDS = 3.0  # after the grace period, or when all is done: for answers that are still being sent
log = structlog.get_logger("qalign_fast.serve")


def make_app(settings: Settings, *, service: Service | None = None, owns_process: bool = False) -> FastAPI:
    """The application. `owns_process`: SIGTERM drains it and then ends the process, as does a model that fails to load.

    `service` is one that is loaded already, for an application in another server.
    """
    service = service or Service(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if owns_process:
            _drain_on_sigterm(service)
            _end_with_parent()
        loading = asyncio.create_task(_load(service, owns_process))
        yield
        loading.cancel()
        with suppress(asyncio.CancelledError, QAlignError):
            await loading
        service.draining = True
        service.close()
        if service.tracing:
            await asyncio.to_thread(service.tracing.close)

    app = FastAPI(
        title="qalign-fast",
        version=__version__,
        description="Rates pictures and clips as people would, with OneAlign / Q-Align: 1 (bad) to 5 (excellent).",
        docs_url=None,  # they would load their scripts from another host
        redoc_url=None,
        redirect_slashes=False,  # to where the client's own Host says
        lifespan=lifespan,
        telemetry=tracing.NO_OTHER,
    )
    for protocol in (routes, operations, open_inference, text_embeddings, vllm, rerank, kserve_v1):
        app.router.routes += protocol.make_router(service).routes  # include_router would match each path twice
    operations.add_page(app)
    document.complete(app, with_keys=bool(settings.api_keys))
    _answer_errors(app)
    app.state.service = service
    app.add_middleware(Gate, service=service)
    service.tracing = tracing.instrument(app)
    return app


async def _load(service: Service, owns_process: bool) -> None:
    try:
        await service.load()
        if owns_process:
            gc.collect()
            gc.freeze()  # what is there now stays: to look through it again takes 20 ms, in which nothing is answered
        log.info("ready", models=list(service.models))
    except Exception as error:
        ours = isinstance(error, QAlignError)
        log.error("model cannot be loaded", error=str(error), exc_info=None if ours else error)
        if not owns_process:
            raise
        os._exit(_CANNOT_LOAD)  # nothing is under way yet, and the supervisor is to know


def _drain_on_sigterm(service: Service) -> None:
    """granian's handler stops at once. So SIGTERM drains first, and SIGINT, whose handler stays granian's, follows."""
    loop = asyncio.get_running_loop()
    tasks: list[asyncio.Task[None]] = []

    async def stop() -> None:
        await service.drain()
        os.kill(os.getpid(), signal.SIGINT)
        # granian waits for every connection, also for one that never sends what it has begun
        loop.call_later(_LAST_SECONDS, os._exit, 0)

    def begin() -> None:
        if not tasks:
            tasks.append(loop.create_task(stop()))

    with suppress(NotImplementedError):  # Windows
        loop.add_signal_handler(signal.SIGTERM, begin)


def _end_with_parent() -> None:
    """A worker whose supervisor was killed would hold the port for ever, with nobody to stop it."""
    parent, loop = multiprocessing.parent_process(), asyncio.get_running_loop()
    if parent is None:
        return

    def ended() -> None:
        loop.remove_reader(parent.sentinel)
        log.error("the supervisor is gone")
        os.kill(os.getpid(), signal.SIGTERM)

    with suppress(NotImplementedError):  # Windows
        loop.add_reader(parent.sentinel, ended)


def _answer_errors(app: FastAPI) -> None:
    """Every error is JSON of one form."""

    @app.exception_handler(Problem)
    async def problem(_: Request, error: Problem) -> Response:
        return error.response()

    @app.exception_handler(QAlignError)
    async def ours(_: Request, error: QAlignError) -> Response:
        return of_error(error).response()

    @app.exception_handler(Exception)
    async def fault(_: Request, __: Exception) -> Response:
        return problem_response(500, "internal error")  # the gate writes it into the log

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return problem_response(422, "; ".join(map(_said, error.errors())) or "not what the route takes")

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        what = {404: f"no route {request.url.path[:200]}", 405: f"{request.method} is not taken here"}
        response = problem_response(error.status_code, what.get(error.status_code, str(error.detail)))
        response.headers.update(error.headers or {})
        return response


def _said(error: dict[str, Any]) -> str:
    where: Sequence[Any] = error.get("loc", ())
    return f"{'.'.join(map(str, where))}: {error.get('msg', '')}"
