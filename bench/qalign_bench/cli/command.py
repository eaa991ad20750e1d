"""Options in, a bench out: it is measured, then printed as a table, markdown or JSON, and drawn.

stdout has the results alone. What was measured before an error or Ctrl-C is printed too.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

from qalign_bench.cli.options import Options, WrongOptionError
from qalign_bench.cli.progress import Progress
from qalign_bench.cli.session import Session
from qalign_bench.contestants.command_lines import check_peers
from qalign_bench.figures import job_tables, report, server_tables
from qalign_bench.scenarios import files_to_pixels, forwards, jobs, operations, pipeline, server, startup
from qalign_fast.engines.devices import choose_device
from qalign_fast.errors import MissingExtraError, QAlignError

SCENARIOS: Mapping[str, Callable[[Session], None]] = {
    "latency": forwards.measure,
    "throughput": forwards.measure,
    "pipeline": pipeline.measure,
    "operations": operations.measure,
    "startup": startup.measure,
    "pixels": files_to_pixels.measure,
    "server": server.measure,
    "jobs": jobs.measure,
}
# the scenarios that have an option
_ENGINES = ("latency", "throughput", "pipeline", "operations", "startup")
_PEERS = ("latency", "throughput", "pixels")
_FILES = ("pipeline", "startup", "pixels", "server", "jobs")
_MODELS = (*_ENGINES, "server", "jobs")
_BATCHES = ("latency", "throughput", "pipeline")
_SERVERS = ("server",)
_OWN_TABLES = {"server": server_tables, "jobs": job_tables}
_DRAWN = (".png", ".svg", ".pdf")


def bench(options: Options, *, form: str = "text", plot: Path | None = None) -> None:
    """Measures and prints. `form` is "text", "markdown" or "json"; `plot` is a file to draw into as well.

    Raises WrongOptionError and MissingExtraError before anything is measured, QAlignError where a contestant fails.
    """
    check(options, plot)
    with Progress() as progress:
        session = Session(options, progress.remark, progress.show)
        try:
            SCENARIOS[options.scenario](session)
        except (KeyboardInterrupt, QAlignError):
            if session.runs:
                _show(session, form, plot, interrupted=True)
            raise
    _show(session, form, plot, interrupted=False)


def tune(options: Options, *, form: str) -> None:
    """`operations --tune`: times the tiles of matrix products on a GPU and writes the table that the kernels read.

    Raises DeviceError where there is no GPU, WrongOptionError for a scenario or device that it is not for.
    """
    from qalign_bench.profiling.tile_timings import TABLE, summary, write_table
    from qalign_bench.profiling.tune import tune as sweep

    if options.scenario != "operations":
        raise WrongOptionError("--tune", f"is no option of {options.scenario}; it is one of: operations")
    place = choose_device("cuda" if options.device == "auto" else options.device)
    if not place.startswith("cuda"):
        raise WrongOptionError("--tune", f"is for NVIDIA GPUs, not for {place!r}; give --device cuda")
    try:
        timings, found = sweep(
            place, batches=options.batches, keep=lambda timings, found: write_table(found["facts"], timings)
        )
    except OSError as error:
        raise QAlignError(f"{TABLE}: {error.strerror}") from error
    print(json.dumps(found, indent=1) if form == "json" else summary(timings))


def check(options: Options, plot: Path | None) -> None:
    """Refuses what would only fail after minutes of measuring, or would be ignored.

    Raises WrongOptionError, QAlignError for a file that is missing, and MissingExtraError for a plot.
    """
    check_peers(options)
    for option, value, where in (
        ("--peer", options.peers, _PEERS),
        ("FILES", options.files, _FILES),
        ("--batch", options.batches, _BATCHES),
        ("--model", options.model, _MODELS),
        ("--precision", options.precisions != (None,), _MODELS),
        ("--engine", options.engines != ("auto",), _ENGINES),
        ("--rate", options.rates, _SERVERS),
        ("--seconds", options.seconds, _SERVERS),
        ("--bound", options.bound_ms, _SERVERS),
        ("--server", options.server, _SERVERS),
        ("--no-naive", not options.naive, _SERVERS),
    ):
        if value and options.scenario not in where:
            raise WrongOptionError(option, f"is no option of {options.scenario}; it is one of: {', '.join(where)}")
    if options.server:
        server.check_url(options.server)
    for file in options.files:
        if not Path(file).is_file():
            raise QAlignError(f"{file}: no such file")
    if plot is None:
        return
    if options.scenario in _OWN_TABLES:
        raise WrongOptionError("--plot", f"is no option of {options.scenario}")
    if plot.suffix.lower() not in _DRAWN or not plot.absolute().parent.is_dir():
        raise WrongOptionError("--plot", f"{plot} is not a {' or '.join(_DRAWN)} file in a folder that exists")
    if find_spec("matplotlib") is None:
        raise MissingExtraError("--plot needs matplotlib: pip install 'qalign-fast[bench]'")


def _show(session: Session, form: str, plot: Path | None, *, interrupted: bool) -> None:
    found = report.results(session, interrupted=interrupted)
    if form == "json":
        print(json.dumps(found, indent=1))
        if found["noise"]["warning"]:
            print(f"warning: {found['noise']['warning']}", file=sys.stderr)
    else:
        shown = report.as_markdown if form == "markdown" else report.as_text
        own = _OWN_TABLES.get(session.options.scenario)
        print(shown(found, *((own.TABLES, own.lines(found)) if own else ())))
    sys.stdout.flush()
    if plot is not None:
        from qalign_bench.figures.plot import draw

        draw(found, plot)
        session.remark(f"drawn: {plot}")
