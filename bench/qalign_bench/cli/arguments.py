"""The command line of `qalign-fast bench`: its arguments become `Options`, then the bench runs."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from qalign_bench.cli import command
from qalign_bench.cli.options import Options, WrongOptionError, work_folder
from qalign_bench.contestants.onednn import NAMES
from qalign_kernels.contract.precisions import PRECISIONS

app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}
)

Scenario = StrEnum(
    "Scenario", ["latency", "throughput", "pipeline", "operations", "startup", "pixels", "server", "jobs"]
)
Engine = StrEnum(
    "Engine",
    [
        ("auto", "auto"),
        ("native", "native"),
        ("torch", "torch"),
        ("onnx", "onnx"),
        ("cuda", "onnx-cuda"),
        ("openvino", "openvino"),
    ],
)
Precision = StrEnum("Precision", list(PRECISIONS))  # type: ignore[misc] # not a literal
InstructionSet = StrEnum("InstructionSet", list(NAMES))  # type: ignore[misc] # not a literal
Task = StrEnum("Task", ["quality", "aesthetics", "both"])


@app.command()
def bench(
    scenario: Annotated[Scenario, typer.Argument(help="What to measure.", show_default=False)],
    files: Annotated[
        list[str] | None,
        typer.Argument(
            help="Pictures that pipeline, startup, pixels, server and jobs read. Default: generated.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="An artifact, or what is exported first: a checkpoint, a Hub id, random:one-align, random:mini or "
            "random:FOLDER (with a config.json). A random model for a named CUDA device is made there, without a file. "
            "Default: the embedded model.",
            show_default=False,
        ),
    ] = None,
    engine: Annotated[
        list[Engine] | None, typer.Option(help="Repeat it to compare engines. Default: auto.", show_default=False)
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 and so on, or mps.")] = "auto",
    precision: Annotated[
        list[Precision] | None,
        typer.Option(
            help="Repeat it to compare precisions. Default: the artifact's; int8 for what is exported first.",
            show_default=False,
        ),
    ] = None,
    batch: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            max=1024,
            help="Pictures at a time. Repeat it for several. Default: latency 1, throughput 1 2 4 8, pipeline 8.",
            show_default=False,
        ),
    ] = None,
    task: Annotated[Task, typer.Option(help="What pictures are scored for.")] = Task.quality,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of every engine. Default: all cores.", show_default=False)
    ] = None,
    repeat: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Timed forwards of each contestant and batch (in pipeline and pixels: passes; in startup: processes; "
            "in server: rounds of the rates). Default: as many as take some seconds, in rounds.",
            show_default=False,
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables in markdown.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw the results into this .png, .svg or .pdf.", show_default=False)
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            help="Compare with upstream=PATH (a checkout of Q-Align), hf-eager (this project's model, computed in "
            "upstream's way), bnb-int8 or bnb-nf4. Repeat it for several.",
            show_default=False,
        ),
    ] = None,
    peer_python: Annotated[
        str | None,
        typer.Option(help="The interpreter that has the peers' packages. Default: this one.", show_default=False),
    ] = None,
    instruction_set: Annotated[
        InstructionSet | None,
        typer.Option(
            help="Use no newer instructions than these, in our kernels and oneDNN's; onnxruntime cannot be held to "
            "them. Default: all that the CPU has.",
            show_default=False,
        ),
    ] = None,
    exclusive: Annotated[
        bool, typer.Option("--exclusive", help="Keep one contestant in memory at a time; load it anew in every round.")
    ] = False,
    tune: Annotated[
        bool,
        typer.Option(
            "--tune",
            help="In operations on an NVIDIA GPU: time the tiles of its matrix products for two minutes, and keep the "
            "fastest in the installed package.",
        ),
    ] = False,
    rate: Annotated[
        list[float] | None,
        typer.Option(
            min=0.001,
            max=10_000,
            help="In server: requests a second, as a Poisson process. Repeat it for several. Default: 0.5, 0.8, 1, 1.2 "
            "and 4 times the measured peak.",
            show_default=False,
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(min=0.1, max=3600, help="In server: how long each load lasts. Default: 5.", show_default=False),
    ] = None,
    bound: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            help="In server: ms within which 99 of 100 requests must be answered right at the highest rate that is "
            "looked for, and for goodput. Default: 1000, or ten times the engine's own time.",
            show_default=False,
        ),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            help="In server: the http:// URL of a server that runs on this machine with this --model. Default: one is "
            "started.",
            show_default=False,
        ),
    ] = None,
    naive: Annotated[
        bool,
        typer.Option(
            "--naive/--no-naive",
            help="In server: also the server that people write: a FastAPI handler and a lock, with the same engine.",
        ),
    ] = True,
    work: Annotated[
        Path | None,
        typer.Option(help="The folder that keeps exports. Default: in the user's cache folder.", show_default=False),
    ] = None,
) -> None:
    """Measure speed on this machine, with the facts that a reader of the numbers needs.

    \b
    latency     single forwards: percentiles, memory, share of the measured peak
    throughput  the same over several batch sizes
    pipeline    files on disk to scores: how busy the engine is kept
    operations  the model's operations at their true shapes, beside their contracts in plain torch
    startup     from the start of Python to a first score, warm and cold
    pixels      files to pixels, on one core
    server      the HTTP server under load: latency, goodput, refusals, what it adds to its engine
    jobs        a job over files on disk beside the feed alone; what exactness costs; plans and resuming
    \b
    qalign-fast bench latency --model random:one-align --precision int8
    qalign-fast bench throughput --model one-align-int8 --batch 1 --batch 4
    qalign-fast bench latency --model random:one-align \\
        --peer upstream=../Q-Align --peer-python ../upstream/bin/python
    """
    if json and markdown:
        raise typer.BadParameter("give one or the other", param_hint="--json and --markdown")
    options = Options(
        scenario=scenario.value,
        model=model,
        engines=tuple(choice.value for choice in engine or [Engine.auto]),
        device=device,
        precisions=tuple(choice.value for choice in precision or []) or (None,),
        batches=tuple(batch or ()),
        tasks=("quality", "aesthetics") if task == Task.both else (task.value,),
        threads=threads,
        repeat=repeat,
        peers=tuple(peer or ()),
        peer_python=peer_python or sys.executable,
        files=tuple(files or ()),
        exclusive=exclusive,
        rates=tuple(rate or ()),
        seconds=seconds,
        bound_ms=bound,
        server=server,
        naive=naive,
        instruction_set=instruction_set.value if instruction_set else None,
        work=work or work_folder(),
    )
    form = "json" if json else "markdown" if markdown else "text"
    try:
        command.tune(options, form=form) if tune else command.bench(options, form=form, plot=plot)
    except WrongOptionError as error:
        raise typer.BadParameter(error.problem, param_hint=error.option) from error
