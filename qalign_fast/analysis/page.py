"""Rows in, a report out: one page of HTML with its style and charts in it, which asks nothing of any other place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qalign_fast.analysis import markup
from qalign_fast.analysis.columns import as_text
from qalign_fast.analysis.page_style import STYLE
from qalign_fast.analysis.rows import FOLDER, Rows
from qalign_fast.analysis.summary import (
    PERCENTS,
    ErrorGroup,
    Group,
    TaskSummary,
    Times,
    find_errors,
    find_times,
    summarize,
)
from qalign_fast.levels import LEVELS

_MOST_ERRORS = 50  # kinds of errors that are shown
_ON_A_SHEET = 15  # rows
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

Thumbnail = Callable[[str], str | None]


@dataclass(frozen=True)
class PageOptions:
    """What a report shows. by: a column, or "folder". top: how many of the best, the worst and the slowest.

    thumbnail: gives a picture's small form as a data: URI, or None; without it there are no pictures.
    """

    by: str = FOLDER
    top: int = 12
    most_groups: int = 100
    title: str | None = None
    thumbnail: Thumbnail | None = None


def make_page(rows: Rows, options: PageOptions) -> Iterator[str]:
    """The page, piece by piece; the same rows give the same bytes. Raises RowsError for a column that is not there."""
    by = rows.group(options.by)
    tasks = [summarize(rows, task, by, top=options.top, most_groups=options.most_groups) for task in rows.tasks]
    title = options.title or f"Scores of {Path(rows.name).name or rows.name}"
    yield (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{markup.text(title)}</title>\n<style>\n{STYLE}\n</style>\n</head>\n<body>\n"
    )
    yield _header(rows, title)
    for task in tasks:
        yield from _task(task, rows, options)
    yield _errors(find_errors(rows))
    if times := find_times(rows, top=options.top):
        yield _times(times)
    if rows.job.options:
        yield _options(rows)
    yield "</body>\n</html>\n"


def _header(rows: Rows, title: str) -> str:
    job = rows.job
    model = f"Model: {markup.text(job.model_name)}" + (f", sha256 {markup.text(job.sha256[:12])}" if job.sha256 else "")
    failed = len(rows) - int(rows.scored.sum())
    facts = {
        "rows": markup.count(len(rows)),
        "pictures and clips": markup.count(len(rows.texts["source"].values)),
        "tasks": markup.text(", ".join(rows.tasks) or "none"),
        "without a score": markup.count(failed),
    }
    listed = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())
    scale = f"Scores are on {job.scale[0]:g} (bad) to {job.scale[1]:g} (excellent)."
    return f'<h1>{markup.text(title)}</h1>\n<p class="sub">{model}. {scale}</p>\n<dl class="facts">{listed}</dl>\n'


def _task(task: TaskSummary, rows: Rows, options: PageOptions) -> Iterator[str]:
    yield f"<h2>{markup.text(task.task[:1].upper() + task.task[1:])}</h2>\n"
    if not task.scored:
        yield '<p class="card">No row has a score.</p>\n'
        return
    scale = rows.job.scale
    yield _card("Histogram", _histogram(task, scale))
    yield f'<div class="grid">{_card("Levels", _levels(task))}{_card("Percentiles", _percentiles(task))}</div>\n'
    best, worst = (_pictures(found, options.thumbnail) for found in (task.best, task.worst))
    yield f'<div class="grid">{_card("Best", best, len(task.best))}{_card("Worst", worst, len(task.worst))}</div>\n'
    what = "folder" if options.by == FOLDER else options.by
    yield _card(f"By {what}", _groups(task, what, scale), len(task.groups))


def _histogram(task: TaskSummary, scale: tuple[float, float]) -> str:
    label = f"Histogram of {task.scored} scores from {scale[0]:g} to {scale[1]:g}"
    ticks = "".join(f"<span>{value:g}</span>" for value in _ticks(scale))
    words = "".join(
        f'<span style="border-color:var(--level-{i})">{LEVELS[i]}</span>' for i in reversed(range(len(LEVELS)))
    )
    mean, std = markup.score(task.mean), markup.score(task.std)
    note = f"{markup.count(task.scored)} scores, mean {mean}, standard deviation {std}; the highest bar holds "
    return (
        f'<div class="bars">{markup.histogram(task.histogram, label, scale)}</div>\n'
        f'<div class="words">{words}</div><div class="axis" aria-hidden="true">{ticks}</div>\n'
        f'<p class="note">{note}{markup.count(max(task.histogram))}.</p>'
    )


def _ticks(scale: tuple[float, float]) -> list[float]:
    low, high = scale
    return [low + i * (high - low) / 4 for i in range(5)]


def _levels(task: TaskSummary) -> str:
    total = sum(task.levels)
    rows = [
        (f'<span class="key level-{i}"></span>{word}', markup.count(found), markup.percent(found, total))
        for i, (word, found) in enumerate(zip(LEVELS, task.levels, strict=True))
    ]
    head = [("level", "narrow-name"), ("rows", ""), ("share", "")]
    bar = markup.shares(task.levels, f"Shares of the levels of {total} scores")
    return f'<div class="shares">{bar}</div>{markup.table(head, rows, "Rows of each level")}'


def _percentiles(task: TaskSummary) -> str:
    named = {0: "lowest", 50: "50 % (median)", 100: "highest"}
    rows = [
        (named.get(share, f"{share} %"), markup.score(value))
        for share, value in zip(PERCENTS, task.quantiles, strict=True)
    ]
    return markup.table([("share of scores at or below", "narrow-name"), ("score", "")], rows, "Percentiles")


def _pictures(found: Sequence[tuple[str | None, float]], thumbnail: Thumbnail | None) -> str:
    lines = []
    for source, score in found:
        shown = "" if thumbnail is None else _picture(thumbnail(source or ""))
        lines.append(f"<li>{shown}<b>{markup.score(score)}</b>{markup.name(source)}</li>\n")
    return f'<ol class="list">\n{"".join(lines)}</ol>'


def _picture(uri: str | None) -> str:
    return '<span class="no-picture"></span>' if uri is None else f'<img alt="" src="{markup.text(uri)}">'


def _groups(task: TaskSummary, what: str, scale: tuple[float, float]) -> str:
    head = [(what, "name"), ("rows", ""), ("no score", "wide"), ("mean", ""), ("10 %", "wide"), ("median", "")]
    head += [("90 %", "wide"), ("scores", "spark")]
    more = f'<p class="note">{markup.count(task.more_groups)} more are not shown.</p>' if task.more_groups else ""
    rows = [_group(group, scale) for group in task.groups]
    return f'<div class="scroll">{markup.table(head, rows, f"Scores by {what}")}</div>{more}'


def _group(group: Group, scale: tuple[float, float]) -> list[str]:
    bars = tuple(sum(pair) for pair in zip(group.histogram[::2], group.histogram[1::2], strict=True))  # half as many
    chart = markup.histogram(bars, "histogram", scale, titled=False)
    scores = [markup.score(value) for value in (group.mean, group.low, group.median, group.high)]
    return [markup.name(group.name), markup.count(group.rows), markup.count(group.errors), *scores, chart]


def _errors(groups: Sequence[ErrorGroup]) -> str:
    title = "<h2>Errors</h2>\n"
    if not groups:
        return f'{title}<p class="card">Every row has a score.</p>\n'
    head = [("message", "words-cell"), ("status", "wide"), ("rows", ""), ("examples", "name")]
    rows = [
        (
            f'<span class="bad">{markup.text(markup.shorten(group.message))}</span>',
            markup.text(group.status or "-"),
            markup.count(group.count),
            "<br>".join(map(markup.name, group.examples)),
        )
        for group in groups[:_MOST_ERRORS]
    ]
    more = len(groups) - _MOST_ERRORS
    note = f'<p class="note">{markup.count(more)} more kinds are not shown.</p>' if more > 0 else ""
    table = markup.table(head, rows, "Errors")
    return f'{title}<div class="{_kind(len(rows))}"><div class="scroll">{table}</div>{note}</div>\n'


def _times(times: Times) -> str:
    rows = [(markup.name(source), f"{taken:,.0f}\u00a0ms") for source, taken in times.slowest]
    note = f"Reading and decoding of {markup.count(times.count)}: median {times.median:,.1f} ms; 99 % took at most "
    table = markup.table([("picture or clip", "name"), ("time", "")], rows, "The slowest")
    note = f'<p class="note">{note}{times.high:,.1f} ms.</p>'
    return f'<h2>Slowest to read</h2>\n<div class="{_kind(len(rows))}">{table}{note}</div>\n'


def _options(rows: Rows) -> str:
    listed = "".join(
        f"<dt>{markup.text(name)}</dt><dd>{markup.text(_value(value))}</dd>" for name, value in rows.job.options.items()
    )
    digest = f'<p class="note">sha256 {markup.text(rows.job.options_sha256)}</p>' if rows.job.options_sha256 else ""
    return f'<h2>Options</h2>\n<div class="card"><dl class="options">{listed}</dl>{digest}</div>\n'


def _value(value: Any) -> str:
    return "none" if value is None else markup.shorten(as_text(value))


def _card(title: str, body: str, rows: int = 0) -> str:
    return f'<section class="{_kind(rows)}"><h3>{markup.text(title)}</h3>\n{body}</section>\n'


def _kind(rows: int) -> str:
    """A card of many rows may be parted between two sheets of paper."""
    return "card long" if rows > _ON_A_SHEET else "card"
