"""`qalign-fast threshold`: rows and a wish in; the score that decides, and the list of what is kept, out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qalign_fast.cli.console import print_facts, remark
from qalign_fast.cli.output import Format, check_apart, choose_mode, open_output, write_output
from qalign_fast.cli.rows import read_told
from qalign_fast.errors import OptionError

if TYPE_CHECKING:
    from qalign_fast.analysis.threshold import Threshold


class ScaleName(StrEnum):
    """The scale of a score that the user writes."""

    score = "1..5"
    unit = "0..1"


def threshold(
    rows: Annotated[Path, typer.Argument(help="Rows: Parquet, JSON lines, CSV or a job's folder.", show_default=False)],
    keep: Annotated[
        str | None, typer.Option(help="Keep this share of the rows that have a score, such as 30%.", show_default=False)
    ] = None,
    min: Annotated[
        str | None, typer.Option("--min", help="Keep rows of this score or a higher one.", show_default=False)
    ] = None,
    scale: Annotated[
        ScaleName | None, typer.Option(help="The scale of --min. Default: 1..5.", show_default=False)
    ] = None,
    task: Annotated[str | None, typer.Option(help="Which task, where rows have several.", show_default=False)] = None,
    group: Annotated[
        str | None,
        typer.Option(help="Take --keep within each value of this column, or within each `folder`.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the kept rows: .txt, .jsonl or .csv.", show_default=False),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that is there.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="Print the kept names on stdout, the facts on stderr.")] = False,
    null: Annotated[bool, typer.Option("--null", "-0", help="A null byte ends each name, as of find -print0.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")] = False,
) -> None:
    """Find the score that keeps a share of the rows, or say how many a score keeps; and list them.

    \b
    qalign-fast threshold rows.parquet --keep 30% -o kept.txt
    qalign-fast threshold rows.jsonl --min 0.55 --scale 0..1 --json
    qalign-fast threshold job/ --keep 10% --group folder --list -0 | xargs -0 cp -t best/
    """
    from qalign_fast.analysis.kept import KeptKind, kind_of, write_kept
    from qalign_fast.analysis.rows import KEY, find_files
    from qalign_fast.analysis.scales import from_unit, score_from, share_from
    from qalign_fast.analysis.threshold import find_threshold

    if (keep is None) == (min is None):
        raise typer.BadParameter("give one of the two: --keep 30% or --min 3.2", param_hint="--keep")
    if list_ and json:
        raise typer.BadParameter("stdout holds the list or the facts; give one of the two", param_hint="--list")
    if scale and min is None:
        raise typer.BadParameter("it is of --min; a share is the same on both scales", param_hint="--scale")
    if overwrite and output is None:
        raise typer.BadParameter("there is no --output", param_hint="--overwrite")
    with _as_option("--output"):
        kind = None if output is None else kind_of(output)
    if null and not (list_ or kind == KeptKind.txt):
        raise typer.BadParameter("it is of a list of names: --list, or an --output that ends in .txt", param_hint="-0")
    with _as_option("--keep"):
        share = None if keep is None else share_from(keep)
    choose_mode(output, Format.table, overwrite=overwrite, append=False)
    check_apart(output, find_files(rows))
    found = read_told(rows, [KEY, *([group] if group else [])])
    chosen = found.one_task(task)
    read = from_unit if scale == ScaleName.unit else score_from
    with _as_option("--min"):
        wish = share if share is not None else read(str(min), found.job.scale)
    cut = find_threshold(found, chosen, wish, group)
    if kind and output:
        write_kept(found, cut.kept, kind, out := StringIO(), null=null)
        write_output(output, out.getvalue())
    if list_:
        with open_output(None, Format.jsonl, "w") as stdout:
            write_kept(found, cut.kept, KeptKind.txt, stdout, null=null)
    facts = _facts(cut, chosen, group)
    if list_:
        remark(f"kept {facts['kept']} of {facts['scored']} with a score; {facts['errors']} without")
    elif json or group is None:
        print_facts(facts if json else {"task": chosen} | _lines(facts), as_json=json)
    else:
        _print_groups(facts)


@contextmanager
def _as_option(name: str) -> Iterator[None]:
    """What an option holds is wrong: exit code 2, as of all of them."""
    try:
        yield
    except OptionError as error:
        raise typer.BadParameter(str(error), param_hint=name) from error


def _facts(found: Threshold, task: str, group: str | None) -> dict[str, Any]:
    kept, scored, errors = found.total
    facts: dict[str, Any] = {"task": task, "kept": kept, "scored": scored, "errors": errors}
    cuts = [
        {
            **({} if group is None else {"group": name}),
            "score": cut.value,
            "score01": cut.unit,
            "kept": cut.kept,
            "scored": cut.scored,
            "asked": cut.asked,
            "tied": cut.tied,
            "more_by_ties": cut.more_by_ties,
            "errors": cut.errors,
        }
        for name, cut in found.cuts.items()
    ]
    return facts | (cuts[0] if group is None else {"by": group, "groups": cuts})


def _print_groups(facts: dict[str, Any]) -> None:
    total = f"{facts['kept']} of {facts['scored']} with a score"
    errors = f"{facts['errors']}, never kept"
    print_facts({"task": facts["task"], "kept": total, "errors": errors, "by": facts["by"]}, as_json=False)
    for cut in facts["groups"]:
        print()
        print_facts({"group": "(none)" if cut["group"] is None else cut["group"]} | _lines(cut), as_json=False)


def _lines(cut: dict[str, Any]) -> dict[str, str]:
    """Scores with all their digits, and what the numbers mean."""
    value = "none" if cut["score"] is None else f"{cut['score']!r}, on 0..1 {cut['score01']!r}"
    ties = f"{cut['tied']} with exactly this score"
    if cut["more_by_ties"]:
        ties += f"; {cut['more_by_ties']} more than the {cut['asked']} asked for are kept"
    kept = f"{cut['kept']} of {cut['scored']} with a score"
    return {"score": value, "kept": kept, "ties": ties, "errors": f"{cut['errors']}, never kept"}
