"""What a contestant's process is asked and answers: the loop of our own contestants.

Messages are JSON objects, one a line:

argv[1]: what to load, {"model": str, "engine": str | null, "precision": str | null, "device": str,
          "threads": int | null, "seed": int, and what else the contestant needs}
first answer: {"ready": true, "name", "load_s", "versions", "device", "engine", "precision", "kernels",
          "weights_bytes"}, or {"error": "one line"} and exit status 1
then: {"run": name, ...} on stdin and its answer on stdout, until {"end": true} or the end of stdin
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from qalign_bench.peers.measured_process import Handler, Message, answer_commands, host_peak, read_object
from qalign_fast.errors import QAlignError

__all__ = ["Handler", "Message", "peak_memory", "serve"]


def serve(load: Callable[[Message], tuple[Message, Mapping[str, Handler]]]) -> None:
    """Loads what argv says and answers until the end. `load` gives the first answer and a handler for each command."""

    def begin(text: str) -> tuple[Message, Handler]:
        ready, handlers = load(read_object(text, "the spec"))
        return ready, lambda command: handlers[command["run"]](command)

    answer_commands(begin, (QAlignError,))


def peak_memory(device: str) -> dict[str, int | None]:
    """The most bytes this process has held: resident on the host, file pages included, and allocated on the device."""
    if not device.startswith("cuda"):
        return {"host": host_peak(), "device": None}
    import torch

    return {"host": host_peak(), "device": torch.cuda.max_memory_allocated(device)}
