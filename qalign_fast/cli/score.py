"""`qalign-fast score`: files, folders and lists in, a row for each picture or clip and task out."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qalign_fast.cli.console import Base, NoVerify, remark, rows_progress, stdin_bytes
from qalign_fast.cli.output import Format, choose_format, choose_mode, open_output
from qalign_fast.engines.options import threads_remark
from qalign_fast.families.published import task_remark
from qalign_fast.feed.items import ClipOptions
from qalign_fast.feed.remote.address import is_address
from qalign_fast.identity import trained_name
from qalign_fast.pixels.libtiff import silence_libtiff
from qalign_fast.pixels.limits import MAX_PIXELS, PictureLimits
from qalign_fast.records import make_rows, make_writer, write_rows
from qalign_fast.scorer import Scorer
from qalign_fast.sources import find_sources, tell_skipped, to_items
from qalign_kernels.contract.precisions import PRECISIONS

if TYPE_CHECKING:
    from qalign_fast.analysis.calibration import Calibration
    from qalign_fast.engines.contract import Engine


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
    model: Annotated[
        str | None,
        typer.Option(
            help="Artifact directory, checkpoint directory, Hub id, or a server's address (http://host:8000). Default: "
            "the embedded demonstration model.",
            show_default=False,
        ),
    ] = None,
    base: Base = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            help="Of a server that asks for one. The environment variable keeps it off the list of processes.",
            show_default=False,
            envvar="QALIGN_API_KEY",
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda, cuda:1 and so on, or mps; a GPU runs torch weights.")
    ] = "auto",
    engine: Annotated[
        str,
        typer.Option(
            help="auto, or one that the model has weights for: native, torch, onnx, onnx-cuda, openvino, tensorrt."
        ),
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
        Format | None,
        typer.Option(
            help="Default: by the output's suffix; on stdout table on a terminal, else jsonl.", show_default=False
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write rows to this file instead of stdout.", show_default=False),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that is there.")] = False,
    append: Annotated[bool, typer.Option("--append", help="Add JSON lines to an output that is there.")] = False,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Look into folders below folders.")] = False,
    null: Annotated[
        bool, typer.Option("--null", "-0", help="A null byte ends each name on stdin, as of find -print0.")
    ] = False,
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
    allow_truncated: Annotated[
        bool, typer.Option("--allow-truncated", help="Score pictures that are cut off as far as they go.")
    ] = False,
    background: Annotated[
        str | None,
        typer.Option(
            help="A colour behind transparent parts: white, '#8040ff'. Default: alpha is dropped, as upstream."
        ),
    ] = None,
    tone_map: Annotated[bool, typer.Option("--tone-map", help="Turn HDR clips into SDR; upstream does not.")] = False,
    formats: Annotated[
        str,
        typer.Option(help="Read these too: heic, jxl or heic,jxl; the extra `formats` has them.", show_default=False),
    ] = "",
    max_pixels: Annotated[int, typer.Option(min=1, help="Of a picture, or of a frame.")] = MAX_PIXELS,
    max_bytes: Annotated[
        int | None, typer.Option(min=1, help="Of a file. Default: 64 MiB for a picture.", show_default=False)
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(help="A file of `calibrate`: adds each score's percentile, 0..100.", show_default=False),
    ] = None,
    no_verify: NoVerify = False,
) -> None:
    """Score pictures and clips; a row for each and task, in order.

    \b
    qalign-fast score photo.jpg holiday/ 'frames/*.png'
    find . -name '*.jpg' -print0 | qalign-fast score - -0 -o scores.jsonl
    qalign-fast score clip.mp4 --fps 2 --model path/to/artifact --task all
    """
    kind = choose_format(format, output)
    mode = choose_mode(output, kind, overwrite=overwrite, append=append)
    more = tuple(name.strip().lower() for name in formats.split(",") if name.strip())
    limits = PictureLimits(
        max_bytes=max_bytes,
        max_pixels=max_pixels,
        exif_rotate=exif_rotate,
        allow_truncated=allow_truncated,
        background=_colour(background),
        tone_map=tone_map,
        formats=more,
    )
    scorer = Scorer.load(
        model,
        device=device,
        precision=precision,
        engine=engine,
        threads=threads,
        verify=not no_verify,
        limits=limits,
        api_key=(api_key or None) if is_address(model) else None,
        base=base,
    )
    tasks = scorer.usual_tasks() if task == "all" else (task,)
    scorer.require(tasks)
    calibrated = None if calibration is None else _calibration(calibration, tasks, model, precision, base)
    skipped: Counter[str] = Counter()
    sources = find_sources(
        paths, stdin_bytes(), recursive=recursive, null=null, formats=more, skipped=lambda k: skipped.update([k])
    )
    items = to_items(sources, ClipOptions(fps, max_frames, "time" if sampling == Sampling.time else "index"))
    silence_libtiff()
    started = time.perf_counter()
    with scorer, open_output(output, kind, mode) as out:
        rows = make_rows(scorer.feed.run(items, tasks, batch_size=batch_size, workers=workers), tasks)
        rows = rows if calibrated is None else calibrated.add_to(rows)
        writer = make_writer(kind, out, scorer.engine.family.scale, percentile=calibrated is not None)
        with closing(writer), rows_progress() as seen:
            done, failed = write_rows(rows, writer, seen)
    took = time.perf_counter() - started
    remark(f"{done} row{'' if done == 1 else 's'} in {took:.2f} s" + (f", {failed} failed" if failed else ""))
    if skipped:
        remark("skipped in folders: " + tell_skipped(skipped))
    if bounded := threads_remark(threads):
        remark(bounded)
    _remark_on(scorer.engine)
    if not is_address(model) and (untrained := task_remark(trained_name(model), tasks)):
        remark(untrained)
    if failed:
        raise typer.Exit(3)


def _calibration(
    path: Path, tasks: Sequence[str], model: str | None, precision: str | None, base: str | None
) -> Calibration:
    """Raises CalibrationError for one of another model, TaskError for a task that it does not have."""
    from qalign_fast.analysis.calibration import model_identity, read_calibration

    found = read_calibration(path)
    found.require_model(model_identity(model, precision, base))
    for task in tasks:
        found.of_task(task)
    return found


def _colour(text: str | None) -> tuple[int, int, int] | None:
    """Red, green and blue, 0..255. Raises BadParameter for what is no colour."""
    from PIL import ImageColor

    try:
        return None if text is None else ImageColor.getrgb(text)[:3]
    except ValueError as error:
        raise typer.BadParameter(
            f"{text!r} is no colour; expected a name, or #rrggbb", param_hint="--background"
        ) from error


def _remark_on(engine: Engine) -> None:
    """Says what is faster, where the C++ kernels would be."""
    precision = PRECISIONS.get(engine.precision)
    if engine.kernels.startswith("plain ") and engine.device == "cpu" and precision and precision.native:
        from qalign_kernels.cpu import native

        remark(f"ran in {engine.kernels}; C++ kernels are several times as fast: {native.describe()}")
