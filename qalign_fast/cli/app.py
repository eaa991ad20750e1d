"""Arguments in, rows on stdout out: `qalign-fast score | info | export | verify | build | bench`.

stdout carries only data; progress and remarks go to stderr. Exit codes: 0 all scored, 1 an error of ours in one line,
2 a wrong option, 3 some inputs could not be scored, 6 an artifact too far from its source, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from itertools import groupby
from json import dumps as json_text
from pathlib import Path
from typing import IO, Annotated, Any

try:
    import typer
    from rich.console import Console
except ModuleNotFoundError as missing:
    sys.exit(f"the command line needs typer and rich: pip install 'qalign-fast[cli]' ({missing})")

from qalign_fast import PictureLimits, Scorer, __version__
from qalign_fast.errors import ImageError, MissingExtraError, QAlignError
from qalign_fast.records import Row, make_row, make_writer
from qalign_fast.scorer import MAX_FRAMES
from qalign_fast.sources import find_sources, is_video

app = typer.Typer(
    help="Rate pictures and clips as people would, with OneAlign / Q-Align: 1 (bad) to 5 (excellent).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Format(StrEnum):
    table = "table"
    jsonl = "jsonl"
    csv = "csv"


Sampling = StrEnum("Sampling", ["index", "time"])
Precision = StrEnum("Precision", ["fp32", "fp16", "bf16", "fp8", "int8", "int4"])
EngineChoice = StrEnum("EngineChoice", [("onnx", "onnx"), ("cuda", "onnx-cuda"), ("torch", "torch"), ("all", "all")])


Model = Annotated[
    str | None,
    typer.Option(
        help="Artifact directory, checkpoint directory or Hub id. Default: the embedded demonstration model.",
        show_default=False,
    ),
]
NoVerify = Annotated[
    bool,
    typer.Option(
        "--no-verify", help="Do not hash an artifact's files; their sizes and places are checked all the same."
    ),
]


@app.command()
def score(
    paths: Annotated[
        list[str], typer.Argument(help="Files, folders, glob patterns, or - for a list on stdin.", show_default=False)
    ],
    task: Annotated[
        str,
        typer.Option(
            help="quality, aesthetics, any other the model has; `all` is the first two, as far as it has them."
        ),
    ] = "quality",
    model: Model = None,
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda, cuda:1 and so on, or mps; a GPU runs torch weights.")
    ] = "auto",
    engine: Annotated[str, typer.Option(help="auto, onnx (artifacts) or torch (checkpoints).")] = "auto",
    precision: Annotated[
        str | None,
        typer.Option(
            help="Of a checkpoint: fp32, bnb-int8 or bnb-nf4 (bitsandbytes). Default: the artifact's, else fp32.",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads the engine computes with. Default: all cores.", show_default=False),
    ] = None,
    format: Annotated[
        Format | None, typer.Option(help="Default: table on a terminal and jsonl elsewhere.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write rows to this file instead of stdout.", show_default=False),
    ] = None,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Look into folders below folders.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, max=1024, help="Pictures scored at a time.")] = 16,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Threads that read and resize pictures.")] = 4,
    fps: Annotated[float, typer.Option(min=0.001, help="Frames of a clip to score, a second.")] = 1.0,
    max_frames: Annotated[int, typer.Option(min=1, help="Frames of a clip at most, spread evenly.")] = MAX_FRAMES,
    sampling: Annotated[
        Sampling, typer.Option(help="Frames by index, as upstream, or by presentation time.")
    ] = Sampling.index,
    exif_rotate: Annotated[
        bool, typer.Option("--exif-rotate", help="Apply EXIF orientation; upstream ignores it.")
    ] = False,
    no_verify: NoVerify = False,
) -> None:
    """Score pictures and clips; a row for each and task, in order.

    \b
    qalign-fast score photo.jpg holiday/ 'frames/*.png'
    find . -name '*.jpg' | qalign-fast score - --format jsonl -o scores.jsonl
    qalign-fast score clip.mp4 --fps 2 --model path/to/artifact --task all
    """
    limits = PictureLimits(exif_rotate=exif_rotate)
    scorer = Scorer.load(
        model,
        device=device,
        precision=precision,
        engine=engine,
        threads=threads,
        verify=not no_verify,
        limits=limits,
    )
    on_cpu = scorer.engine.kernels == "plain torch" and scorer.engine.device == "cpu"
    if on_cpu and scorer.engine.precision not in ("fp32", "fp8"):
        _remark("running in plain torch; `qalign-fast build` compiles kernels that are several times as fast")
    tasks = [task]
    if task == "all":
        tasks = [t for t in ("quality", "aesthetics") if t in scorer.tasks()]
    scorer.require(tasks)
    clip_options = {"fps": fps, "max_frames": max_frames, "sampling": str(sampling)}
    sources = find_sources(paths, sys.stdin, recursive=recursive)
    failed = done = 0
    started = time.perf_counter()
    with _open_output(output) as out:
        kind = format or (Format.table if out.isatty() else Format.jsonl)
        writer = make_writer(str(kind), out)
        try:
            for row in _with_progress(score_rows(scorer, sources, tasks, batch_size, workers, clip_options)):
                writer.write(row)
                done += 1
                failed += row["error"] is not None
        finally:
            writer.close()
    took = time.perf_counter() - started
    _remark(f"{done} rows in {took:.2f} s" + (f", {failed} failed" if failed else ""))
    if failed:
        raise typer.Exit(3)


@app.command()
def info(
    model: Annotated[str | None, typer.Argument(help="As score's --model.", show_default=False)] = None,
    device: Annotated[str, typer.Option(help="As score's: which engine would run there is said.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print the same as JSON.")] = False,
    no_verify: NoVerify = False,
) -> None:
    """Say what a model is: sizes, tasks, precision, files, licence, and which engine would run it here."""
    from qalign_fast.cli.info import describe

    _print_facts(describe(model, device=device, verify=not no_verify), as_json=json)


@app.command()
def export(
    source: Annotated[
        str,
        typer.Argument(help="Checkpoint directory, Hub id, or random:one-align (true sizes).", show_default=False),
    ],
    out: Annotated[Path, typer.Argument(help="Artifact directory to make; must not exist.", show_default=False)],
    precision: Annotated[Precision, typer.Option(help="fp8, int8 and int4 round rows as well.")] = Precision.fp32,
    engine: Annotated[
        EngineChoice, typer.Option(help="onnx-cuda is for an NVIDIA GPU, in fp16; bf16 and fp8 have torch's alone.")
    ] = EngineChoice.onnx,
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task", "--tasks", help="A task to include; may be repeated. Default: all four.", show_default=False
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="A task of your own: NAME=TEXT, with <image> in the text; \\n is a new line. May be repeated.",
            show_default=False,
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="For --prompt. Default: the checkpoint's tokenizer.model.", show_default=False)
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(help="Folder of pictures to calibrate on. Default: generated ones.", show_default=False),
    ] = None,
    calibration_count: Annotated[int, typer.Option(min=0, help="Pictures to calibrate on; 0 rounds blindly.")] = 8,
    name: Annotated[str | None, typer.Option(help="The model's name in the manifest.", show_default=False)] = None,
    license: Annotated[
        str | None, typer.Option(help="The weights' licence, for the manifest.", show_default=False)
    ] = None,
) -> None:
    """Make an artifact: weights in a precision for an engine, the prompts' constants, a manifest with hashes.

    \b
    qalign-fast export path/to/one-align one-align-int8 --precision int8
    qalign-fast export q-future/one-align one-align-int4 --precision int4 --engine all --calibration photos/
    """
    from qalign_fast.families.mplug_owl2.prompts import TASKS

    try:
        from qalign_export import command
        from qalign_export.options import UNKNOWN_LICENSE, ExportOptions
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"export needs torch and onnx: pip install 'qalign-fast[export]' ({error})") from error
    options = ExportOptions(
        precision=precision.value,
        engines=("onnx", "torch") if engine == EngineChoice.all else (engine.value,),
        tasks=TASKS if task is None else task,
        calibration=command.find_calibration(calibration, calibration_count, precision.value),
        prompts=command.read_prompts(prompt or [], tokenizer, source),
        name=name,
        license=license or UNKNOWN_LICENSE,
    )
    with _progress_bar("rounding and writing") as done:
        command.export(source, out, options, remark=_remark, done=done)


@app.command()
def build() -> None:
    """Compile the C++ kernels for this machine's CPU, once: artifacts with torch weights then run on them."""
    from qalign_kernels.cpu import native

    try:
        path = native.build()
    except native.BuildError as error:
        raise MissingExtraError(str(error)) from error
    _remark(f"built for: {', '.join(native.instruction_sets())}")
    _remark(f"kernels: {native.describe(path)}")
    print(path)


@app.command()
def verify(
    artifact: Annotated[Path, typer.Argument(help="Artifact directory.", show_default=False)],
    pictures: Annotated[
        list[str] | None, typer.Argument(help="Pictures to compare on. Default: bundled ones.", show_default=False)
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help="What it was made from: compare scores, and write the report.", show_default=False),
    ] = None,
    count: Annotated[int, typer.Option(min=2, help="How many of the bundled ones.")] = 104,
    max_delta: Annotated[
        float | None, typer.Option(help="Exit 6 if any score moved by more.", show_default=False)
    ] = None,
    min_srcc: Annotated[
        float | None, typer.Option(help="Exit 6 if the rank correlation is lower.", show_default=False)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Check an artifact: its files' hashes and, with --against, how far its scores are from its source's."""
    from dataclasses import asdict

    from qalign_export.fidelity import verify as compare
    from qalign_fast.artifact.manifest import open_artifact

    if against is None:
        if pictures or max_delta is not None or min_srcc is not None:
            raise typer.BadParameter("pictures, --max-delta and --min-srcc need --against", param_hint="--against")
        _remark(f"{artifact}: {len(open_artifact(artifact).manifest.files)} files match the manifest")
        return
    chosen = list(find_sources(pictures or [], sys.stdin, recursive=False))
    reports = compare(artifact, against, chosen, count=count)
    by_engine = {engine: asdict(report) for engine, report in reports.items()}
    facts = {key: {e: report[key] for e, report in by_engine.items()} for key in next(iter(by_engine.values()))}
    _print_facts(by_engine if json else facts, as_json=json)
    too_far = any(max_delta is not None and report.max_delta > max_delta for report in reports.values())
    if too_far or any(min_srcc is not None and report.srcc < min_srcc for report in reports.values()):
        _remark("the artifact is further from its source than allowed")
        raise typer.Exit(6)


@app.command(
    add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)  # qalign_bench reads the options, --help among them
def bench(context: typer.Context) -> None:
    """Measure speed on this machine: latency, throughput, pipeline, operations, startup, pixels."""
    try:
        from qalign_bench.cli.arguments import app as measure
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"bench needs torch and onnx: pip install 'qalign-fast[bench]' ({error})") from error
    measure(context.args, prog_name="qalign-fast bench")


def score_rows(
    scorer: Scorer,
    sources: Iterable[str],
    tasks: list[str],
    batch_size: int,
    workers: int,
    clip_options: dict[str, Any],
) -> Iterator[Row]:
    """A row for each source and task, in order; runs of pictures are scored in batches, clips one at a time."""
    for clips, run in groupby(sources, key=is_video):
        if clips:
            for source in run:
                yield from _clip_rows(scorer, source, tasks, clip_options)
            continue
        names: list[str] = []  # what score_tasks_iter has taken and not yet given back
        results = scorer.score_tasks_iter(
            _remember(run, names), tasks, batch_size=batch_size, workers=workers, errors="yield"
        )
        for result in results:
            source = names.pop(0)
            for task in tasks:
                yield make_row(source, task, result if isinstance(result, ImageError) else result[task])


def _clip_rows(scorer: Scorer, source: str, tasks: list[str], options: dict[str, Any]) -> Iterator[Row]:
    try:
        scores = scorer.score_video_tasks(source, tasks, **options)
    except MissingExtraError:
        raise
    except QAlignError as error:
        yield from (make_row(source, task, error) for task in tasks)
    else:
        yield from (make_row(source, task, scores[task]) for task in tasks)


def _remember(sources: Iterable[str], names: list[str]) -> Iterator[str]:
    for source in sources:
        names.append(source)
        yield source


def _with_progress(rows: Iterator[Row]) -> Iterator[Row]:
    if not sys.stderr.isatty():
        yield from rows
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.completed} rows, {task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("starting", total=None)
        for row in rows:
            yield row
            progress.update(bar, advance=1, description=Path(row["source"]).name)


@contextlib.contextmanager
def _progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """What shows how many are done, of how many; nothing where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield lambda _, __: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(what, total=None)
        yield lambda now, total: progress.update(bar, completed=now, total=total)


@contextlib.contextmanager
def _open_output(path: Path | None) -> Iterator[IO[str]]:
    if path is None:
        yield sys.stdout
        return
    try:
        with path.open("w", encoding="utf-8", newline="") as out:
            yield out
    except OSError as error:
        raise QAlignError(f"{path}: {error.strerror}") from error


def _print_facts(facts: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json_text(facts, indent=2))
        return
    width = max(map(len, facts))
    for key, value in facts.items():
        text = ", ".join(f"{k} {_short(v)}" for k, v in value.items()) if isinstance(value, dict) else _short(value)
        print(f"{key:{width}}  {text}")


def _short(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value


def _remark(text: str) -> None:
    print(text, file=sys.stderr)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"qalign-fast {__version__}")
        raise typer.Exit


def main() -> None:
    """The console script: our errors become one line and exit code 1."""
    warnings.filterwarnings("ignore", module="PIL")  # what matters of them comes as an error of ours
    try:
        app(standalone_mode=True)
    except QAlignError as error:
        _remark("error: " + " ".join(str(error).split()))
        sys.exit(1)
    except BrokenPipeError:  # the reader of stdout, such as head, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
