"""Evaluations in, one page of HTML out: figures with intervals, what was published, plots, and comparisons."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from qalign_fast.analysis import markup
from qalign_fast.analysis.page_style import STYLE
from qalign_fast.evaluation.evaluation import Evaluation, ends_of
from qalign_fast.evaluation.plots import Plots

if TYPE_CHECKING:
    from qalign_fast.analysis.paired import LabelledChange
    from qalign_fast.analysis.resampling import Interval

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_PLOTS = {
    "scatter": "Predicted against labelled, with the fitted curve",
    "residuals": "Residuals of the fitted curve by source unit",
    "levels": "Mean absolute error by the level of the label",
}
_MORE = """
img.plot { width: 100%; height: auto; border-radius: 6px; background: #fff; }
td.wrap, th.wrap { white-space: normal; text-align: left; }
.plots { grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); }
ul.notes { padding-left: 1.2rem; font-size: 0.875rem; color: var(--muted); }
"""


def make_page(evaluations: Sequence[tuple[Evaluation, LabelledChange | None, Plots]], title: str) -> Iterator[str]:
    """The page, piece by piece. The same evaluations give the same bytes."""
    yield (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{markup.text(title)}</title>\n<style>\n{STYLE}{_MORE}</style>\n</head>\n<body>\n"
        f'<h1>{markup.text(title)}</h1>\n<p class="sub">95 % intervals are over source units. '
        "Lists are never pooled.</p>\n"
    )
    if len(evaluations) > 1:
        yield _overview([evaluation for evaluation, *_ in evaluations])
    for evaluation, change, plots in evaluations:
        yield from _section(evaluation, change, plots)
    yield "</body>\n</html>\n"


def _overview(evaluations: Sequence[Evaluation]) -> str:
    head = [("list", "name"), ("n", ""), ("SRCC", ""), ("PLCC", ""), ("published", ""), ("reproduced", "")]
    rows = []
    for each in evaluations:
        its = each.published[0] if each.published else None
        published = f"{its.srcc:.3f} / {its.plcc:.3f}" if its else "-"
        figures = [_figure(each.srcc.value), _figure(each.plcc.value)]
        scored = markup.count(each.expected - each.failed)
        rows.append([markup.name(_name(each)), scored, *figures, published, "yes" if each.reproduced else "no"])
    return f'<section class="card"><div class="scroll">{markup.table(head, rows, "All lists")}</div></section>\n'


def _section(evaluation: Evaluation, change: LabelledChange | None, plots: Plots) -> Iterator[str]:
    run, protocol = evaluation.predictions, evaluation.protocol
    yield f"<h2>{markup.text(_name(evaluation))}</h2>\n"
    asked = f"prompt {run.task}" if run.task else "the prompt is not known"
    direction = "lower labels are better" if evaluation.labels.lower_better else "higher labels are better"
    facts = f"Model: {run.model_name}. Protocol {protocol.name}: {protocol.described}; {asked}; {direction}."
    facts += {True: " The model was trained on this data set.", False: " The model was not trained on it.", None: ""}[
        evaluation.in_domain
    ]
    digest = f"List: {evaluation.labels.path.name}, sha256 {evaluation.labels.sha256[:16]}."
    yield f'<p class="sub">{markup.text(facts)}<br>{markup.text(digest)}</p>\n'
    yield f'<div class="grid">{_card("Agreement", _agreement(evaluation))}'
    yield f"{_card('Beside what was published', _published(evaluation))}</div>\n"
    if evaluation.notes:
        notes = "".join(f"<li>{markup.text(note)}</li>" for note in evaluation.notes)
        yield _card("To be known", f'<ul class="notes">{notes}</ul>')
    yield '<div class="grid plots">'
    for name, png in plots.items():
        uri = b64encode(png).decode()
        yield _card(_PLOTS[name], f'<img class="plot" alt="{_PLOTS[name]}" src="data:image/png;base64,{uri}">')
    yield "</div>\n"
    if change is not None:
        yield _card("Against the other run, picture by picture", _change(change))


def _agreement(evaluation: Evaluation) -> str:
    found, failed = evaluation.agreement, evaluation.failed
    counts = f"{evaluation.expected} expected, {evaluation.expected - failed} scored, {failed} failed"
    rows = [
        ("n", counts),
        (f"SRCC, {found.correlated}", _with_interval(evaluation.srcc)),
        (f"PLCC, {found.correlated}", _with_interval(evaluation.plcc)),
        ("KRCC", _figure(found.krcc)),
        ("RMSE, raw", _figure(found.rmse_raw)),
        ("RMSE, linear", _figure(found.rmse_linear)),
        (f"RMSE, {found.mapping.name if found.mapping else 'mapped'}", _figure(found.rmse_logistic4)),
        ("source units", markup.count(evaluation.srcc.units)),
    ]
    return markup.table([("figure", "narrow-name"), ("value", "")], rows, "Agreement with labels")


def _published(evaluation: Evaluation) -> str:
    if not evaluation.published:
        return '<p class="note">Nothing was published of this list, as far as is known here.</p>'
    rows = [
        (
            f"{markup.text(each.model)}<br><small>{markup.text(each.source)}</small>",
            *(each.protocol, f"{each.srcc:.3f}", f"{each.plcc:.3f}"),
        )
        for each in evaluation.published
    ]
    head = [("model, and source", "wrap"), ("protocol", ""), ("SRCC", ""), ("PLCC", "")]
    verdict = "Reproduced: list, count, model, prompt and protocol are the same, and so are the figures."
    if not evaluation.reproduced:
        reasons = "".join(f"<li>{markup.text(each)}</li>" for each in evaluation.differences)
        verdict = f'Not reproduced:</p><ul class="notes">{reasons}</ul><p class="note">'
    return f'<div class="scroll">{markup.table(head, rows, "Published")}</div><p class="note">{verdict}</p>'


def _change(change: LabelledChange) -> str:
    moved = change.change
    rows = [
        ("entries with a score in both", markup.count(moved.pairs)),
        ("mean change of a score", _with_interval(moved.mean)),
        ("mean absolute change", _figure(moved.mean_absolute)),
        ("largest change", _figure(moved.largest)),
        ("rank flips, of all pairs", _figure(moved.rank_flips)),
        ("level flips", _figure(moved.level_flips)),
        ("SRCC between the runs", _with_interval(moved.srcc)),
        ("change of SRCC with the labels", _with_interval(change.srcc)),
        ("change of PLCC with the labels", _with_interval(change.plcc)),
    ]
    return markup.table([("figure", "name"), ("this run less the other", "")], rows, "Paired comparison")


def _name(evaluation: Evaluation) -> str:
    known = evaluation.labels.known
    return known.title if known else evaluation.labels.name


def _with_interval(found: Interval) -> str:
    ends = ends_of(found)
    return _figure(found.value) + (f"<br><small>{ends[0]:.4f} to {ends[1]:.4f}</small>" if ends else "")


def _figure(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"


def _card(title: str, body: str) -> str:
    return f'<section class="card"><h3>{markup.text(title)}</h3>\n{body}</section>\n'
