"""Commands on stdin in, answers on stdout out, a JSON object a line: the loop of a process that is measured.

argv[1]: what to load, {"model": str, "engine": str | null, "precision": str | null, "device": str,
          "threads": int | null, "seed": int, and what else the contestant needs}
first line out: {"ready": true, "name", "load_s", "versions", "device", "engine", "precision", "kernels",
          "weights_bytes"}, or {"error": "one line"} and exit status 1
then {"run": name, ...} in and its answer out, until {"end": true} or the end of stdin
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from qalign_fast.errors import QAlignError

Message: TypeAlias = dict[str, Any]
Handler: TypeAlias = Callable[[Message], Message]


def serve(load: Callable[[Message], tuple[Message, Mapping[str, Handler]]]) -> None:
    """Loads what argv says and answers until the end. `load` gives the first line and a handler for each command."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer
    try:
        ready, handlers = load(json.loads(sys.argv[1]))
        print(json.dumps({"ready": True} | ready), file=out, flush=True)
        for line in sys.stdin:
            command = json.loads(line)
            if command.get("end"):
                return
            print(json.dumps(handlers[command["run"]](command)), file=out, flush=True)
    except QAlignError as error:
        print(json.dumps({"error": " ".join(str(error).split())}), file=out, flush=True)
        sys.exit(1)


def peak_memory(device: str) -> dict[str, int | None]:
    """The most bytes this process has held: resident on the host, file pages included, and allocated on the device."""
    host = _host_peak()
    if not device.startswith("cuda"):
        return {"host": host, "device": None}
    import torch

    return {"host": host, "device": torch.cuda.max_memory_allocated(device)}


def _host_peak() -> int:
    """The kernel's own count where it has one: rusage's begins with what the parent held when it forked."""
    try:
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(status["VmHWM"].split()[0]) * 1024
    except (OSError, KeyError):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
