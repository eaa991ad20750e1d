"""`qalign-fast score`: files, folders and lists in, a row for each picture or clip and task out."""

from __future__ import annotations

import sys
import time
from contextlib import closing
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qalign_fast.cli.console import Model, NoVerify, open_output, remark, rows_progress
from qalign_fast.feed.items import ClipOptions
from qalign_fast.pixels.limits import PictureLimits
from qalign_fast.records import make_rows, make_writer, write_rows
from qalign_fast.scorer import Scorer
from qalign_fast.sources import find_sources, to_items
from qalign_kernels.contract.precisions import PRECISIONS

if TYPE_CHECKING:
    from qalign_fast.engines.contract import Engine


class Format(StrEnum):
    table = "table"
    jsonl = "jsonl"
    csv = "csv"


Sampling = StrEnum("Sampling", ["index", "time"])


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
    engine: Annotated[
        str, typer.Option(help="auto, or one that the model has weights for: native, torch, onnx, onnx-cuda, tensorrt.")
    ] = "auto",
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
    max_frames: Annotated[
        int | None,
        typer.Option(
            min=1, help="Frames of a clip at most, spread evenly. Default: 31, or the family's.", show_default=False
        ),
    ] = None,
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
    tasks = [task]
    if task == "all":
        tasks = [t for t in ("quality", "aesthetics") if t in scorer.tasks()] or list(scorer.tasks())
    scorer.require(tasks)
    sources = find_sources(paths, sys.stdin, recursive=recursive)
    items = to_items(sources, ClipOptions(fps, max_frames, "time" if sampling == Sampling.time else "index"))
    started = time.perf_counter()
    with scorer, open_output(output) as out:
        kind = format or (Format.table if out.isatty() else Format.jsonl)
        rows = make_rows(scorer.feed.run(items, tasks, batch_size=batch_size, workers=workers), tasks)
        with closing(make_writer(str(kind), out, scorer.engine.family.scale)) as writer, rows_progress() as seen:
            done, failed = write_rows(rows, writer, seen)
    took = time.perf_counter() - started
    remark(f"{done} row{'' if done == 1 else 's'} in {took:.2f} s" + (f", {failed} failed" if failed else ""))
    _remark_on(scorer.engine)
    if failed:
        raise typer.Exit(3)


def _remark_on(engine: Engine) -> None:
    """Says what is faster, where the C++ kernels would be."""
    precision = PRECISIONS.get(engine.precision)
    if engine.kernels.startswith("plain ") and engine.device == "cpu" and precision and precision.native:
        from qalign_kernels.cpu import native

        remark(f"ran in {engine.kernels}; C++ kernels are several times as fast: {native.describe()}")
