"""Requests that no good client makes, over sockets: each gets a documented answer or none, and the server lives on.

QALIGN_FULL=1 sends 5,000 of them, where 1,000 are sent else.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from qalign_fast.scorer import Scorer
from support.malformed import KINDS, PNG, Malformed, draw
from support.servers import RunningServer, running_server
from support.user_kernels import user_kernels

COUNT = 5000 if os.environ.get("QALIGN_FULL") else 1000
AT_A_TIME = 8
STATUS_LINE = re.compile(rb"HTTP/1\.[01] (\d{3}) ")
# what the HTTP library itself answers, with no body: a head that it cannot read
FROM_HYPER = (400, 414, 431)


@pytest.fixture(scope="module", autouse=True)
def kernels(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with user_kernels(library, tmp_path_factory.mktemp("cache")):
        yield


@pytest.fixture(scope="module")
def server(kernels: None) -> Iterator[RunningServer]:
    with running_server("--max-body", "1000000") as running:
        yield running


def exchange(port: int, sent: Malformed) -> bytes:
    """What comes back until the server closes the connection."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        with suppress(ConnectionError):  # the server may have answered and closed before all of it is sent
            connection.sendall(sent.data)
            if not sent.is_whole:
                connection.shutdown(socket.SHUT_WR)
        with suppress(ConnectionError):
            while part := connection.recv(1 << 16):
                received += part
    return received


def fault(sent: Malformed, received: bytes) -> str | None:
    """What is wrong with an answer. None: nothing."""
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

    answer = server.post_json("/v1/score?logits=true", {"images": [PNG.hex()]})
    assert answer.status == 422
    row = server.ask("POST", "/v1/score?logits=true", PNG, {"content-type": "image/png"}).json()["rows"][0]
    assert row["logits"] == list(expected.logits)
    assert server.workers() == workers
    end = time.monotonic() + 30
    while time.monotonic() < end and (server.metric("qalign_inflight") > 1 or server.metric("qalign_queue_size")):
        time.sleep(0.05)
    assert server.metric("qalign_inflight") == 1 and server.metric("qalign_queue_size") == 0
    log = server.log.read_text("utf-8")
    assert not any(word in log for word in ("internal error", "Traceback", "panicked", '"exception"'))
