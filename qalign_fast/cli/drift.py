"""`qalign-fast drift`: the rows of two runs in; how far scores have moved, out."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qalign_fast.cli.console import print_facts, remark

if TYPE_CHECKING:
    from qalign_fast.analysis.drift import TaskDrift
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
    json: Annotated[bool, typer.Option("--json", help="Print the same as JSON.")] = False,
) -> None:
    """Say how far scores moved from one run to another: distribution, mean, order, levels, errors.

    \b
    qalign-fast drift old/ new/
    qalign-fast drift old.parquet new.parquet --by sha256 --max-ks 0.02 --max-shift 0.05 --max-flips 0.01
    """
    from qalign_fast.analysis.drift import find_drift
    from qalign_fast.analysis.rows import KEY, read_rows

    wanted = ["level", KEY, *(["sha256"] if by == JoinBy.sha256 else [])]
    before, after = read_rows(old, wanted), read_rows(new, wanted)
    found = find_drift(before, after, "sha256" if by == JoinBy.sha256 else "source")
    models = {"old model": before.job.model_name, "new model": after.job.model_name}
    if json:
        print_facts(models | {"by": by.value, "tasks": {t: asdict(d) for t, d in found.items()}}, as_json=True)
    else:
        print_facts(models | {"joined by": by.value}, as_json=False)
        for task, of_task in found.items():
            print()
            print_facts({"task": task} | _for_people(of_task), as_json=False)
    limits = {"ks": max_ks, "shift": max_shift, "flips": max_flips}
    if past := [text for task, of_task in found.items() for text in _past(task, of_task, limits)]:
        remark("further than allowed: " + "; ".join(past))
        raise typer.Exit(6)


def _past(task: str, found: TaskDrift, limits: dict[str, float | None]) -> list[str]:
    """What is past its limit. What could not be computed is: nothing says that it is within."""
    values = {"ks": found.ks, "shift": found.shift.mean, "flips": found.flips}
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
