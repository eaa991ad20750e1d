"""Contestants in, their answers out, interleaved: A B A B, so that what else the machine does falls on all of them.

A contestant is a command line and what it is to load; it runs as a process of its own and speaks wire.py's messages.
Where the contestants together do not fit the memory they take turns, each loaded anew for every round.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

from qalign_bench.contestants.wire import Message
from qalign_fast.errors import QAlignError

_OVERHEAD = 1 << 30  # bytes a contestant has beside its weights: libraries, activations
_PATIENCE = 10  # seconds a contestant has to end


@dataclass(frozen=True)
class Contestant:
    """What is compared. `argv` starts it, with `spec` as JSON for a last argument."""

    name: str
    argv: tuple[str, ...]
    spec: Mapping[str, Any]
    weights_bytes: int = 0  # known or estimated before it runs
    settings: Mapping[str, str] = field(default_factory=dict)  # of its environment, beside the parent's

    def start(self) -> Process:
        """Loads it. Raises QAlignError with the reason it gives where that fails."""
        return Process(self)


class Process:
    """A contestant that is loaded and waits for commands."""

    def __init__(self, contestant: Contestant) -> None:
        self.name = contestant.name
        self.seen: set[object] = set()  # what it was warmed up for
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (kill closes it)
        try:
            self._process = subprocess.Popen(
                [*contestant.argv, json.dumps(dict(contestant.spec))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=os.environ | contestant.settings,
                encoding="utf-8",
                start_new_session=True,  # Ctrl-C is for the parent, which then ends its children
            )
        except OSError as error:
            raise QAlignError(f"{self.name}: {contestant.argv[0]}: {error.strerror}") from error
        try:
            self.ready = self._answer()
        except BaseException:
            self.kill()
            raise

    def ask(self, run: str, **arguments: Any) -> Message:
        """The answer to a command. Raises QAlignError where the process gives an error, or none because it ended."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # _answer says why
            print(json.dumps({"run": run} | arguments), file=self._process.stdin, flush=True)
        return self._answer()

    def end(self) -> None:
        """Lets it finish by itself."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError, subprocess.TimeoutExpired):
            self._process.stdin.close()
            self._process.wait(_PATIENCE)
        self.kill()

    def kill(self) -> None:
        """It and what it has started: nothing may hold a GPU that the next one needs."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # its session's first process leads a group of that number
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._errors):
            assert file is not None
            with contextlib.suppress(BrokenPipeError):
                file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.end()
        else:
            self.kill()

    def _answer(self) -> Message:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise QAlignError(f"{self.name}: {self._last_words()}")
        answer: Message = json.loads(line)
        if "error" in answer:
            raise QAlignError(f"{self.name}: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        """Why the process ended: its status and the last line that it wrote to stderr."""
        status = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        why = "killed, which is what a system does that is out of memory" if status == -9 else f"status {status}"
        return f"its process ended ({why})" + (f": {lines[-1]}" if lines else "")


class Match(Protocol):
    """What a scenario does with its contestants."""

    def loading(self, contestant: Contestant) -> None:
        """Before a contestant is started."""
        ...

    def turn(self, i: int, process: Process) -> None:
        """Contestant i's part of a round."""
        ...

    def after(self) -> None:
        """At the end of a round."""
        ...


def play(match: Match, contestants: Sequence[Contestant], rounds: int) -> None:
    """Every contestant's turn in each round; all are loaded throughout."""
    with contextlib.ExitStack() as stack:
        processes = []
        for contestant in contestants:
            match.loading(contestant)
            processes.append(stack.enter_context(contestant.start()))
        for _ in range(rounds):
            for i, process in enumerate(processes):
                match.turn(i, process)
            match.after()


def play_in_turns(match: Match, contestants: Sequence[Contestant], rounds: int) -> None:
    """The same where only one contestant is in memory at a time: it is loaded, has its turn, and ends."""
    for _ in range(rounds):
        for i, contestant in enumerate(contestants):
            match.loading(contestant)
            with contestant.start() as process:
                match.turn(i, process)
        match.after()


def fit_together(contestants: Sequence[Contestant]) -> bool:
    """Whether the contestants' weights and what else they need are in the machine's available memory at once."""
    available = available_memory()
    return available is None or sum(c.weights_bytes + _OVERHEAD for c in contestants) < available


def available_memory() -> int | None:
    """Bytes that can be had without swapping, where the system tells."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines)
    kib = fields.get("MemAvailable", "").split()
    return int(kib[0]) * 1024 if kib else None
