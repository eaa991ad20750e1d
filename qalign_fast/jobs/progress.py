"""How a job goes, for people who leave it alone: a bar on a terminal, else a line a minute; and when to end."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from qalign_fast.jobs.dry_run import shown_time
from qalign_fast.jobs.job import Watcher
from qalign_fast.records import printable

if TYPE_CHECKING:
    from qalign_fast.jobs.entries import Entry

_EVERY = 60.0  # seconds between two lines
_WINDOW = 30.0  # seconds over which the rate is told


class Progress(Watcher):
    """Tells on stderr how far a job is. It also hears Ctrl-C: once ends after the shards in hand, twice at once."""

    def __init__(self, every: float = _EVERY) -> None:
        self._every = every
        self._total = self._done = self._before = self._errors = 0
        self._started = self._last = self._planned = time.monotonic()
        self._rates: list[tuple[float, int]] = []
        self._stop = False
        self._bar: Any = None

    def remark(self, text: str) -> None:
        """A line on stderr."""
        if self._bar is not None:
            self._bar.console.print(printable(text), markup=False, highlight=False)
        else:
            print(printable(text), file=sys.stderr, flush=True)

    def planning(self, inputs: int) -> None:
        if self._stop:  # nothing is in hand yet
            raise KeyboardInterrupt
        if (now := time.monotonic()) - self._planned > self._every / 6:
            self._planned = now
            self.remark(f"planning: {inputs:,} inputs so far")

    def begin(self, inputs: int, done: int) -> None:
        self._total, self._done, self._before = inputs, done, done
        self._started = self._last = time.monotonic()
        self._rates = [(self._started, done)]
        self.remark(f"{inputs:,} inputs" + (f", {done:,} of them done before" if done else ""))
        if sys.stderr.isatty():
            self._bar = _bar(inputs, done)
            self._bar.start()

    def scored(self, entry: Entry) -> None:
        self._done += 1
        if entry.reading is not None and entry.reading.error is not None:
            self._errors += 1
            if entry.reading.status == "quarantined":
                self.remark(str(entry.reading.error))
        now = time.monotonic()
        if self._bar is not None:
            if now - self._last > 0.2:
                self._last = now
                self._note(now)
                self._bar.update(self._bar.task_ids[0], completed=self._done, description=self._rate_and_left())
        elif now - self._last >= self._every:
            self._last = now
            self._note(now)
            share = f"{100 * self._done / self._total:.1f} %"
            self.remark(f"{self._done:,} of {self._total:,} inputs ({share}), {self._rate_and_left()}")

    def stopping(self) -> bool:
        return self._stop

    def end(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    @property
    def seconds(self) -> float:
        """Since scoring began."""
        return time.monotonic() - self._started

    @contextmanager
    def hearing(self) -> Iterator[None]:
        """Hears Ctrl-C, and SIGTERM as one Ctrl-C, as long as it is entered."""
        before = {number: signal.signal(number, self._asked_to_end) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            self.end()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _asked_to_end(self, number: int, _: FrameType | None) -> None:
        if self._stop and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._stop = True
        text = "ending after the shards in hand; Ctrl-C again ends at once"
        try:
            self.remark(text)
        except RuntimeError:  # the signal came in the middle of another line, and a buffer takes one writer at a time
            os.write(2, f"{text}\n".encode())

    def _note(self, now: float) -> None:
        self._rates.append((now, self._done))
        while len(self._rates) > 2 and self._rates[0][0] < now - max(_WINDOW, self._every):
            self._rates.pop(0)

    def _rate_and_left(self) -> str:
        (then, before), (now, done) = self._rates[0], self._rates[-1]
        rate = (done - before) / (now - then) if now > then else 0.0
        left = shown_time((self._total - self._done) / rate) if rate else "?"
        return f"{rate:.1f}/s, {left} left, {self._errors:,} error{'' if self._errors == 1 else 's'}"


def _bar(inputs: int, done: int) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TaskProgressColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = BarColumn(), TaskProgressColumn(), MofNCompleteColumn(), TextColumn("{task.description}")
    bar = Bar(*columns, console=Console(stderr=True), transient=True)
    bar.add_task("", total=inputs, completed=done)
    return bar
