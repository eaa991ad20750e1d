"""`qalign-fast drift`: the rows of two runs in; how far scores have moved, out."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qalign_fast.cli.console import print_facts, remark
from qalign_fast.cli.rows import read_told

if TYPE_CHECKING:
    from qalign_fast.analysis.drift import TaskDrift
    from qalign_fast.analysis.job import Job
    from qalign_fast.analysis.measures import Shift


class JoinBy(StrEnum):
    """What makes two rows the same picture's."""

    source = "source"
    sha256 = "sha256"


def drift(
    old: Annotated[Path, typer.Argument(help="Rows: Parquet, JSON lines, CSV or a job's folder.", show_default=False)],
    new: Annotated[Path, typer.Argument(help="Rows of another run.", show_default=False)],
    by: Annotated[JoinBy, typer.Option(help="Join rows by their source, or by the hash of their content.")] = (
        JoinBy.source
    ),
    max_ks: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Exit 6 if the KS distance is larger, 0..1.", show_default=False),
    ] = None,
    max_shift: Annotated[
        float | None, typer.Option(min=0, help="Exit 6 if the paired mean moved by more.", show_default=False)
    ] = None,
    max_flips: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Exit 6 if a larger share of pairs is reversed, 0..1.", show_default=False),
    ] = None,
    max_missing: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Exit 6 if a larger share of rows is in one run only.", show_default=False),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the same as JSON.")] = False,
) -> None:
    """Say how far scores moved from one run to another: distribution, mean, order, levels, errors.

    \b
    qalign-fast drift old/ new/
    qalign-fast drift old.parquet new.parquet --by sha256 --max-ks 0.02 --max-shift 0.05 --max-flips 0.01
    """
    from qalign_fast.analysis.drift import find_drift
    from qalign_fast.analysis.rows import KEY

    wanted = ["level", KEY, *(["sha256"] if by == JoinBy.sha256 else [])]
    before, after = read_told(old, wanted), read_told(new, wanted)
    runs = {"OLD": before, "NEW": after}
    found = find_drift(before, after, "sha256" if by == JoinBy.sha256 else "source")
    models = {"old model": _model(before.job), "new model": _model(after.job)}
    alone = {f"only in {name}": [t for t in rows.tasks if t not in found] for name, rows in runs.items()}
    if json:
        tasks = {task: asdict(of_task) | {"missing": of_task.missing} for task, of_task in found.items()}
        print_facts(models | alone | {"by": by.value, "tasks": tasks}, as_json=True)
    else:
        shown = {name: ", ".join(tasks) for name, tasks in alone.items() if tasks}
        print_facts(models | shown | {"joined by": by.value}, as_json=False)
        for task, of_task in found.items():
            print()
            print_facts({"task": task} | _for_people(of_task), as_json=False)
    limits = {"ks": max_ks, "shift": max_shift, "flips": max_flips, "missing": max_missing}
    past = [text for task, of_task in found.items() for text in _past(task, of_task, limits)]
    if any(limit is not None for limit in limits.values()):
        past += [f"{task}: {name}" for name, tasks in alone.items() for task in tasks]
    if past:
        remark("further than allowed: " + "; ".join(past))
        raise typer.Exit(6)


def _model(job: Job) -> str:
    return job.model_name + (f", sha256 {job.sha256[:12]}" if job.sha256 else "")


def _past(task: str, found: TaskDrift, limits: dict[str, float | None]) -> list[str]:
    """What is past its limit. What could not be computed is: nothing says that it is within."""
    values = {"ks": found.ks, "shift": found.shift.mean, "flips": found.flips, "missing": found.missing}
    return [
        f"{task}: {name} {'unknown' if value is None else f'{value:.4g}'}, limit {limit:g}"
        for name, value in values.items()
        if (limit := limits[name]) is not None and (value is None or abs(value) > limit)
    ]


def _for_people(found: TaskDrift) -> dict[str, Any]:
    return {
        "rows": f"{found.joined} in both, {found.only_old} only in OLD, {found.only_new} only in NEW",
        "scored": f"{found.old_scored} in OLD, {found.new_scored} in NEW, {found.paired} in both",
        "errors": f"{found.became_errors} became errors, {found.became_scores} became scores",
        "left out": f"{found.repeated} repeated, {found.without_hash} without a hash",
        "ks": _number(found.ks),
        "mean shift": _shift(found.shift, "pairs"),
        "of all": _shift(found.shift_of_all, "in the smaller"),
        "largest": _number(found.largest),
        "spearman": _number(found.spearman),
        "rank flips": f"{_number(found.flips)} of all pairs",
        "level flips": f"{_number(found.level_flips)} of the rows in both",
    }


def _shift(shift: Shift, what: str) -> str:
    interval = f"95 % {_number(shift.low)} to {_number(shift.high)}"
    return f"{_number(shift.mean)}, {interval}, n = {shift.count} {what}"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.5g}"
