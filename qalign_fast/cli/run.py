"""`qalign-fast run`: inputs by the million in, shards of rows out, exactly once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from qalign_fast.cli.console import Base, NoVerify, print_facts, remark, stdin_bytes
from qalign_fast.errors import OptionError, TaskError
from qalign_fast.families.prompt import usual_tasks
from qalign_fast.families.published import task_remark
from qalign_fast.feed.items import ClipOptions
from qalign_fast.feed.remote.address import is_address
from qalign_fast.identity import tasks_of, trained_name
from qalign_fast.pixels.limits import MAX_PIXELS, PictureLimits
from qalign_fast.sources import tell_skipped

if TYPE_CHECKING:
    from qalign_fast.jobs.job import Outcome
    from qalign_fast.jobs.options import Format, JobOptions, RunOptions

Form = StrEnum("Form", ["parquet", "jsonl", "csv"])
Cluster = StrEnum("Cluster", ["local", "ray"])
Sampling = StrEnum("Sampling", ["index", "time"])


def run(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Folders, files, glob patterns; lists of names (.txt, or - for stdin); tables (.csv, .tsv, .jsonl, "
            ".parquet); WebDataset tars; data sets saved by `datasets`; URLs of fsspec's stores. None: go on with the "
            "job in --out.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The folder for the shards.", show_default=False)
    ] = None,
    status: Annotated[
        Path | None, typer.Option(help="Print how far the job in this folder is, and end.", show_default=False)
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be scored, and how long that would take, and end.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Start anew: the job in --out and its rows are removed.")
    ] = False,
    retry: Annotated[
        bool,
        typer.Option("--retry", help="Also score inputs again that were unavailable or quarantined."),
    ] = False,
    task: Annotated[str, typer.Option(help="As score's; `all` is quality and aesthetics.")] = "quality",
    model: Annotated[
        str | None,
        typer.Option(
            help="Artifact directory, checkpoint directory or Hub id. Default: the embedded model.", show_default=False
        ),
    ] = None,
    base: Base = None,
    format: Annotated[Form, typer.Option(help="Of the shards.")] = Form.parquet,
    column: Annotated[
        str | None,
        typer.Option(
            help="The table's column with paths, URLs or bytes; of tars, the suffix of the member to score. "
            "Default: the first of the usual names.",
            show_default=False,
        ),
    ] = None,
    keep: Annotated[str, typer.Option(help="Columns that the rows repeat: id,caption.", show_default=False)] = "",
    root: Annotated[
        str | None,
        typer.Option(
            help="Where relative paths of tables and lists start. Default: a table's folder; for lists the working "
            "directory.",
            show_default=False,
        ),
    ] = None,
    allow: Annotated[
        str,
        typer.Option(help="Stores that lists and tables may name: s3,https.", show_default=False),
    ] = "",
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Look into folders below folders.")] = False,
    shard_size: Annotated[int, typer.Option(min=1, max=1 << 30, help="Inputs of a shard.")] = 1024,
    dedup: Annotated[bool, typer.Option("--dedup", help="Score pictures of equal bytes once.")] = False,
    timing: Annotated[
        bool,
        typer.Option(
            "--timing/--no-timing", help="Rows tell how long reading took. Without, a job repeats to the byte."
        ),
    ] = True,
    on: Annotated[
        Cluster, typer.Option(help="Where engines run: here, or on the Ray cluster that is reached.")
    ] = Cluster.local,
    device: Annotated[
        list[str] | None,
        typer.Option(
            help="Repeat it for an engine on each: cuda:0, cuda:1. Default: every GPU, else a CPU's NUMA nodes. On "
            "Ray: an actor for each.",
            show_default=False,
        ),
    ] = None,
    engine: Annotated[str, typer.Option(help="As score's.")] = "auto",
    precision: Annotated[str | None, typer.Option(help="As score's.", show_default=False)] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="As score's.", show_default=False)] = None,
    batch_size: Annotated[int, typer.Option(min=1, max=1024, help="Pictures scored at a time.")] = 16,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, max=256, help="Processes that decode. Default: one for each core, two at least.", show_default=False
        ),
    ] = None,
    time_limit: Annotated[float, typer.Option(min=0.1, help="Seconds that one input may take to be read.")] = 60.0,
    fps: Annotated[float, typer.Option(min=0.001, help="As score's.")] = 1.0,
    max_frames: Annotated[int | None, typer.Option(min=1, help="As score's.", show_default=False)] = None,
    sampling: Annotated[Sampling, typer.Option(help="As score's.")] = Sampling.index,
    exif_rotate: Annotated[bool, typer.Option("--exif-rotate", help="As score's.")] = False,
    allow_truncated: Annotated[bool, typer.Option("--allow-truncated", help="As score's.")] = False,
    tone_map: Annotated[bool, typer.Option("--tone-map", help="As score's.")] = False,
    formats: Annotated[str, typer.Option(help="As score's.", show_default=False)] = "",
    max_pixels: Annotated[int, typer.Option(min=1, help="As score's.")] = MAX_PIXELS,
    max_bytes: Annotated[int | None, typer.Option(min=1, help="As score's.", show_default=False)] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the status, the dry run or the summary as JSON.")] = False,
    no_verify: NoVerify = False,
) -> None:
    """Score data sets of any size into shards of rows. The same command goes on where it ended.

    \b
    qalign-fast run photos/ -r --out scores/
    qalign-fast run data.parquet --column image --keep id,caption --out scores/ --task all
    qalign-fast run 'shards/*.tar' --keep txt --out scores/
    qalign-fast run --status scores/
    """
    if status is not None:
        from qalign_fast.jobs.status import status_of

        print_facts(status_of(status), as_json=json)
        return
    if out is None:
        raise typer.BadParameter("give the folder for the shards", param_hint="--out")
    if is_address(model):
        raise OptionError("a job runs its own engine; with a server's address use `qalign-fast score`")
    from qalign_fast.jobs.inputs.taking import InputOptions
    from qalign_fast.jobs.options import JobOptions, RunOptions

    more = _names(formats)
    job = JobOptions(
        inputs=tuple(inputs or ()),
        tasks=_tasks(task, model, base),
        taking=InputOptions(column, _names(keep, lower=False), root, recursive, more, _names(allow)),
        clip=ClipOptions(fps, max_frames, "time" if sampling == Sampling.time else "index"),
        limits=PictureLimits(
            max_bytes=max_bytes,
            max_pixels=max_pixels,
            exif_rotate=exif_rotate,
            allow_truncated=allow_truncated,
            tone_map=tone_map,
            formats=more,
        ),
        format=cast("Format", format.value),
        shard_size=shard_size,
        dedup=dedup,
        timing=timing,
    )
    how = RunOptions(
        model,
        tuple(device or ["auto"]),
        precision,
        engine,
        threads,
        not no_verify,
        batch_size,
        workers,
        time_limit,
        base,
    )
    if dry_run:
        _plan_only(out, job, how, as_json=json)
        return
    _run(out, job, how, force=force, retry=retry, on_ray=on == Cluster.ray, as_json=json)


def _run(out: Path, job: JobOptions, how: RunOptions, *, force: bool, retry: bool, on_ray: bool, as_json: bool) -> None:
    from qalign_fast.jobs.job import engines_for, run_job
    from qalign_fast.jobs.progress import Progress

    make_engines: Any = engines_for
    if on_ray:
        from qalign_fast.jobs.ray_engines import ray_engines_for

        make_engines = ray_engines_for
    skipped: Counter[str] = Counter()
    progress = Progress()
    with progress.hearing(), _told_when_interrupted():
        outcome = run_job(
            out,
            job,
            how,
            force=force,
            retry=retry,
            stdin=stdin_bytes(),
            watcher=progress,
            make_engines=make_engines,
            skipped=lambda kind: skipped.update([kind]),
        )
    if skipped:
        remark("skipped: " + tell_skipped(skipped))
    _tell(out, outcome, progress.seconds, as_json=as_json)
    if not outcome.complete:
        raise typer.Exit(130)
    if outcome.errors:
        raise typer.Exit(3)


@contextmanager
def _told_when_interrupted() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        remark("ended at once; the same command goes on with the shards that are finished")
        raise


def _tell(out: Path, outcome: Outcome, seconds: float, *, as_json: bool) -> None:
    """The last summary."""
    counts = outcome.counts
    if as_json:
        print_facts(
            {"shards": outcome.shards, "finished": outcome.finished, "inputs": outcome.inputs, **counts}, as_json=True
        )
    rate = f" in {seconds:.1f} s, {outcome.scored / seconds:.1f} a second" if outcome.scored else ""
    remark(f"{outcome.scored:,} inputs scored{rate}; {outcome.finished} of {outcome.shards} shards are in {out}")
    said = [
        f"{counts[name]:,} {name}" for name in ("ok", "failed", "unavailable", "quarantined", "changed") if counts[name]
    ]
    remark("all of them: " + ", ".join(said) if said else "nothing was scored")
    if not outcome.complete:
        remark("ended early; the same command goes on")
    elif counts["unavailable"] + counts["quarantined"]:
        remark("--retry scores those again that were unavailable or quarantined")


def _plan_only(out: Path, job: JobOptions, how: RunOptions, *, as_json: bool) -> None:
    from qalign_fast.jobs.dry_run import dry_run
    from qalign_fast.jobs.progress import Progress

    print_facts(dry_run(out, job, how, stdin_bytes(), Progress().planning), as_json=as_json)


def _tasks(task: str, model: str | None, base: str | None) -> tuple[str, ...]:
    """The tasks by their names, before the model is loaded. Raises TaskError for one that it does not have."""
    has = tasks_of(model, base)
    if task != "all" and task not in has:
        raise TaskError(f"task {task!r} is not in this model; for images it has: {', '.join(has)}")
    tasks = usual_tasks(has) if task == "all" else (task,)
    if untrained := task_remark(trained_name(model), tasks):
        remark(untrained)
    return tasks


def _names(text: str, *, lower: bool = True) -> tuple[str, ...]:
    names = (name.strip() for name in text.split(","))
    return tuple(name.lower() if lower else name for name in names if name)
