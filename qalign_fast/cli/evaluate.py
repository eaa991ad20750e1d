"""`qalign-fast evaluate`: labelled lists and a model in; agreement by a protocol, beside published figures, out."""

from __future__ import annotations

import json as json_text
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qalign_fast.cli.console import Base, Model, NoVerify, print_facts, remark
from qalign_fast.errors import OptionError
from qalign_fast.feed.remote.address import is_address

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qalign_fast.analysis.paired import LabelledChange
    from qalign_fast.analysis.resampling import Interval
    from qalign_fast.evaluation.evaluation import Evaluation
    from qalign_fast.evaluation.lists.entries import LabelList
    from qalign_fast.evaluation.plots import Plots
    from qalign_fast.evaluation.predictions import Predictions
    from qalign_fast.evaluation.protocols import Protocol
    from qalign_fast.jobs.options import RunOptions

    Result = tuple[Evaluation, LabelledChange | None, Plots]

ProtocolName = StrEnum("ProtocolName", ["qalign", "deqa", "pyiqa", "fastvqa"])
Medium = StrEnum("Medium", ["image", "video"])


@dataclass(frozen=True)
class _Wishes:
    """What holds for every list."""

    protocol: Protocol
    task: str | None
    roots: tuple[str, ...]
    rows: tuple[Path, ...]
    members: tuple[str, ...]
    against: Path | None
    published: str
    retry: bool
    force: bool
    run: RunOptions


def evaluate(
    lists: Annotated[
        list[Path],
        typer.Argument(help="Labelled lists, or the label files of data sets' archives.", show_default=False),
    ],
    root: Annotated[
        list[str] | None,
        typer.Option(
            help="The folder that the lists' names start from; repeat it for one of each.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="The folder for results, and for scores that can be resumed.", show_default=False
        ),
    ] = None,
    protocol: Annotated[ProtocolName, typer.Option(help="Whose correlations and errors.")] = ProtocolName.qalign,
    task: Annotated[
        str | None, typer.Option(help="Default: the one that the protocol asks for.", show_default=False)
    ] = None,
    model: Model = None,
    base: Base = None,
    rows: Annotated[
        list[Path] | None,
        typer.Option(
            help="Scores that are there already, one file for each list: rows of score or run, or another project's "
            "result file. Nothing is scored then.",
            show_default=False,
        ),
    ] = None,
    ensemble: Annotated[
        list[str] | None,
        typer.Option(
            help="Scores of another run, for the mean of z-scores with it; repeat it. TASK=ROWS takes one task's.",
            show_default=False,
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(help="Scores of another run on the list: what changed, picture by picture.", show_default=False),
    ] = None,
    published: Annotated[
        str, typer.Option(help="Compare with the figures that were published of this model.", show_default=False)
    ] = "",
    lower_better: Annotated[
        bool | None,
        typer.Option(
            "--lower-better/--higher-better", help="The labels' direction. Default: the list's own.", show_default=False
        ),
    ] = None,
    medium: Annotated[
        Medium | None, typer.Option(help="What the names are of. Default: by their suffixes.", show_default=False)
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="The column of the labels, where there are several.", show_default=False)
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="The part of a table to take: test, all, or COLUMN=VALUE.", show_default=False)
    ] = None,
    draws: Annotated[int, typer.Option(min=100, max=100_000, help="Of the bootstrap.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    retry: Annotated[
        bool, typer.Option("--retry", help="Also score again what was unavailable or quarantined.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Score anew: scores that are in --out are removed.")] = False,
    device: Annotated[
        list[str] | None, typer.Option(help="As run's; repeat it for several.", show_default=False)
    ] = None,
    engine: Annotated[str, typer.Option(help="As score's.")] = "auto",
    precision: Annotated[str | None, typer.Option(help="As score's.", show_default=False)] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="As score's.", show_default=False)] = None,
    batch_size: Annotated[int, typer.Option(min=1, max=1024, help="Pictures scored at a time.")] = 16,
    workers: Annotated[
        int | None, typer.Option(min=1, max=256, help="As run's: processes that decode.", show_default=False)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
    no_verify: NoVerify = False,
) -> None:
    """Say how well scores agree with people's: SRCC, PLCC and more, with intervals, beside published figures.

    \b
    qalign-fast evaluate test_koniq.json --root playground/data --model one-align-int8 --out koniq/
    qalign-fast evaluate test_koniq.json --rows int8.parquet --against fp16.parquet
    qalign-fast evaluate test_lsvq.json --rows lsvq.parquet --ensemble fastvqa.txt --protocol fastvqa
    """
    from qalign_fast.evaluation.evaluation import Resampling, check_published
    from qalign_fast.evaluation.lists.read import read_list
    from qalign_fast.evaluation.protocols import find_protocol
    from qalign_fast.jobs.options import RunOptions

    if is_address(model):
        raise OptionError("an evaluation runs its own engine; score with the server first, and give the rows")
    _check_wishes(lists, root or [], rows or [], scoring=model is not None or base is not None or retry or force)
    check_published(published)
    found = [
        read_list(path, lower_better=lower_better, medium=medium and medium.value, column=column, split=split)
        for path in lists
    ]
    devices, verify = tuple(device or ["auto"]), not no_verify
    how = RunOptions(model, devices, precision, engine, threads, verify, batch_size, workers, base=base)
    wishes = _Wishes(
        find_protocol(protocol.value),
        task,
        tuple(root or ()),
        tuple(rows or ()),
        tuple(ensemble or ()),
        against,
        published,
        retry,
        force,
        how,
    )
    results = _evaluate(found, out, wishes, Resampling(draws, seed))
    _tell(results, as_json=json)
    if out is not None:
        _write_all(results, out)
    if any(evaluation.failed for evaluation, *_ in results):
        raise typer.Exit(3)


def _check_wishes(lists: Sequence[Path], roots: Sequence[str], rows: Sequence[Path], *, scoring: bool) -> None:
    """One root serves all lists; otherwise, as for rows, there is one for each. With rows nothing is scored."""
    if len(rows) not in (0, len(lists)):
        raise typer.BadParameter(f"{len(rows)} given for {len(lists)} lists; give one for each", param_hint="--rows")
    if len(roots) not in (0, 1, len(lists)):
        raise typer.BadParameter(
            f"{len(roots)} given for {len(lists)} lists; give one, or one for each", param_hint="--root"
        )
    if rows and scoring:
        raise typer.BadParameter(
            "nothing is scored with --rows; leave out --model, --base, --retry and --force", param_hint="--rows"
        )
    if not roots and not rows:
        raise typer.BadParameter("give the folder that the lists' names start from, or --rows", param_hint="--root")


def _evaluate(lists: Sequence[LabelList], out: Path | None, wishes: _Wishes, resampling: Any) -> list[Result]:
    """Each list's figures; each is written as soon as it is there. Plots are drawn where they are written."""
    from qalign_fast.evaluation import evaluation as figures
    from qalign_fast.evaluation.outputs import write_evaluation
    from qalign_fast.evaluation.plots import draw_plots
    from qalign_fast.evaluation.predictions import ensemble, read_predictions
    from qalign_fast.evaluation.scoring import folder_names

    results = []
    with _folder(out) as place:
        names = folder_names([labels.name for labels in lists])
        for i, labels in enumerate(lists):
            folder = place if len(lists) == 1 else place / names[i]
            root = wishes.roots[min(i, len(wishes.roots) - 1)] if wishes.roots else None
            if wishes.rows:
                run = read_predictions(wishes.rows[i], labels, task=wishes.task, root=root)
            else:
                run = _score(labels, str(root), folder, wishes, kept=out is not None)
            if wishes.members:
                run = ensemble([run, *(_member(member, labels, root) for member in wishes.members)])
            found = figures.evaluate(labels, run, wishes.protocol, resampling, wishes.published)
            change = None
            if wishes.against is not None:
                other = read_predictions(wishes.against, labels, task=run.task, root=root)
                change = figures.against(found, other)
            plots: Plots = {}
            if out is not None:
                plots = draw_plots(found)
                write_evaluation(found, plots, folder, change)
            results.append((found, change, plots))
    return results


@contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    """The folder for scores; one that is removed at the end, if the user named none."""
    if out is not None:
        yield out
        return
    with TemporaryDirectory(prefix="qalign-evaluate-") as folder:
        yield Path(folder)


def _score(labels: LabelList, root: str, folder: Path, wishes: _Wishes, *, kept: bool) -> Predictions:
    from qalign_fast.evaluation.predictions import read_predictions
    from qalign_fast.evaluation.scoring import choose_task, score_list
    from qalign_fast.identity import tasks_of
    from qalign_fast.jobs.progress import Progress

    task, told = choose_task(wishes.task, wishes.protocol, labels, tasks_of(wishes.run.model, wishes.run.base))
    if told:
        remark(told)
    progress = Progress()
    with progress.hearing():
        again = {"retry": wishes.retry, "force": wishes.force}
        outcome = score_list(labels, root, task, folder, wishes.run, watcher=progress, **again)
    if not outcome.complete:
        remark("ended early; " + ("the same command goes on" if kept else "with --out the same command would go on"))
        raise typer.Exit(130)
    return read_predictions(folder / "scores", labels, task=task, root=root)


def _member(member: str, labels: LabelList, root: str | None) -> Predictions:
    """The scores of ROWS or of TASK=ROWS."""
    from qalign_fast.evaluation.predictions import read_predictions

    task, sign, path = member.partition("=")
    if not sign or Path(member).exists():
        return read_predictions(Path(member), labels, root=root)
    return read_predictions(Path(path), labels, task=task, root=root)


def _write_all(results: Sequence[Result], out: Path) -> None:
    """What is about all lists: a page, a table in markdown where there are several, and a CSV in pyiqa's form."""
    from qalign_fast.evaluation.outputs import to_markdown, to_pyiqa, write_files
    from qalign_fast.evaluation.page import make_page
    from qalign_fast.records import in_utf8

    evaluations = [evaluation for evaluation, *_ in results]
    names = dict.fromkeys(each.predictions.model_name for each in evaluations)
    page = "".join(make_page(results, f"Evaluation of {', '.join(names)}"))
    files = {"report.html": page.encode(), "pyiqa.csv": in_utf8(to_pyiqa(evaluations)).encode()}
    if len(results) > 1:
        files["results.md"] = in_utf8(to_markdown(evaluations)).encode()
    write_files(out, files)
    remark(f"{out}: report.html and more")


def _tell(results: Sequence[Result], *, as_json: bool) -> None:
    from qalign_fast.evaluation.outputs import result_json

    if as_json:
        found = [result_json(evaluation, change) for evaluation, change, _ in results]
        print(json_text.dumps(found[0] if len(found) == 1 else found, indent=1))
        return
    for number, (evaluation, change, _) in enumerate(results):
        if number:
            print()
        print_facts(_facts(evaluation), as_json=False)
        if change is not None:
            print()
            print_facts(_moved(change), as_json=False)


def _facts(found: Evaluation) -> dict[str, str]:
    labels, run, agreement = found.labels, found.predictions, found.agreement
    known = (
        f"{labels.known.title}, recognized" if labels.known else f"{labels.name}, not a list that is known by its hash"
    )
    mapped = "" if agreement.correlated == "raw" else f", {agreement.correlated}"
    its = found.published[0] if found.published else None
    facts = {
        "list": f"{known}; sha256 {labels.sha256[:12]}",
        "labels": "lower is better" if labels.lower_better else "higher is better",
        "model": run.model_name,
        "protocol": f"{found.protocol.name}: {found.protocol.described}",
        "prompt": run.task or "unknown",
        "n": f"{found.expected} expected, {found.expected - found.failed} scored, {found.failed} failed",
        "SRCC": f"{_interval(found.srcc)}{mapped}" + (f"; published {its.srcc:.3f}" if its else ""),
        "PLCC": f"{_interval(found.plcc)}{mapped}" + (f"; published {its.plcc:.3f}" if its else ""),
        "KRCC": _number(agreement.krcc),
        "RMSE": f"raw {_number(agreement.rmse_raw)}, linear {_number(agreement.rmse_linear)}, "
        f"{agreement.mapping.name if agreement.mapping else 'mapped'} {_number(agreement.rmse_logistic4)}",
    }
    if found.in_domain is not None:
        facts["data set"] = "the model was trained on it" if found.in_domain else "the model was not trained on it"
    if its:
        facts["published"] = f"{its.model}, protocol {its.protocol}: {its.source}"
        facts["reproduced"] = "yes" if found.reproduced else "no: " + "; ".join(found.differences)
    if found.notes:
        facts["notes"] = "; ".join(found.notes)
    return facts


def _moved(change: LabelledChange) -> dict[str, str]:
    moved = change.change
    return {
        "pairs": f"{moved.pairs} entries have a score in both",
        "mean change": _interval(moved.mean),
        "absolute": f"mean {_number(moved.mean_absolute)}, largest {_number(moved.largest)}",
        "rank flips": _share(moved.rank_flips, "all pairs"),
        "level flips": _share(moved.level_flips, "the entries"),
        "SRCC between": _interval(moved.srcc),
        "SRCC change": _interval(change.srcc),
        "PLCC change": _interval(change.plcc),
    }


def _interval(found: Interval) -> str:
    ends = "" if found.low is None else f", 95 % {found.low:.4f} to {found.high:.4f}"
    return f"{_number(found.value)}{ends}"


def _share(value: float | None, whole: str) -> str:
    return "unknown" if value is None else f"{_number(value)} of {whole}"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"
