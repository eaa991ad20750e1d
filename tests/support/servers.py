"""A real server process on a free port of this machine, for as long as a block lasts."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class RunningServer:
    port: int
    process: subprocess.Popen[bytes]
    log: Path = field(repr=False, default=Path())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self, method: str, path: str, body: bytes | str | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, body=body, headers=dict(headers or {}))
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def post_json(self, path: str, content: Any, headers: Mapping[str, str] | None = None) -> Answer:
        return self.ask("POST", path, json.dumps(content), {"content-type": "application/json", **(headers or {})})

    def metric(self, name: str) -> float:
        """The sum of a metric's samples over all labels."""
        lines = self.ask("GET", "/metrics").body.decode().splitlines()
        found = [line for line in lines if line.split("{")[0].split(" ")[0] == name]
        return sum(float(line.rsplit(" ", 1)[1]) for line in found)

    def workers(self) -> list[int]:
        """The processes below the main one, as Linux tells them."""
        text = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text("utf-8")
        names = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes() for pid in text.split()}
        return [pid for pid, name in names.items() if b"resource_tracker" not in name]

    def wait_ready(self, seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text("utf-8")
            with suppress(OSError, http.client.HTTPException):
                if self.ask("GET", "/v2/health/ready").status == 200:
                    return
            time.sleep(0.02)
        raise AssertionError(self.log.read_text("utf-8"))

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running_server(
    *arguments: str, environment: Mapping[str, str] | None = None, ready: bool = True
) -> Iterator[RunningServer]:
    """`qalign-fast serve` with these arguments, ready unless that is not wanted; stopped at the end."""
    import os

    port = free_port()
    command = [sys.executable, "-m", "qalign_fast.cli", "serve", "--port", str(port), *arguments]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log.jsonl")
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, stdout=out, stderr=out, env={**os.environ, **(environment or {})}, start_new_session=True
            )
        server = RunningServer(port, process, log)
        try:
            if ready:
                server.wait_ready()
            yield server
        finally:
            with suppress(subprocess.TimeoutExpired):
                server.stop()
            if process.poll() is None:
                process.kill()
                process.wait()
