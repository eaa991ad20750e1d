"""`qalign-fast bench`'s arguments in, `Options` out, measured and printed."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from qalign_bench.cli import command
from qalign_bench.cli.options import Options, WrongOptionError, work_folder

app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}
)

Scenario = StrEnum("Scenario", ["latency", "throughput", "pipeline", "operations", "startup", "pixels"])
Engine = StrEnum("Engine", [("auto", "auto"), ("onnx", "onnx"), ("cuda", "onnx-cuda"), ("torch", "torch")])
Precision = StrEnum("Precision", ["fp32", "fp16", "bf16", "fp8", "int8", "int4"])
InstructionSet = StrEnum("InstructionSet", ["avx2", "avxvnni", "avx512vnni", "avx512bf16", "amx"])
Task = StrEnum("Task", ["quality", "aesthetics", "both"])


@app.command()
def bench(
    scenario: Annotated[Scenario, typer.Argument(help="What is measured.", show_default=False)],
    files: Annotated[
        list[str] | None,
        typer.Argument(help="Pictures that pipeline, startup and pixels read. Default: generated.", show_default=False),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Artifact; or a checkpoint, a Hub id, random:one-align, random:mini or random:FOLDER (of a "
            "config.json), which are exported first; a random one for a named CUDA device is made there, in no file. "
            "Default: the embedded model.",
            show_default=False,
        ),
    ] = None,
    engine: Annotated[
        list[Engine] | None, typer.Option(help="May be repeated, to compare. Default: auto.", show_default=False)
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 and so on, or mps.")] = "auto",
    precision: Annotated[
        list[Precision] | None,
        typer.Option(help="May be repeated, to compare. Default: the artifact's, else int8.", show_default=False),
    ] = None,
    batch: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            max=1024,
            help="Pictures at a time; may be repeated. Default: latency 1, throughput 1 2 4 8, pipeline 8.",
            show_default=False,
        ),
    ] = None,
    task: Annotated[Task, typer.Option(help="What a picture is scored for.")] = Task.quality,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of every engine. Default: all cores.", show_default=False)
    ] = None,
    repeat: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Timed forwards of each contestant and batch (pipeline, pixels: passes, startup: processes). "
            "Default: some seconds' worth, in rounds.",
            show_default=False,
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables in markdown.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Draw into this .png, .svg or .pdf as well.", show_default=False)
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            help="Compare with upstream=PATH (a checkout of Q-Align), hf-eager (upstream's way, from this project's "
            "stations), bnb-int8 or bnb-nf4. May be repeated.",
            show_default=False,
        ),
    ] = None,
    peer_python: Annotated[
        str | None, typer.Option(help="The interpreter that has the peers' packages.", show_default=False)
    ] = None,
    instruction_set: Annotated[
        InstructionSet | None,
        typer.Option(
            help="Hold everybody's kernels to what a lesser CPU has (oneDNN's too; not onnxruntime's). Default: all.",
            show_default=False,
        ),
    ] = None,
    exclusive: Annotated[
        bool, typer.Option("--exclusive", help="One contestant in memory at a time, loaded anew for every round.")
    ] = False,
    tune: Annotated[
        bool,
        typer.Option(
            "--tune",
            help="operations on an NVIDIA GPU: time every tile of its matrix products, two minutes long, and keep the "
            "fastest in the installed package.",
        ),
    ] = False,
    work: Annotated[
        Path | None,
        typer.Option(help="Where exports are kept. Default: in the user's cache folder.", show_default=False),
    ] = None,
) -> None:
    """Measure speed on this machine, with what a reader of the number needs beside it.

    \b
    latency     single forwards: percentiles, memory, share of the measured peak
    throughput  the same over several batch sizes
    pipeline    files on disk to scores: how busy the engine is kept
    operations  the model's operations at their true shapes, beside their contracts in plain torch
    startup     starting Python to a first score, warm and cold
    pixels      files to pixels, on one core
    \b
    qalign-fast bench latency --model random:one-align --precision int8
    qalign-fast bench throughput --model one-align-int8 --batch 1 --batch 4
    qalign-fast bench latency --model random:one-align \\
        --peer upstream=../Q-Align --peer-python ../upstream/bin/python
    """
    if json and markdown:
        raise typer.BadParameter("print one or the other", param_hint="--json and --markdown")
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
        instruction_set=instruction_set.value if instruction_set else None,
        work=work or work_folder(),
    )
    form = "json" if json else "markdown" if markdown else "text"
    try:
        command.tune(options, form=form) if tune else command.bench(options, form=form, plot=plot)
    except WrongOptionError as error:
        raise typer.BadParameter(error.problem, param_hint=error.option) from error
