"""Shows on stderr what is being measured: a bar and remarks, or remarks alone where stderr is no terminal."""

from __future__ import annotations

import sys
from typing import Any, Self


class Progress:
    """The bar, while the block lasts. rich is imported for a terminal only."""

    def __init__(self) -> None:
        self._bar: Any = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn()
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True, refresh_per_second=1)
            self._task = self._bar.add_task("starting", total=None)

    def show(self, done: int, total: int, what: str) -> None:
        """Says that `done` of `total` steps are done and what comes next."""
        if self._bar:
            self._bar.update(self._task, completed=done, total=total, description=what)

    def remark(self, text: str) -> None:
        """Prints one line for people."""
        if self._bar:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr)

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()
