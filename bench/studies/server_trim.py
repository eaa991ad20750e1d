"""A server that gives free memory back when it is told to, so that its resident memory is what it really holds.

Allocators keep what was freed, and how much changes with the load: megabytes come and go without a leak, and a small
leak hides in them. A process that `settings` were given to answers SIGUSR1: it collects garbage and returns free pages.
granian's own allocator is told to keep none. It is the same server otherwise, started by the same command.
"""

from __future__ import annotations

import ctypes
import gc
import os
import re
import signal
import time
from pathlib import Path

from qalign_bench.server.processes import Server
from qalign_bench.server.usage import processes_of

_SIGNAL = signal.SIGUSR1
_CAUGHT = re.compile(r"^SigCgt:\s*([0-9a-f]+)", re.MULTILINE)
_FOLDER = "SERVER_TRIM_FOLDER"  # where a process says that it is done
_PATIENCE = 20.0  # seconds


def settings(folder: Path) -> dict[str, str]:
    """Environment variables for such a process. The folder gets a file that Python imports when it starts."""
    (folder / "sitecustomize.py").write_text("import server_trim\n\nserver_trim.listen()\n")
    keep_nothing = {"_RJEM_MALLOC_CONF": "dirty_decay_ms:0,muzzy_decay_ms:0"}  # jemalloc, inside granian
    paths = [str(folder), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(filter(None, paths)), _FOLDER: str(folder), **keep_nothing}


def listen() -> None:
    """Answers the signal in this process."""
    signal.signal(_SIGNAL, lambda *_: _trim())


def trim(server: Server, folder: Path) -> None:
    """Asks all processes of the server that listen, and waits until they are done."""
    assert server.pid is not None
    waiting = []
    for pid in processes_of(server.pid):
        caught = _CAUGHT.search(Path(f"/proc/{pid}/status").read_text())
        if caught and int(caught[1], 16) >> (_SIGNAL - 1) & 1:
            waiting.append(folder / str(pid))
            waiting[-1].unlink(missing_ok=True)
            os.kill(pid, _SIGNAL)
    assert waiting, "no process of the server listens"
    end = time.monotonic() + _PATIENCE
    while not all(map(Path.exists, waiting)) and time.monotonic() < end:
        time.sleep(0.01)


def _trim() -> None:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path(os.environ[_FOLDER], str(os.getpid())).touch()
