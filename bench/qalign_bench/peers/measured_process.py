"""What all processes that are measured have in common: JSON lines, the peak of their memory, the same random pictures.

Peers run in interpreters that have none of this project's packages: this file needs numpy and nothing else.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO, TypeAlias

import numpy as np
import numpy.typing as npt

Message: TypeAlias = dict[str, Any]
Handler: TypeAlias = Callable[[Message], Message]
Pictures: TypeAlias = npt.NDArray[np.uint8]  # [B, S, S, 3]


class MessageError(Exception):
    """A line that is no JSON object."""


def answer_commands(load: Callable[[str], tuple[Message, Handler]], failures: tuple[type[Exception], ...]) -> None:
    """Loads what the first argument asks for, then answers the lines of stdin until {"end": true} or their end.

    `load` turns the first argument into the first answer and what answers a command. Exits with status 1 and an error
    in one line where loading raises one of `failures`. A command that raises one is answered by {"error": one line}.
    """
    answers = _take_stdout()
    failures = (*failures, MessageError)

    def answer(values: Message) -> None:
        print(json.dumps(values), file=answers, flush=True)

    try:
        ready, handle = load(sys.argv[1])
    except failures as error:
        answer({"error": _one_line(error)})
        raise SystemExit(1) from None
    answer({"ready": True} | ready)
    for line in sys.stdin:
        try:
            command = read_object(line, "the command")
            if command.get("end"):
                return
            answer(handle(command))
        except failures as error:
            answer({"error": _one_line(error)})


def _take_stdout() -> TextIO:
    """stdout for answers alone: what libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def read_object(text: str, what: str) -> Message:
    """Raises MessageError, which names `what`, for text that is no JSON object."""
    try:
        values = json.loads(text)
    except ValueError as error:
        raise MessageError(f"{what} is not JSON ({error})") from error
    if not isinstance(values, dict):
        raise MessageError(f"{what} is a {type(values).__name__}; expected an object")
    return values


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def host_peak() -> int:
    """The process's peak of resident memory in bytes, mapped pages of files included."""
    try:
        # ru_maxrss would begin with what the parent process held when it forked
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(status["VmHWM"].split()[0]) * 1024
    except (OSError, KeyError):  # not Linux
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def random_pictures(seed: int, batch: int, side: int) -> Pictures:
    """The pictures that every contestant of a bench gets, uint8 [B, S, S, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (batch, side, side, 3), np.uint8)
