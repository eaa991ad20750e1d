"""The console script: finds the command, and turns errors into one line and an exit code.

stdout carries only data; progress and remarks go to stderr. Exit codes: 0 all scored, 1 an error of ours in one line,
2 a wrong option, 3 some inputs could not be scored, 6 an artifact, or a run, too far from another, 130 interrupted.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from importlib import import_module
from typing import Annotated, Any

try:
    import typer
except ModuleNotFoundError as missing:
    sys.exit(f"the command line needs typer and rich: pip install 'qalign-fast[cli]' ({missing})")

from qalign_fast.cli.console import remark
from qalign_fast.errors import ModelWarning, QAlignError
from qalign_fast.version import __version__

COMMANDS = (
    "score",
    "run",
    "serve",
    "info",
    "export",
    "build",
    "verify",
    "card",
    "report",
    "threshold",
    "calibrate",
    "drift",
    "compare",
    "rank",
    "evaluate",
    "levels",
    "bench",
)  # each a file here with a function of that name


def main() -> None:
    """Runs the command that the arguments name. An error of ours becomes one line and exit code 1."""
    warnings.filterwarnings("ignore", module="PIL")  # what matters of them comes as an error of ours
    warnings.showwarning = _show_warning
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # of names that the terminal's encoding does not have
    try:
        try:
            make_app(sys.argv[1:2])()
        finally:
            sys.stdout.flush()  # here, where its error can be told
    except QAlignError as error:
        remark("error: " + " ".join(str(error).split()))
        sys.exit(1)
    except OSError as error:  # stdout's: its reader, such as head, has gone, or its disk is full
        if not isinstance(error, BrokenPipeError):
            remark(f"error: {error.filename or 'stdout'}: {error.strerror or error}")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where the rest of its buffer goes
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


_python_shows = warnings.showwarning


def _show_warning(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    """One of ours is a line on stderr."""
    if issubclass(category, ModelWarning):
        remark(f"warning: {message}")
    else:
        _python_shows(message, category, *where, **more)


def make_app(wanted: list[str]) -> typer.Typer:
    """The command that is wanted alone, so that no other is imported; all of them where it is none of them."""
    app = typer.Typer(
        help="Rate pictures and clips as people would, with OneAlign / Q-Align: 1 (bad) to 5 (excellent).",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_root)
    for name in [name for name in COMMANDS if name in wanted] or COMMANDS:
        module = import_module(f"qalign_fast.cli.{name}")
        app.command(**getattr(module, "OPTIONS", {}))(getattr(module, name))
    return app


def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"qalign-fast {__version__}")
        raise typer.Exit
