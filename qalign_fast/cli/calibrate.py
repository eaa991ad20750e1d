"""`qalign-fast calibrate`: rows of many pictures in; a file that gives later scores their percentile out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qalign_fast.cli.console import print_facts
from qalign_fast.cli.output import Format, check_apart, choose_mode, write_output
from qalign_fast.cli.rows import read_told


def calibrate(
    rows: Annotated[Path, typer.Argument(help="Rows: Parquet, JSON lines, CSV or a job's folder.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="The calibration, a JSON file.", show_default=False)],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that is there.")] = False,
    model: Annotated[
        str | None,
        typer.Option(help="What gave the scores, as score's --model, where rows do not say it.", show_default=False),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")] = False,
) -> None:
    """Make a map from scores to percentiles of your own pictures, for `score --calibration`.

    \b
    qalign-fast calibrate job/ -o mine.json
    qalign-fast calibrate rows.jsonl --model path/to/artifact -o mine.json
    qalign-fast score new.jpg --model path/to/artifact --calibration mine.json
    """
    from qalign_fast.analysis.calibration import calibrate as make
    from qalign_fast.analysis.calibration import model_identity
    from qalign_fast.analysis.rows import find_files

    choose_mode(output, Format.table, overwrite=overwrite, append=False)
    check_apart(output, find_files(rows))
    found = make(read_told(rows), None if model is None else model_identity(model))
    write_output(output, found.to_json())
    named = f"{found.model.get('name', '?')}, sha256 {found.model['sha256']}"
    tasks = {
        task: {"count": of.count, "mean": of.mean, "std": of.std, "quantiles": len(of.quantiles)}
        for task, of in found.tasks.items()
    }
    print_facts({"model": named, **tasks}, as_json=json)
