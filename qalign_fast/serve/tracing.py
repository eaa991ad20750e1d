"""Spans of requests, where OpenTelemetry's own variables ask for them. Elsewhere nothing of it is imported here.

    OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4318 qalign-fast serve

Below a request's span are those of its pictures: `queue` (before it is read, and again before it is computed), `decode`
and `inference`. Like the log, spans hold no picture, no name of one, and no key.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import pairwise
from threading import Thread
from typing import TYPE_CHECKING, Any

from qalign_fast.errors import MissingExtraError, OptionError
from qalign_fast.serve.batcher import State
from qalign_fast.version import __version__

if TYPE_CHECKING:
    from fastapi import FastAPI
    from fastapi.telemetry import TelemetryConfig
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from qalign_fast.serve.batcher import Answer
    from qalign_fast.serve.visit import Visit

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL = "http/protobuf"
_EXPORTERS = ("otlp", "console")
_PACKAGES = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http", "opentelemetry.instrumentation.asgi")
_SERVICE = "qalign-fast"  # unless OTEL_SERVICE_NAME says otherwise
_UNTRACED = ("/health", "/ping", "/metrics", "/v2/health/live", "/v2/health/ready")
_UNTRACED_BELOW = "/page/"
_SCORING = ("/v1/score", "/v1/score/video", "/v1/compare")
_SECRET = ("authorization", "cookie", ".*key.*", ".*token.*")  # headers, should somebody ask for headers in spans
_SECRETS = "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SANITIZE_FIELDS"
_MOST = 32  # pictures of one request that have spans of their own
_PATIENCE = 2.0  # seconds for the last spans, when the server stops; it has three
_PARTS = ("queue", "decode", "queue", "inference")  # of a picture's way, from each of its states to the next
_SCOPE = "qalign.scope"
# For FastAPI's own telemetry, which any SDK in the process switches on: its spans have queries, its log records bodies.
NO_OTHER: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}


def exporters() -> tuple[str, ...]:
    """The exporters that the environment asks for. None: no spans.

    Raises OptionError for one that the server does not have, MissingExtraError where OpenTelemetry is not installed.
    """
    if _variable("OTEL_SDK_DISABLED").lower() == "true":
        return ()
    named = _variable("OTEL_TRACES_EXPORTER") or ("otlp" if any(map(_variable, _ENDPOINTS)) else "")
    found = tuple(dict.fromkeys(name for each in named.split(",") if (name := each.strip()) not in ("", "none")))
    for name in found:
        if name not in _EXPORTERS:
            raise OptionError(f"OTEL_TRACES_EXPORTER has {name!r}; the server has: {', '.join(_EXPORTERS)}, none")
    protocol = next(filter(None, map(_variable, _PROTOCOLS)), _PROTOCOL)
    if "otlp" in found and protocol != _PROTOCOL:
        raise OptionError(f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}; the server has: {_PROTOCOL}, port 4318")
    if found:
        _require_packages()
    return found


def instrument(app: FastAPI) -> Tracing | None:
    """Has spans made of the application's requests, if the environment asks for them. Raises as `exporters`.

    It is called after all other middleware was added.
    """
    names = exporters()
    if not names:
        return None
    tracing = Tracing(names)
    app.add_middleware(_Requests, provider=tracing.provider)
    return tracing


class Tracing:
    """The spans of one application's pictures, and where all its spans go."""

    def __init__(self, names: Sequence[str]) -> None:
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self.provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        for name in names:
            self.provider.add_span_processor(BatchSpanProcessor(_exporter(name)))
        self._tracer = self.provider.get_tracer("qalign_fast.serve", __version__)

    def note(self, visit: Visit, model: str, answers: Sequence[Answer]) -> None:
        """Makes the spans of pictures that were answered, which the visit has counted already."""
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.trace import get_current_span

        request = get_current_span()
        if not (isinstance(request, ReadableSpan) and request.is_recording()):
            return
        count = visit.ok + visit.bad
        request.set_attributes({"qalign.model": model, "qalign.pictures": count, "qalign.bad": visit.bad})
        began = request.start_time or 0
        epoch = time.time_ns() - time.monotonic_ns()
        for answer in answers[: max(0, _MOST - (count - len(answers)))]:
            for name, start, end, attributes in _parts(answer):
                first, last = max(began, epoch + round(1e9 * start)), epoch + round(1e9 * end)
                if last >= first:  # else it was done before this request came, for an equal picture
                    attributes["qalign.model"] = model
                    self._tracer.start_span(name, start_time=first, attributes=attributes).end(last)

    def close(self) -> None:
        """Sends what there is to send, as far as it can be sent in a few seconds."""
        thread = Thread(target=self.provider.shutdown, daemon=True)  # its own patience is 30 s
        thread.start()
        thread.join(_PATIENCE)


class _Requests:
    """ASGI middleware that makes the spans of requests.

    OpenTelemetry is shown a request without its path and its query, since they may have names of pictures in them; what
    is no UTF-8 in a query would also be an error there. A span is called by its route, which is known with the answer.
    """

    def __init__(self, app: ASGIApp, provider: TracerProvider) -> None:
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

        self._app = app
        self._traced: ASGIApp = OpenTelemetryMiddleware(
            self._within,
            tracer_provider=provider,
            http_capture_headers_sanitize_fields=[*_SECRET, *filter(None, _variable(_SECRETS).split(","))],
            exclude_spans=["receive", "send"],
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _UNTRACED or scope["path"].startswith(_UNTRACED_BELOW):
            await self._app(scope, receive, send)
        else:
            shown = {**scope, "path": "", "raw_path": b"", "query_string": b"", _SCOPE: scope}
            await self._traced(shown, receive, send)

    async def _within(self, shown: Scope, receive: Receive, send: Send) -> None:
        from opentelemetry.trace import get_current_span

        scope, span = shown[_SCOPE], get_current_span()

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start" and span.is_recording():
                known = scope["path"] if scope["path"] in _SCORING else "unknown"  # it is refused before it has a route
                route = str(getattr(scope.get("route"), "path", known))
                span.update_name(f"{scope['method']} {route}")
                span.set_attribute("http.route", route)
            await send(message)

        await self._app(scope, receive, send_on)


def _parts(answer: Answer) -> Iterator[tuple[str, float, float, dict[str, Any]]]:
    """Each part of a picture's way that it came through: name, the times of its beginning and end, attributes."""
    scored, times = answer.scored, answer.times
    ways = [(name, *pair) for name, pair in zip(_PARTS, pairwise(State), strict=True) if times.keys() >= set(pair)]
    for name, state, following in ways:
        attributes: dict[str, Any] = {}
        if name == "queue":
            attributes["qalign.before"] = "decode" if state == State.WAITING else "inference"
        if name == "inference":
            attributes |= {"qalign.batch": answer.batch, "qalign.tasks": tuple(scored.scores or ())}
        if scored.error and state == ways[-1][1]:
            attributes["error.type"] = type(scored.error).__name__
        yield name, times[state], times[following], attributes


def _exporter(name: str) -> SpanExporter:
    if name == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()  # it reads its other variables itself


def _resource() -> Any:
    from opentelemetry.sdk.resources import Resource

    resource = Resource.create({"service.version": __version__})
    named = not str(resource.attributes["service.name"]).startswith("unknown_service")
    return resource if named else resource.merge(Resource({"service.name": _SERVICE}))


def _require_packages() -> None:
    for package in _PACKAGES:
        try:
            missing = find_spec(package) is None
        except (ImportError, ValueError):  # the package that it is in is missing
            missing = True
        if missing:
            raise MissingExtraError(f"traces need OpenTelemetry: pip install 'qalign-fast[otel]' (no {package})")


def _variable(name: str) -> str:
    return os.environ.get(name, "").strip()
