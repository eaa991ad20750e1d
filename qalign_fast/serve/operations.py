"""What those who run the server ask: is it alive, is it ready, what has it done; and the page's files."""

from __future__ import annotations

import mimetypes
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import APIRouter
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles

from qalign_fast.serve.metrics import CONTENT_TYPE
from qalign_fast.serve.schemas import Health, Live, problems

if TYPE_CHECKING:
    from fastapi import FastAPI

    from qalign_fast.serve.service import Service

_PAGE = Path(__file__).parent / "page"
_POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; style-src 'self'; script-src 'self'; "
    "object-src 'none'; base-uri 'none'; frame-ancestors 'none'"
)
_PAGE_HEADERS = {"content-security-policy": _POLICY, "referrer-policy": "no-referrer", "cache-control": "no-cache"}


class _PageFiles(StaticFiles):
    def file_response(self, *args: object, **kwargs: object) -> Response:
        response = super().file_response(*args, **kwargs)  # type: ignore[arg-type]
        response.headers.update(_PAGE_HEADERS)
        return response


def make_router(service: Service) -> APIRouter:
    """Health and metrics. None of them needs a key."""
    router = APIRouter(tags=["operations"])

    def readiness() -> Response:
        if service.ready:
            return JSONResponse({"live": True, "ready": True})
        return service.unavailable().response()

    ready_or_not = {200: {"model": Health}, **problems(503)}

    @router.get("/health", response_model=None, responses=ready_or_not)
    async def health() -> Response:
        """As ready."""
        return readiness()

    @router.get("/ping", response_model=None, responses=ready_or_not)
    async def ping() -> Response:
        """As ready."""
        return readiness()

    @router.get("/metrics", response_model=None, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """What the server has counted, for Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    @router.get("/v2/health/live", response_model=None, responses={200: {"model": Live}})
    async def live() -> Response:
        """Whether the process answers."""
        return JSONResponse({"live": True})

    @router.get("/v2/health/ready", response_model=None, responses=ready_or_not)
    async def ready() -> Response:
        """Whether every model is loaded and warm, and the server is not about to stop."""
        return readiness()

    return router


def add_page(app: FastAPI) -> None:
    """The page and its files."""
    mimetypes.add_type("text/javascript", ".js")  # some machines say otherwise, and browsers then refuse it
    app.mount("/page", _PageFiles(directory=_PAGE), name="page")

    @app.get("/", include_in_schema=False, response_model=None)
    async def page() -> Response:
        return FileResponse(_PAGE / "index.html", headers=_PAGE_HEADERS)
