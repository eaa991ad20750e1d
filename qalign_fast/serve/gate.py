"""Every request in and out: keys are checked here, refusals told, requests counted, timed and logged."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
from collections.abc import MutableMapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import structlog

from qalign_fast.serve.problems import Problem, QueueFull, WrongKey, problem_response
from qalign_fast.serve.visit import ClientGone, Visit, begin_visit

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from qalign_fast.serve.service import Service

OPEN = (
    "/",
    "/health",
    "/ping",
    "/metrics",
    "/v2",
    "/v2/health/live",
    "/v2/health/ready",
    "/openapi.json",
)  # without a key
_OPEN_BELOW = "/page/"
_PATIENCE, _OVER = 5.0, 8 << 20  # seconds, and bytes over the limit, of an unread body that is taken in all the same
_GONE = 499  # nginx's status for a client that has closed its connection; it is only counted
_SCORING = ("/v1/score", "/v1/score/video", "/v1/compare")
_REFUSALS = (401, 408, 413, 415, 422, 429, 503)
log = structlog.get_logger("qalign_fast.serve")


class Gate:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service
        self._keys = [hashlib.sha256(key.encode()).digest() for key in service.settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        key = self._key(headers)
        visit = begin_visit(scope, f"key {key}" if key is not None else (scope.get("client") or ("?",))[0])
        exchange = _Exchange(visit, headers, receive, send, self._service.settings.max_body + _OVER)
        self._service.visits += 1
        self._service.metrics.inflight.inc()
        if scope["method"] == "HEAD":
            scope["method"] = "GET"  # granian sends the head alone
        try:
            if problem := self._refusal(scope, key):
                await problem.response()(scope, exchange.receive, exchange.send)
            else:
                await self._app(scope, exchange.receive, exchange.send)
        except ClientGone:
            if not visit.status:  # its chunks may be damaged: then it is there to be told
                with suppress(Exception):
                    await problem_response(400, "the body breaks off")(scope, exchange.receive, exchange.send)
            visit.status = _GONE
        except Exception as error:
            log.error("internal error", route=_route(scope), exc_info=error)
            if not visit.status:
                with suppress(Exception):
                    await problem_response(500, "internal error")(scope, exchange.receive, exchange.send)
        finally:
            self._end(scope, visit, exchange.request_id)

    def _refusal(self, scope: Scope, key: int | None) -> Problem | None:
        """Why a request goes no further. Under a flood most are refused, so it is done here, at the least cost."""
        path = _path(scope)
        if self._keys and key is None and not (path in OPEN or path.startswith(_OPEN_BELOW)):
            return WrongKey("this server asks for a key: Authorization: Bearer KEY")
        if scope["method"] == "POST" and path in _SCORING:
            return self._service.full()
        return None

    def _key(self, headers: dict[str, str]) -> int | None:
        """Which of the keys a request has. The time that it takes does not depend on how much of it is right."""
        kind, _, sent = headers.get("authorization", "").partition(" ")
        digest = hashlib.sha256(sent.strip().encode("latin-1")).digest()  # the bytes as they were sent
        equal = [hmac.compare_digest(digest, key) for key in self._keys]
        return equal.index(True) if True in equal and kind.lower() == "bearer" else None

    def _end(self, scope: MutableMapping[str, Any], visit: Visit, request_id: str) -> None:
        service, route, status = self._service, _route(scope), visit.status or _GONE
        service.visits -= 1
        service.bodies.release(visit)
        service.metrics.inflight.dec()
        service.metrics.requests.labels(route, str(status)).inc()
        service.metrics.duration.labels(route).observe(visit.seconds())
        if status in _REFUSALS:
            service.metrics.rejected.labels(str(status)).inc()
        quiet = route in OPEN or route.startswith(_OPEN_BELOW) or status == QueueFull.status  # as a flood would be
        (log.debug if quiet else log.info)(
            "request",
            method=scope["method"],
            route=route,
            status=status,
            client=visit.client,
            ms=round(1e3 * visit.seconds(), 2),
            queue_ms=round(1e3 * (visit.waited or 0.0), 2),
            inference_ms=round(1e3 * visit.inference, 2),
            scored=visit.ok,
            bad=visit.bad,
            request_id=request_id,
        )


class _Exchange:
    """A request's `receive` and `send`, with what is added to every answer."""

    def __init__(self, visit: Visit, headers: dict[str, str], receive: Receive, send: Send, most: int) -> None:
        self._visit, self._headers, self._receive, self._send = visit, headers, receive, send
        self._most = most
        given = headers.get("x-request-id", "")
        self.request_id = given if given.isprintable() and 0 < len(given) <= 128 else secrets.token_hex(8)

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            self._visit.body_read = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._visit.status = message["status"]
            if not self._visit.body_read:
                await self._take_rest()
            message["headers"] = [*message.get("headers", ()), *self._added()]
        await self._send(message)

    def _added(self) -> list[tuple[bytes, bytes]]:
        added = [(b"x-request-id", self.request_id.encode("latin-1")), (b"x-content-type-options", b"nosniff")]
        added.append((b"x-total-time", b"%.3f" % (1e3 * self._visit.seconds())))
        if self._visit.waited is not None:
            added.append((b"x-queue-time", b"%.3f" % (1e3 * self._visit.waited)))
            added.append((b"x-inference-time", b"%.3f" % (1e3 * self._visit.inference)))
        return added

    async def _take_rest(self) -> None:
        """Takes in a body that nobody read: a client may not read an answer before it has sent all of it."""
        length = self._headers.get("content-length", "")
        short = (int(length) if length.isdecimal() else 0) <= self._most
        has_body = length not in ("", "0") or "transfer-encoding" in self._headers
        if not (has_body and short) or "expect" in self._headers or self._visit.status == 408:
            return
        size = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                while not self._visit.body_read and size <= self._most:
                    size += len((await self.receive()).get("body", b""))


def _path(scope: MutableMapping[str, Any]) -> str:
    """Without the prefix that the application is served below."""
    return str(scope["path"]).removeprefix(scope.get("root_path", ""))


def _route(scope: MutableMapping[str, Any]) -> str:
    """The route's template, which has no names of models or files in it."""
    path, route = _path(scope), scope.get("route")
    known = path if path in _SCORING else _OPEN_BELOW if path.startswith(_OPEN_BELOW) else "unknown"
    return str(getattr(route, "path", None) or known)
