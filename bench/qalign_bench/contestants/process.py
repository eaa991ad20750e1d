"""A contestant and its process: a command line that is started, asked and ended.

A contestant runs as a process of its own and speaks the messages of wire.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from qalign_bench.contestants.wire import Message
from qalign_fast.errors import QAlignError

_PATIENCE = 10  # seconds a contestant has to end


@dataclass(frozen=True)
class Contestant:
    """What is compared. `argv` starts it; its last argument is `spec` as JSON."""

    name: str
    argv: tuple[str, ...]
    spec: Mapping[str, Any]
    weights_bytes: int = 0  # known or estimated before it runs
    settings: Mapping[str, str] = field(default_factory=dict)  # environment variables, beside the parent's

    def start(self) -> Process:
        """Starts and loads it. Raises QAlignError with its own reason where that fails."""
        return Process(self)


class Process:
    """A contestant that is loaded and waits for commands."""

    def __init__(self, contestant: Contestant) -> None:
        self.name = contestant.name
        self.seen: set[object] = set()  # the commands or batches that it was warmed up for
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
        """The answer to a command. Raises QAlignError where the process answers with an error or has ended."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # _answer says why it ended
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
        """Kills it and what it has started, for nothing may hold a GPU that the next one needs."""
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
        """Why the process ended: its status, and the last line that it wrote to stderr."""
        status = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        why = "killed, as a system that is out of memory does it" if status == -9 else f"status {status}"
        return f"its process ended ({why})" + (f": {lines[-1]}" if lines else "")
