"""Settings in, a server that runs until it is told to stop: granian's main process and its workers."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import socket
import ssl
import tempfile
import threading
import time
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from granian.constants import HTTPModes, Interfaces, Loops
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server.mp import MPServer

from qalign_fast.errors import OptionError, one_line
from qalign_fast.serve.logs import configure, granian_logs
from qalign_fast.serve.tracing import exporters

if TYPE_CHECKING:
    from qalign_fast.serve.settings import Settings

_HEADER_SECONDS = 30  # for a request's head, and for a connection that is kept alive without one
_BUFFER = 128 << 10  # bytes of a connection that are not read yet; of many connections it adds up
_RESPAWN_SECONDS = 0.1
_BACKLOG = 2048
_KILL_AFTER = 10  # seconds after the grace period
_LOOK = 0.02  # seconds between two looks at whether there was a signal that did not end the sleep
_METRICS = "PROMETHEUS_MULTIPROC_DIR"


class _Event(threading.Event):
    """For granian's main thread, which waits for it, and whose signal handlers set it.

    threading's has a lock, for which a second signal in the midst of the first one's handling would wait for ever. And
    a thread that waits without an end is not woken by a signal that another of its process' threads gets.
    """

    _is_set = False

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True

    def clear(self) -> None:
        self._is_set = False

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is None
        while not self._is_set:
            time.sleep(_LOOK)
        return True


class _Server(MPServer):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.main_loop_interrupt = _Event()


def serve(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT. A worker that dies is replaced. Exits with 1 if workers keep dying.

    Raises OptionError for an address that cannot be listened at, for TLS files that cannot be read, and for traces that
    cannot be had; MissingExtraError for traces without OpenTelemetry.
    """
    exporters()
    _check_address(settings.host, settings.port)
    _check_tls(settings)
    if settings.workers == 1:
        _run(settings)
        return
    with tempfile.TemporaryDirectory(prefix="qalign-metrics-") as folder:
        os.environ[_METRICS] = folder  # where the workers' counts are added up
        _run(settings)


def _check_address(host: str, port: int) -> None:
    """granian would end in a panic; and where another server of ours listens, Linux would let both do so."""
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except (OSError, UnicodeError) as error:
        number = getattr(error, "errno", None) or 0  # below 0 for a name that cannot be resolved
        reason = os.strerror(number) if number > 0 else getattr(error, "strerror", None) or one_line(error)
        raise OptionError(f"cannot listen at {host}, port {port}: {reason}") from error


def _check_tls(settings: Settings) -> None:
    if not (settings.certificate and settings.private_key):
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.certificate, settings.private_key)
    except OSError as error:  # ssl.SSLError is one
        files = f"{settings.certificate} and {settings.private_key}"
        raise OptionError(f"the TLS files {files} cannot be read: {error.strerror or one_line(error)}") from error


def _run(settings: Settings) -> None:
    if multiprocessing.get_start_method(allow_none=True) is None:
        multiprocessing.set_start_method("spawn")  # a fork would copy what other threads hold
    server = _Server(
        "qalign_fast.serve",
        address=settings.host,
        port=settings.port,
        interface=Interfaces.RSGI,
        workers=settings.workers,
        loop=Loops.asyncio,
        http=HTTPModes.http1,
        websockets=False,
        backlog=_BACKLOG,
        http1_settings=HTTP1Settings(header_read_timeout=1000 * _HEADER_SECONDS, max_buffer_size=_BUFFER),
        log_level=LogLevels(settings.log_level),
        log_dictconfig=granian_logs(settings.log_level),
        ssl_cert=Path(settings.certificate) if settings.certificate else None,
        ssl_key=Path(settings.private_key) if settings.private_key else None,
        respawn_failed_workers=True,
        respawn_interval=_RESPAWN_SECONDS,
        workers_kill_timeout=round(settings.grace) + _KILL_AFTER,
    )
    server.serve(target_loader=partial(load_worker, settings), wrap_loader=False)


def load_worker(settings: Settings) -> Any:
    """A worker's application. It is called in the worker's own process."""
    # At its own end Python ends those of granian's threads that wait for its lock, for which Rust aborts the process.
    # What is registered first is called last.
    atexit.register(os._exit, 0)
    from qalign_fast.serve.app import make_app
    from qalign_fast.serve.rsgi import Rsgi

    prepare_process(settings)
    return Rsgi(make_app(settings, owns_process=True))


def prepare_process(settings: Settings) -> None:
    """Sets up this process's log, and keeps out of it what libraries say of pictures."""
    from qalign_fast.pixels.libtiff import silence_libtiff

    configure(settings.log_level)
    warnings.filterwarnings("ignore", module="PIL")  # what matters of them is in a row's error
    silence_libtiff()
