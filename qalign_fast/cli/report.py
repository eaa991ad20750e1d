"""`qalign-fast report`: rows in, a page for a browser or for paper out."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from qalign_fast.cli.console import remark
from qalign_fast.cli.output import Format, check_apart, choose_mode, write_output
from qalign_fast.cli.rows import read_told


def report(
    rows: Annotated[Path, typer.Argument(help="Rows: Parquet, JSON lines, CSV or a job's folder.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page, an HTML file.", show_default=False)],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that is there.")] = False,
    by: Annotated[str, typer.Option(help="Group by this column, or by `folder`.")] = "folder",
    top: Annotated[int, typer.Option(min=1, max=1000, help="How many of the best, the worst, the slowest.")] = 12,
    title: Annotated[str | None, typer.Option(help="Default: the rows' name.", show_default=False)] = None,
    thumbnails: Annotated[
        bool, typer.Option("--thumbnails", help="Show the best and the worst, from their files.")
    ] = False,
) -> None:
    """Make one page of the rows: distributions, the best and the worst, groups, errors, the slowest.

    \b
    qalign-fast report job/ -o report.html
    qalign-fast report scores.jsonl -o report.html --by camera --thumbnails
    """
    from qalign_fast.analysis.job import job_beside
    from qalign_fast.analysis.page import PageOptions, make_page
    from qalign_fast.analysis.rows import find_files
    from qalign_fast.analysis.summary import WANTED
    from qalign_fast.analysis.thumbnails import make_thumbnail

    choose_mode(output, Format.table, overwrite=overwrite, append=False)
    check_apart(output, find_files(rows))
    found = read_told(rows, [*WANTED, by])
    small = partial(make_thumbnail, folder=job_beside(rows if rows.is_dir() else rows.parent).folder)
    options = PageOptions(by=by, top=top, title=title, thumbnail=small if thumbnails else None)
    page = "".join(make_page(found, options))
    write_output(output, page)
    remark(f"{output}: {len(page.encode()) / 1e6:.1f} MB, {len(found)} rows")
