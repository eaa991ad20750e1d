"""`qalign-fast rank`: pictures, or rows of their scores, in; a ranking out, the best first."""

from __future__ import annotations

import json as jsons
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import numpy as np
import typer

from qalign_fast.cli.console import NoVerify, remark, rows_progress, stdin_bytes
from qalign_fast.cli.rows import read_told
from qalign_fast.records import printable

if TYPE_CHECKING:
    import numpy.typing as npt

    from qalign_fast.analysis.ranking import Place
    from qalign_fast.scorer import Scorer
    from qalign_fast.sources import Source

    Numbers = npt.NDArray[np.float64]


class _Scores(NamedTuple):
    """What a ranking needs: names, scores [n], probabilities [n, levels] if there are any; and what has no score."""

    sources: list[str]
    scores: Numbers
    probabilities: Numbers | None
    failed: list[str]  # each with its error, or a line of how many


def rank(
    paths: Annotated[
        list[str] | None,
        typer.Argument(help="Files, folders, glob patterns, or - for a list on stdin.", show_default=False),
    ] = None,
    rows: Annotated[
        Path | None,
        typer.Option(help="Rank these rows: Parquet, JSON lines, CSV or a job's folder.", show_default=False),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="Default: quality; of rows that have one task, that one.", show_default=False),
    ] = None,
    model: Annotated[str | None, typer.Option(help="As score's.", show_default=False)] = None,
    api_key: Annotated[
        str | None,
        typer.Option(help="Of a server that asks for one.", show_default=False, envvar="QALIGN_API_KEY"),
    ] = None,
    device: Annotated[str, typer.Option(help="As score's: auto, cpu, cuda, mps.")] = "auto",
    engine: Annotated[str, typer.Option(help="As score's.")] = "auto",
    precision: Annotated[str | None, typer.Option(help="Of a checkpoint, as score's.", show_default=False)] = None,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Look into folders below folders.")] = False,
    null: Annotated[
        bool, typer.Option("--null", "-0", help="A null byte ends each name on stdin, as of find -print0.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, max=1024, help="Pictures scored at a time.")] = 16,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Threads that read and resize pictures.")] = 4,
    json: Annotated[bool, typer.Option("--json", help="Print the same as JSON.")] = False,
    no_verify: NoVerify = False,
) -> None:
    """Rank pictures, the best first, with the probability that each is better than the next.

    \b
    qalign-fast rank holiday/ 'frames/*.png'
    qalign-fast rank --rows scores.parquet --task aesthetics --json
    """
    from qalign_fast.analysis.ranking import make_ranking

    if (rows is None) == (not paths):
        raise typer.BadParameter("give pictures, or rows of their scores by --rows", param_hint="--rows")
    if rows is not None:
        if model or precision or recursive or null or (device, engine) != ("auto", "auto"):
            raise typer.BadParameter("rows are not scored again; leave out how pictures are", param_hint="--rows")
        found = _of_rows(rows, task)
    else:
        from qalign_fast.feed.remote.address import is_address
        from qalign_fast.scorer import Scorer
        from qalign_fast.sources import find_sources

        key = (api_key or None) if is_address(model) else None
        with Scorer.load(
            model, device=device, precision=precision, engine=engine, verify=not no_verify, api_key=key
        ) as scorer:
            scorer.require([task or "quality"])
            sources = find_sources(paths or [], stdin_bytes(), recursive=recursive, null=null)
            found = _of_pictures(scorer, sources, task or "quality", batch_size, workers)
    _print(make_ranking(found.sources, found.scores, found.probabilities), as_json=json)
    for failed in found.failed:
        remark(f"not ranked: {failed}")
    if found.failed and rows is None:
        raise typer.Exit(3)


def _of_rows(path: Path, task: str | None) -> _Scores:
    """Rows that have a score. Raises RowsError, TaskError."""
    from qalign_fast.analysis.rows import KEY

    rows = read_told(path, ["probabilities", KEY])
    of_task = rows.in_task(rows.one_task(task))
    places = np.flatnonzero(of_task & rows.scored)
    probabilities = rows.numbers.get("probabilities")
    names = [name or "(none)" for name in rows.texts["source"].take(places)]
    errors = int(of_task.sum()) - len(places)
    failed = [f"{errors} row{'' if errors == 1 else 's'} without a score"] if errors else []
    return _Scores(names, rows.score[places], None if probabilities is None else probabilities[places], failed)


def _of_pictures(scorer: Scorer, sources: Iterable[Source], task: str, batch_size: int, workers: int) -> _Scores:
    from qalign_fast.feed.items import ClipOptions
    from qalign_fast.records import make_rows
    from qalign_fast.sources import to_items

    names, scores, probabilities, failed = [], [], [], []
    items = to_items(sources, ClipOptions())
    with rows_progress() as seen:
        for row in make_rows(scorer.feed.run(items, (task,), batch_size=batch_size, workers=workers), (task,)):
            seen(row)
            if row["error"] is None:
                names.append(row["source"])
                scores.append(row["score"])
                probabilities.append(list(row["probabilities"].values()))
            else:
                failed.append(row["error"])
    return _Scores(
        names, np.array(scores, np.float64), np.array(probabilities, np.float64) if probabilities else None, failed
    )


def _print(ranking: list[Place], *, as_json: bool) -> None:
    if as_json:
        print(jsons.dumps([vars(place) for place in ranking], indent=2))
        return
    from qalign_fast.analysis.ranking import DIGITS

    print("rank  score   better than the next  source")
    for place in ranking:
        better = "" if place.better_than_next is None else f"{place.better_than_next:.3f}"
        tied = f"  ({place.tied} tie)" if place.tied > 1 else ""
        print(
            f"{place.rank:4}  {np.round(place.score, DIGITS):.{DIGITS}f}  {better:>20}  {printable(place.source)}{tied}"
        )
