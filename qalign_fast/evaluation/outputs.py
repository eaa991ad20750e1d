"""Evaluations in, files out: result.json, rows.parquet, a table in markdown, and a CSV that pyiqa's benchmark takes."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from html import escape
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qalign_fast.errors import QAlignError
from qalign_fast.evaluation.evaluation import Evaluation, ends_of
from qalign_fast.evaluation.plots import Plots, residuals_of
from qalign_fast.jobs.packages import pa, pq
from qalign_fast.jobs.safe_files import write_whole
from qalign_fast.levels import LEVELS
from qalign_fast.records import JOB_METADATA, in_utf8, printable

if TYPE_CHECKING:
    from qalign_fast.analysis.paired import LabelledChange
    from qalign_fast.analysis.resampling import Interval

# our lists' names -> pyiqa's, in its table of results
_PYIQA = {
    "koniq-test": "koniq10k",
    "livec": "livec",
    "spaq-test": "spaq",
    "kadid-test": "kadid10k",
    "csiq": "csiq",
    "live": "live",
    "agiqa3k": "agiqa3k",
    "ava-test": "ava",
}
_HEAD = (
    "list",
    "n expected / scored / failed",
    "protocol",
    "SRCC",
    "PLCC",
    "KRCC",
    "published SRCC/PLCC",
    "reproduced",
)


def write_evaluation(evaluation: Evaluation, plots: Plots, folder: Path, change: LabelledChange | None = None) -> None:
    """Writes result.json, rows.parquet, result.md and the plots into a folder, which is made if it is not there.

    Raises QAlignError where they cannot be written.
    """
    files = {"rows.parquet": _rows(evaluation), "result.md": in_utf8(to_markdown([evaluation])).encode()}
    files |= {f"{name}.png": png for name, png in plots.items()}
    result = json.dumps(result_json(evaluation, change), indent=1) + "\n"
    write_files(folder, files | {"result.json": result.encode()})  # the last: where it is, all is


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    """Writes each file whole or not at all, in place of one that is there. Raises QAlignError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_whole(folder / name, partial(_write, content))
    except OSError as error:
        raise QAlignError(f"{error.filename or folder}: {error.strerror or error}") from error


def _write(content: bytes, aside: Path) -> None:
    aside.write_bytes(content)


def result_json(evaluation: Evaluation, change: LabelledChange | None = None) -> dict[str, Any]:
    """All figures; with a comparison, what is in `against`."""
    found = evaluation.to_json()
    if change is not None:
        found["against"] = change_json(change)
    return found


def change_json(change: LabelledChange) -> dict[str, Any]:
    """A paired comparison as plain values, intervals as pairs."""
    moved = change.change
    plain = {name: value for name, value in asdict(moved).items() if not isinstance(value, dict)}
    of_labels = {"srcc_change": change.srcc, "plcc_change": change.plcc}
    for name, interval in ({"mean": moved.mean, "srcc": moved.srcc, "plcc": moved.plcc} | of_labels).items():
        plain |= {name: interval.value, f"{name}_interval": ends_of(interval)}
    return plain


def to_markdown(evaluations: Sequence[Evaluation]) -> str:
    """A table of all evaluations. Each figure says its protocol, its n and, where there is one, what was published."""
    lines = [f"| {' | '.join(_HEAD)} |", "|---" * len(_HEAD) + "|"]
    for each in evaluations:
        title = each.labels.known.title if each.labels.known else each.labels.name
        counts = f"{each.expected} / {each.expected - each.failed} / {each.failed}"
        protocol = f"{each.protocol.name}, {each.agreement.correlated}, {each.predictions.task or 'unknown prompt'}"
        its = each.published[0] if each.published else None
        published = f"{its.srcc:.3f}/{its.plcc:.3f} ({its.model}; {its.source})" if its else "-"
        cells = [title, counts, protocol, _with_interval(each.srcc), _with_interval(each.plcc)]
        cells += [_figure(each.agreement.krcc), published, "yes" if each.reproduced else "no"]
        lines.append(f"| {' | '.join(escape(printable(cell), quote=False).replace('|', '&#124;') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def to_pyiqa(evaluations: Sequence[Evaluation]) -> str:
    """A row for each model and a column for each list, as in pyiqa's table: PLCC/SRCC/KRCC, absolute, 4 digits.

    Lists of one name that are other lists have a column each, and a number with the name.
    """
    lists = list(dict.fromkeys((each.labels.name, each.labels.sha256) for each in evaluations))
    names = dict(zip(lists, numbered([_PYIQA.get(name, name) for name, _ in lists]), strict=True))
    rows: dict[str, dict[tuple[str, str], str]] = {}
    for each in evaluations:
        figures = (each.agreement.plcc, each.agreement.srcc, each.agreement.krcc)
        cell = "/".join("" if value is None else str(abs(round(value, 4))) for value in figures)
        rows.setdefault(each.predictions.model_name, {})[each.labels.name, each.labels.sha256] = cell
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["Metric name", *(f"{name}(PLCC/SRCC/KRCC)" for name in names.values())])
    for model, cells in rows.items():
        writer.writerow([model, *(cells.get(each, "") for each in lists)])
    return out.getvalue()


def numbered(names: Sequence[str]) -> list[str]:
    """The names, with a number behind one that is there before it."""
    found: list[str] = []
    for name in names:
        more = (f"{name}-{number}" for number in count(2))
        found.append(next(each for each in chain([name], more) if each not in found))
    return found


def _rows(evaluation: Evaluation) -> bytes:
    """A row for each entry of the list, in its order."""
    labels, run, has = evaluation.labels, evaluation.predictions, evaluation.scored
    residuals = np.full(len(has), np.nan)
    residuals[has] = residuals_of(evaluation)
    table = pa.table(
        {
            "source": [in_utf8(entry.name) for entry in labels.entries],
            "unit": [in_utf8(entry.unit) for entry in labels.entries],
            "label": evaluation.targets,
            "task": pa.array([run.task] * len(has), pa.string()),
            "score": pa.array(run.scores, mask=~has),
            "level": [None if place < 0 else LEVELS[place] for place in run.levels.tolist()],
            "residual": pa.array(residuals, mask=~np.isfinite(residuals)),
            "error": pa.array(run.errors, pa.string()),
        }
    )
    if run.scale is not None:  # as a job's files say it, so that these rows are read like its
        about = {"model": dict(run.model), "scale": run.scale}
        table = table.replace_schema_metadata({JOB_METADATA: json.dumps(about).encode()})
    data = pa.BufferOutputStream()
    pq.write_table(table, data, compression="zstd")
    content: bytes = data.getvalue().to_pybytes()
    return content


def _with_interval(found: Interval) -> str:
    ends = ends_of(found)
    return _figure(found.value) + (f" ({ends[0]:.4f} to {ends[1]:.4f})" if ends else "")


def _figure(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"
