"""Requests that no good client makes, over sockets: each gets a documented answer or none, and the server lives on.

QALIGN_FULL=1 sends 5,000 of them, where 1,000 are sent else.
"""

from __future__ import annotations

import json
import re
import select
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from pydantic import ValidationError

from qalign_fast.scorer import Scorer
from qalign_fast.serve.problems import Unprocessable
from qalign_fast.serve.protocols import kserve_v1, open_inference_schemas, rerank, text_embeddings, vllm
from qalign_fast.serve.protocols.foreign import RequestBody, checked
from support.amount import FULL
from support.malformed import INFER, KINDS, PNG, Malformed, draw
from support.servers import RunningServer, running_server

COUNT = 5000 if FULL else 1000
AT_A_TIME = 8
PATIENCE = 0.3  # seconds in which an answer comes to what may be a whole request; then it is told that no more comes
STATUS_LINE = re.compile(rb"HTTP/1\.[01] (\d{3}) ")
# what the HTTP library itself answers, with no body: a head that it cannot read
FROM_HYPER = (400, 414, 431)


@pytest.fixture(scope="module")
def server(kernels: Path) -> Iterator[RunningServer]:
    with running_server("--max-body", "1000000") as running:
        yield running


def exchange(port: int, sent: Malformed) -> bytes:
    """What comes back until the server closes the connection."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        with suppress(OSError):  # the server may have answered and closed before all of it is sent
            connection.sendall(sent.data)
            if not sent.is_whole and not select.select([connection], [], [], PATIENCE)[0]:
                connection.shutdown(socket.SHUT_WR)
        with suppress(ConnectionError):
            while part := connection.recv(1 << 16):
                received += part
    return received


def fault(sent: Malformed, received: bytes) -> str | None:
    """What is wrong with an answer. None: nothing."""
    while received.startswith(b"HTTP/1.1 100 "):
        received = received.partition(b"\r\n\r\n")[2]
    if not received:
        return "no answer" if sent.is_whole else None
    head, _, body = received.partition(b"\r\n\r\n")
    found = STATUS_LINE.match(head)
    if not found:
        return "not HTTP"
    status = int(found[1])
    if status >= 500 or 300 <= status < 400:
        return f"status {status}"
    if status >= 400 and body:
        with suppress(ValueError):
            return None if set(json.loads(body)) >= {"error", "error_type"} else "another body"
        return None if b"transfer-encoding" in head.lower() or b"HTTP/1.1 " in body else "a body that is no JSON"
    if status >= 400 and status not in FROM_HYPER and not sent.data.startswith(b"HEAD"):
        return f"status {status} without a body"
    return None


def test_malformed_requests_get_documented_answers_and_the_server_lives(server: RunningServer) -> None:
    workers = server.workers()
    with Scorer.load() as scorer:
        expected = scorer.score(PNG)
    requests = [draw(seed) for seed in range(COUNT)]
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        answers = list(pool.map(lambda sent: exchange(server.port, sent), requests))
    faults = [
        (seed, KINDS[seed % len(KINDS)].__name__, found, requests[seed].data[:300], answers[seed][:300])
        for seed in range(COUNT)
        if (found := fault(requests[seed], answers[seed]))
    ]
    assert not faults, f"{len(faults)} of {COUNT}, the first of them: {faults[:3]}"
    statuses = Counter(int(found[1]) for answer in answers if (found := STATUS_LINE.match(answer)))
    assert {200, 400, 404, 413, 415, 422} <= set(statuses), statuses  # the requests go as deep as they are meant to

    row = server.ask("POST", "/v1/score?logits=true", PNG, {"content-type": "image/png"}).json()["rows"][0]
    assert row["logits"] == list(expected.logits)
    assert server.workers() == workers
    end = time.monotonic() + 30
    while time.monotonic() < end and (server.metric("qalign_inflight") > 1 or server.metric("qalign_queue_size")):
        time.sleep(0.05)
    assert server.metric("qalign_inflight") == 1 and server.metric("qalign_queue_size") == 0
    log = server.log.read_text("utf-8")
    assert not any(word in log for word in ("internal error", "Traceback", "panicked", '"exception"'))


def test_a_body_that_breaks_off_is_told_so(server: RunningServer) -> None:
    head = b"POST /v1/score HTTP/1.1\r\nhost: a\r\nconnection: close\r\n"
    for rest in (b"transfer-encoding: chunked\r\n\r\n4\r\nabcd\r\nZZ\r\n", b"content-length: 9\r\n\r\nabcd"):
        received = exchange(server.port, Malformed(head + rest, is_whole=False))
        assert received.startswith(b"HTTP/1.1 400 ")
        assert json.loads(received.partition(b"\r\n\r\n")[2])["error"] == "the body breaks off"


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/predict", b'{"inputs": [%s]}', 413),
        ("/predict", b'{"inputs": [[%s]]}', 422),
        ("/rerank", b'{"query": "quality", "texts": [%s]}', 413),
        ("/classify", b'{"messages": [{"content": [%s]}]}', 413),
        ("/v1/models/mini:predict", b'{"instances": [%s]}', 413),
        ("/v1/score", b'{"images": [%s]}', 413),
        ("/v1/score/video", b'{"frames": [%s]}', 413),
        (INFER, b'{"inputs": [%s]}', 400),
        (INFER, b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [%s]}]}', 400),
        (INFER, b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [3], "data": [%s]}]}', 400),
        (INFER, b'{"inputs": [], "outputs": [%s]}', 400),
    ],
)
def test_a_list_of_faults_is_refused_at_its_first(server: RunningServer, path: str, body: bytes, status: int) -> None:
    """All faults of a body of 64 MiB together would take more memory than a machine has."""
    whole = body % b",".join([b"0"] * 400_000)
    answer = server.ask("POST", path, whole, {"content-type": "application/json"})
    assert answer.status == status and len(answer.body) < 1000, answer.body[:300]


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (text_embeddings.PredictRequest, {"inputs": [0] * 1000}),
        (text_embeddings.PredictRequest, {"inputs": [[0] * 1000]}),
        (rerank.TextsRequest, {"query": "", "texts": [0] * 1000}),
        (rerank.DocumentsRequest, {"query": "", "documents": [0] * 1000}),
        (vllm.ClassifyRequest, {"input": [0] * 1000}),
        (vllm.ClassifyRequest, {"messages": [0] * 1000}),
        (kserve_v1.PredictRequest, {"instances": [0] * 1000}),
        (open_inference_schemas.InferRequest, {"inputs": [0] * 1000, "outputs": [0] * 1000}),
        (open_inference_schemas.InferRequest, {"inputs": [{"shape": ["a"] * 1000}]}),
    ],
)
def test_a_bodys_check_ends_at_a_lists_first_fault(kind: type[RequestBody], content: object) -> None:
    with pytest.raises(Unprocessable) as raised:
        checked(kind, content)
    assert isinstance(raised.value.__cause__, ValidationError) and raised.value.__cause__.error_count() < 10
