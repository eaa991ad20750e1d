"""What the commands print: progress and remarks on stderr, facts on stdout; and options that several of them have."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedIOBase, BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from qalign_fast.records import printable

if TYPE_CHECKING:
    from qalign_fast.records import Row

Model = Annotated[
    str | None,
    typer.Option(
        help="Artifact directory, checkpoint directory or Hub id. Default: the embedded demonstration model.",
        show_default=False,
    ),
]
Base = Annotated[
    str | None,
    typer.Option(
        help="Of a LoRA adapter: the checkpoint to merge it into. Default: the one that the adapter names.",
        show_default=False,
    ),
]
NoVerify = Annotated[
    bool,
    typer.Option(
        "--no-verify", help="Do not hash an artifact's files; their sizes and places are checked all the same."
    ),
]


def remark(text: str) -> None:
    """A line on stderr."""
    print(printable(text), file=sys.stderr)


def stdin_bytes() -> BufferedIOBase:
    """stdin as bytes; empty where it is closed."""
    return cast("BufferedIOBase", sys.stdin.buffer) if sys.stdin else BytesIO()


@contextmanager
def rows_progress() -> Iterator[Callable[[Row], None]]:
    """A function that hears of each row. On a terminal, stderr shows how many there are so far."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.completed} rows, {task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("starting", total=None)
        yield lambda row: progress.update(bar, advance=1, description=escape(printable(Path(row["source"]).name)))


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A function that shows how many are done, of how many. It shows nothing where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield lambda _, __: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(what, total=None)
        yield lambda now, total: progress.update(bar, completed=now, total=total)


def print_facts(facts: dict[str, Any], *, as_json: bool) -> None:
    """Facts as aligned lines, or as JSON."""
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    width = max(map(len, facts))
    for key, value in facts.items():
        text = ", ".join(f"{k} {_short(v)}" for k, v in value.items()) if isinstance(value, dict) else _short(value)
        print(f"{printable(key):{width}}  {printable(str(text))}")


def _short(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value
