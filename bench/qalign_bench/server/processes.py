"""A command line in, a server that is ready out, on a port of this machine that was free. It is stopped afterwards."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qalign_bench.server.client import address_of
from qalign_bench.server.usage import Usage, usage_of
from qalign_fast.errors import QAlignError

_TO_START, _TO_STOP = 300.0, 40.0  # seconds
_QUEUE = re.compile(r"^qalign_queue_size(?:\{[^}]*\})? ([\d.e+]+)$", re.MULTILINE)
_OPTIONS = "QALIGN_"  # environment variables by which a user may have set our server's options
GRACE = 5  # seconds for what is under way when a server is stopped


@dataclass(frozen=True)
class Server:
    """A server that answers. `pid` is None where it was not started here."""

    name: str
    url: str
    pid: int | None
    command: tuple[str, ...] = ()
    start_s: float | None = None  # until it was ready

    @property
    def shown(self) -> str:
        """Its command line, without this machine's paths."""
        return " ".join(["python", *(Path(word).name if word.startswith("/") else word for word in self.command[1:])])

    def usage(self) -> Usage | None:
        """What its processes use now; None where they are not known."""
        return usage_of(self.pid) if self.pid is not None else None

    def queue_size(self) -> int | None:
        """The length of its queue, by its metrics; None where it has none, or does not answer now."""
        try:
            status, text = get(self.url, "/metrics", patience=2)
        except OSError:
            return None
        found = _QUEUE.findall(text) if status == 200 else []
        return int(sum(map(float, found))) if found else None


def our_command(model: str | None, port: int, *arguments: str) -> tuple[str, ...]:
    """The command line of our server; `arguments` are further ones."""
    models = [] if model is None else [model]
    start = [sys.executable, "-P", "-m", "qalign_fast.cli", "serve", *models]
    return (*start, "--host", "127.0.0.1", "--port", str(port), "--grace", str(GRACE), *arguments)


def naive_command(model: str | None, port: int, *arguments: str) -> tuple[str, ...]:
    """The command line of the naive server."""
    models = [] if model is None else ["--model", model]
    start = [sys.executable, "-P", "-m", "qalign_bench.peers.naive_server"]
    return (*start, *models, "--port", str(port), *arguments)


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def started(
    name: str, command: Sequence[str], port: int, settings: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Starts a server, waits until it is ready, and stops it after the block. Raises QAlignError where that fails.

    `settings`: environment variables, beside ours.
    """
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=said,
            env={**{k: v for k, v in os.environ.items() if not k.startswith(_OPTIONS)}, **(settings or {})},
            start_new_session=True,  # Ctrl-C is for the parent, which then stops the server
        )
        try:
            url = f"http://127.0.0.1:{port}"
            while not _is_ready(url):
                if process.poll() is not None or time.perf_counter() - began > _TO_START:
                    said.seek(0)
                    lines = said.read().strip().splitlines() or ["it says nothing"]
                    raise QAlignError(f"{name}: not ready (status {process.returncode}): {lines[-1]}")
                time.sleep(0.05)
            yield Server(name, url, process.pid, tuple(command), time.perf_counter() - began)
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Asks it to stop, and kills what is left of its group."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_TO_STOP)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _is_ready(url: str) -> bool:
    try:
        return get(url, "/health", patience=5)[0] == 200
    except OSError:
        return False


def get(url: str, path: str, *, patience: float) -> tuple[int, str]:
    """The status and the text of a GET. Raises OSError where the server does not answer."""
    host, port = address_of(url)
    connection = http.client.HTTPConnection(host, port, timeout=patience)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode("utf-8", "replace")
    except http.client.HTTPException as error:
        raise OSError(str(error)) from error
    finally:
        connection.close()
