"""Spans of a real server, as a collector gets them: which there are, whose children, how long, what is not in them."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import Any

import pytest

from qalign_fast.errors import MissingExtraError, OptionError
from qalign_fast.feed.items import Scored
from qalign_fast.serve import tracing
from qalign_fast.serve.batcher import Answer, State
from qalign_fast.serve.visit import Visit
from support.command_line import CLI
from support.goldens import ROOT
from support.servers import Answer as Reply
from support.servers import RunningServer, free_port, running_server

pytest.importorskip("opentelemetry.sdk", reason="OpenTelemetry is not installed: the extra `otel` has it")

PICTURE = (ROOT / "samples/coffee.jpg").read_bytes()
OTHER = (ROOT / "samples/coffee_noisy.jpg").read_bytes()
JPEG = {"content-type": "image/jpeg"}
PARENT = "b7ad6b7169203331"
SERVER = 2  # OpenTelemetry's number for a server's span
FEW = 1e-5  # seconds


@dataclass
class Collector:
    """What an OTLP collector is to those who send to it, on a port of this machine."""

    url: str = ""
    bodies: list[bytes] = field(default_factory=list)
    paths: set[str] = field(default_factory=set)

    def resources(self) -> list[Any]:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        return [found for body in self.bodies for found in ExportTraceServiceRequest.FromString(body).resource_spans]

    def spans(self) -> list[Any]:
        return [span for found in self.resources() for scope in found.scope_spans for span in scope.spans]

    def trace(self, trace: str) -> tuple[Any, list[Any]]:
        """The request's span of a trace, and its children in the order of their beginnings. Waits for it."""
        end = time.monotonic() + 30
        while not (found := [s for s in self.spans() if s.trace_id.hex() == trace and s.kind == SERVER]):
            assert time.monotonic() < end, self.spans()
            time.sleep(0.02)
        [request] = found
        below = [span for span in self.spans() if span.parent_span_id == request.span_id]
        return request, sorted(below, key=lambda span: (span.start_time_unix_nano, span.end_time_unix_nano))


@contextmanager
def collecting() -> Iterator[Collector]:
    found = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.paths.add(self.path)
            found.bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass
class Traced:
    """A server with a key, and where its spans go."""

    server: RunningServer
    collector: Collector

    def ask(self, method: str, path: str, body: bytes = b"", sampled: int = 1, **headers: str) -> tuple[str, Reply]:
        """One request, in a trace of its own that the client has begun."""
        trace = secrets.token_hex(16)
        sent = {"authorization": "Bearer sesame-4711", "traceparent": f"00-{trace}-{PARENT}-0{sampled}"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        return trace, self.server.ask(method, path, body or None, sent)

    def score(self, body: bytes, query: str = "", **headers: str) -> tuple[str, Reply]:
        return self.ask("POST", f"/v1/score{query}", body, **{"content-type": "image/jpeg", **headers})


@pytest.fixture(scope="module")
def traced() -> Iterator[Traced]:
    with collecting() as found:
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": found.url, "OTEL_BSP_SCHEDULE_DELAY": "20"}
        others = {"FASTAPI_OTEL_AUTO_CONFIGURE": "true", "QALIGN_API_KEY": "sesame-4711"}
        with running_server(environment=variables | others) as server:
            yield Traced(server, found)
    assert found.paths == {"/v1/traces"}  # FastAPI's own telemetry would also send logs and metrics


def attributes(span: Any) -> dict[str, Any]:
    def value(of: Any) -> Any:
        kind = of.WhichOneof("value")
        return [value(each) for each in of.array_value.values] if kind == "array_value" else getattr(of, kind)

    return {each.key: value(each.value) for each in span.attributes}


def seconds(span: Any) -> float:
    return (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9


def multipart(**pictures: bytes) -> tuple[bytes, str]:
    parts = [
        b'--edge\r\nContent-Disposition: form-data; name="f"; filename="%b.jpg"\r\n\r\n%b\r\n'
        % (name.encode(), picture)
        for name, picture in pictures.items()
    ]
    return b"".join(parts) + b"--edge--\r\n", "multipart/form-data; boundary=edge"


def test_spans_below_a_requests_are_the_parts_of_its_pictures_way(traced: Traced) -> None:
    trace, reply = traced.score(PICTURE)
    request, below = traced.collector.trace(trace)
    assert [span.name for span in below] == ["queue", "decode", "queue", "inference"]
    for one, following in pairwise(below):
        assert one.end_time_unix_nano == following.start_time_unix_nano
    assert request.start_time_unix_nano <= below[0].start_time_unix_nano
    assert below[3].end_time_unix_nano <= request.end_time_unix_nano
    waited, computed = (float(reply.headers[name]) / 1e3 for name in ("x-queue-time", "x-inference-time"))
    assert seconds(below[3]) == pytest.approx(computed, abs=FEW)
    assert seconds(below[0]) + seconds(below[2]) == pytest.approx(waited, abs=FEW)
    assert 0 < seconds(below[1]) < float(reply.headers["x-total-time"]) / 1e3 + FEW


def test_a_request_is_called_by_its_route_and_says_model_and_tasks(traced: Traced) -> None:
    trace, _ = traced.score(PICTURE, "?task=all")
    request, below = traced.collector.trace(trace)
    said = attributes(request)
    assert request.name == "POST /v1/score"
    assert (said["http.route"], said["http.method"], said["http.status_code"]) == ("/v1/score", "POST", 200)
    assert (said["qalign.model"], said["qalign.pictures"], said["qalign.bad"]) == ("mini", 1, 0)
    assert attributes(below[3]) == {"qalign.model": "mini", "qalign.batch": 1, "qalign.tasks": ["quality"]}
    assert [attributes(below[i])["qalign.before"] for i in (0, 2)] == ["decode", "inference"]
    trace, _ = traced.ask("GET", "/v2/models/mini")
    assert traced.collector.trace(trace)[0].name == "GET /v2/models/{model}"


def test_the_service_has_a_name_and_a_version(traced: Traced) -> None:
    traced.collector.trace(traced.score(PICTURE)[0])
    said = attributes(traced.collector.resources()[0].resource)
    assert said["service.name"] == "qalign-fast"
    assert said["service.version"]


def test_a_trace_that_the_client_has_begun_goes_on(traced: Traced) -> None:
    trace, _ = traced.score(PICTURE)
    request, below = traced.collector.trace(trace)
    assert request.parent_span_id.hex() == PARENT
    assert {span.trace_id.hex() for span in below} == {trace}


def test_a_trace_that_the_client_does_not_sample_is_not_sampled(traced: Traced) -> None:
    unsampled, reply = traced.score(PICTURE, sampled=0)
    assert reply.status == 200
    traced.collector.trace(traced.score(PICTURE)[0])
    assert unsampled not in {span.trace_id.hex() for span in traced.collector.spans()}


def test_nothing_of_a_pictures_name_and_of_keys_is_in_spans(traced: Traced) -> None:
    body, form = multipart(**{"grandma-file": OTHER, "grandma-bad": b"no picture"})
    asked = [
        traced.score(PICTURE, "?source=grandma-query.jpg&key=sesame-4711"),
        traced.score(body, content_type=form, x_request_id="grandma-id"),
        traced.score(b"no picture", "?source=grandma.jpg"),  # its error has the name in it
        traced.ask("GET", "/grandma-path.jpg?sesame-4711"),
        traced.score(PICTURE, authorization="Bearer grandma-wrong"),
        traced.score(PICTURE, "?model=grandma-model"),
    ]
    assert [reply.status for _, reply in asked] == [200, 200, 422, 404, 401, 404]
    names = [traced.collector.trace(trace)[0].name for trace, _ in asked]
    assert names == [*["POST /v1/score"] * 3, "GET unknown", "POST /v1/score", "POST /v1/score"]
    everything = b"".join(traced.collector.bodies)
    assert [secret for secret in (b"grandma", b"sesame", b"4711") if secret in everything] == []


def test_health_metrics_and_the_pages_files_have_no_spans(traced: Traced) -> None:
    paths = ("/health", "/ping", "/metrics", "/v2/health/live", "/v2/health/ready", "/page/nothing.js")
    untraced = {traced.ask("GET", path)[0] for path in paths}
    traced.collector.trace(traced.ask("GET", "/v1/models")[0])
    assert not untraced & {span.trace_id.hex() for span in traced.collector.spans()}


def test_bytes_that_are_no_text_in_an_address_are_no_fault_of_ours(traced: Traced) -> None:
    """OpenTelemetry's middleware alone would answer 500: it decodes the query."""
    with socket.create_connection(("127.0.0.1", traced.server.port), timeout=30) as connection:
        connection.sendall(b"GET /v1/models?\xff=\xfe HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sesame-4711\r\n\r\n")
        assert int(connection.recv(1 << 16).split()[1]) in (200, 400)


@pytest.mark.parametrize("accept", ["application/json", "application/x-ndjson"])
def test_each_picture_of_a_request_has_spans_and_a_bad_one_its_error(traced: Traced, accept: str) -> None:
    body, form = multipart(a=PICTURE, bad=b"no picture", b=OTHER)
    trace, _ = traced.score(body, content_type=form, accept=accept)
    request, below = traced.collector.trace(trace)
    said = attributes(request)
    assert (said["qalign.pictures"], said["qalign.bad"]) == (3, 1)
    names = [span.name for span in below]
    assert [names.count(name) for name in ("queue", "decode", "inference")] == [5, 3, 2]
    errors = {span.name: attributes(span)["error.type"] for span in below if "error.type" in attributes(span)}
    assert errors == {"decode": "ImageError"}
    assert all(request.start_time_unix_nano <= span.start_time_unix_nano for span in below)
    assert all(span.end_time_unix_nano <= request.end_time_unix_nano for span in below)


def test_the_last_spans_are_sent_when_the_server_is_told_to_stop() -> None:
    with collecting() as found:
        variables = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{found.url}/v1/traces", "OTEL_SERVICE_NAME": "rater"}
        with running_server(environment={**variables, "OTEL_BSP_SCHEDULE_DELAY": "600000"}) as server:
            traced = Traced(server, found)
            trace, _ = traced.score(PICTURE)
            assert found.spans() == []
            assert server.stop() == 0
        assert len(found.trace(trace)[1]) == 4
        assert attributes(found.resources()[0].resource)["service.name"] == "rater"


def test_a_collector_that_is_not_there_disturbs_nobody() -> None:
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}", "OTEL_BSP_SCHEDULE_DELAY": "20"}
    with running_server(environment=variables) as server:
        assert [server.ask("POST", "/v1/score", PICTURE, JPEG).status for _ in range(3)] == [200] * 3
        assert server.stop() == 0


def test_the_console_is_an_exporter_too() -> None:
    with running_server(environment={"OTEL_TRACES_EXPORTER": "console"}) as server:
        assert server.ask("POST", "/v1/score", PICTURE, JPEG).status == 200
        assert server.stop() == 0
        text = server.log.read_text("utf-8")
    assert [text.count(f'"name": "{name}"') for name in ("POST /v1/score", "queue", "decode", "inference")] == [
        1,
        2,
        1,
        1,
    ]


LOADED = """
import sys
import fastapi
before = set(sys.modules)  # FastAPI itself imports OpenTelemetry's API, without which it cannot be
from qalign_fast.serve.app import make_app
from qalign_fast.serve.settings import Settings
app = make_app(Settings())
found = [name for name in set(sys.modules) - before if name.startswith("opentelemetry")]
print(app.state.service.tracing, *found, *[name for name in sys.modules if name.startswith("opentelemetry.sdk")])
"""


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"},
        {"OTEL_SDK_DISABLED": "TRUE", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": " ", "OTEL_TRACES_EXPORTER": ""},
    ],
)
def test_opentelemetry_is_not_imported_where_no_spans_are_asked_for(variables: dict[str, str]) -> None:
    found = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")} | variables
    run = subprocess.run([sys.executable, "-c", LOADED], env=found, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["None"]


def serve_with(**variables: str) -> subprocess.CompletedProcess[str]:
    command = [*CLI, "serve", "--port", str(free_port())]
    return subprocess.run(
        command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"OTEL_TRACES_EXPORTER": "jaeger"}, "OTEL_TRACES_EXPORTER has 'jaeger'; the server has: otlp, console, none"),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "OTEL_EXPORTER_OTLP_PROTOCOL is 'grpc'; the server has: http/protobuf",
        ),
    ],
)
def test_what_cannot_be_exported_is_told_before_the_server_starts(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], said: str
) -> None:
    run = serve_with(**variables)
    assert run.returncode != 0
    assert said in " ".join(run.stderr.replace("│", " ").split())
    assert "Traceback" not in run.stderr
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(OptionError, match=said.split(";", maxsplit=1)[0]):
        tracing.exporters()


@pytest.mark.parametrize("package", tracing._PACKAGES)
def test_without_opentelemetry_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert tracing.exporters() == ()
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    with pytest.raises(MissingExtraError, match=r"pip install 'qalign-fast\[otel\]'"):
        tracing.exporters()


def noted(*groups: list[Answer]) -> list[Any]:
    """The spans that are made where a request's answers come in these groups."""
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    found, subject, visit = InMemorySpanExporter(), tracing.Tracing(()), Visit("a")
    subject.provider.add_span_processor(SimpleSpanProcessor(found))
    with subject.provider.get_tracer("test").start_as_current_span("request"):
        for answers in groups:
            visit.count(answers)
            subject.note(visit, "mini", answers)
    return [span for span in found.get_finished_spans() if span.name != "request"]


def answer_of(start: float) -> Answer:
    """An answer to a picture that came so many seconds from now, and was a second in each of its states."""
    times = {state: time.monotonic() + start + i for i, state in enumerate(State)}
    return Answer(Scored("p.jpg", {}), times=times)


def test_what_was_done_for_an_equal_picture_before_the_request_came_is_not_its_own() -> None:
    """Its spans begin with the request; what had ended by then has none."""
    found = noted([answer_of(-1.5)])
    assert [span.name for span in found] == ["decode", "queue", "inference"]
    assert [(span.end_time - span.start_time) / 1e9 for span in found] == pytest.approx([0.5, 1, 1], abs=0.25)


def test_a_request_of_many_pictures_has_a_bounded_number_of_spans() -> None:
    most = 4 * tracing._MOST
    assert len(noted([answer_of(0.1)] * 100)) == most
    assert len(noted(*[[answer_of(0.1)]] * 100)) == most  # row by row


def test_scores_that_were_kept_have_no_parts() -> None:
    assert noted([Answer(Scored("p.jpg", {}))]) == []
