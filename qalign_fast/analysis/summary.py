"""Rows in; the numbers of a report out: distributions, the best and the worst, groups, errors, the slowest."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qalign_fast.analysis.columns import Texts
from qalign_fast.analysis.rows import Rows, levels_of
from qalign_fast.levels import LEVELS
from qalign_fast.records import printable

if TYPE_CHECKING:
    import numpy.typing as npt

    Numbers = npt.NDArray[np.float64]
    Places = npt.NDArray[np.intp]

WANTED = ("level", "status", "milliseconds")  # what a report reads beside the needed columns
BINS = 40  # of a histogram: a tenth of a level each, and eight to each level's interval
PERCENTS = (0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 100)
_NAMES = "<source>"  # stands for the picture's name in an error's text


@dataclass(frozen=True)
class Group:
    """Rows of one folder, or of one value of a column. Scores are None where no row has one.

    low, median, high: the quantiles at 10, 50 and 90 %. histogram: scores in each of BINS equal parts of the scale.
    """

    name: str | None
    rows: int
    errors: int
    histogram: tuple[int, ...]
    mean: float | None
    low: float | None
    median: float | None
    high: float | None


@dataclass(frozen=True)
class TaskSummary:
    """A task's rows in numbers.

    histogram: as Group's. quantiles: at PERCENTS, by straight lines between scores. levels: rows of each level, the
    best first. std: of n. best, worst: (source, score), the most extreme first. groups: those with most rows first;
    more_groups: how many were left out.
    """

    task: str
    rows: int
    scored: int
    mean: float | None
    std: float | None
    quantiles: tuple[float, ...]
    histogram: tuple[int, ...]
    levels: tuple[int, ...]
    best: tuple[tuple[str | None, float], ...]
    worst: tuple[tuple[str | None, float], ...]
    groups: tuple[Group, ...]
    more_groups: int


@dataclass(frozen=True)
class ErrorGroup:
    """Rows with the same status and the same message, in which <source> stands for the picture's name."""

    status: str | None
    message: str
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Times:
    """How long pictures took to read and decode, in milliseconds; each source once. slowest: the slowest first."""

    count: int
    median: float
    high: float  # 99 % took no longer
    slowest: tuple[tuple[str | None, float], ...]


def summarize(rows: Rows, task: str, by: Texts, *, top: int, most_groups: int) -> TaskSummary:
    """A task's summary, with `top` best and worst, and at most `most_groups` groups of the column `by`."""
    of_task = rows.in_task(task)
    own = np.flatnonzero(of_task)
    places = own[rows.scored[own]]
    score = rows.score[places]
    top = min(top, -(-len(places) // 2))  # a picture is not among both, but for the one in the middle
    groups = _groups(rows, own, by)
    return TaskSummary(
        task=task,
        rows=len(own),
        scored=len(places),
        mean=float(score.mean()) if len(score) else None,
        std=float(score.std()) if len(score) else None,
        quantiles=tuple(np.percentile(score, PERCENTS).tolist()) if len(score) else (),
        histogram=tuple(_bins(score, np.zeros(len(score), np.intp), 1, rows.job.scale)[0].tolist()),
        levels=_levels(rows, places),
        best=_named(rows, places[np.argsort(-score, kind="stable")][:top]),
        worst=_named(rows, places[np.argsort(score, kind="stable")][:top]),
        groups=tuple(groups[:most_groups]),
        more_groups=max(len(groups) - most_groups, 0),
    )


def find_errors(rows: Rows, *, examples: int = 3) -> list[ErrorGroup]:
    """Rows without a score, grouped; the largest groups first."""
    status, found = rows.texts.get("status"), dict[tuple[str | None, str], list[str]]()
    for row in np.flatnonzero(~rows.scored).tolist():
        source = rows.texts["source"][row] or ""
        message = _without_name(rows.texts["error"][row] or "no score, and no error", source)
        found.setdefault((status[row] if status else None, message), []).append(source)
    ordered = sorted(found.items(), key=lambda item: (-len(item[1]), item[0][0] or "", item[0][1]))
    return [
        ErrorGroup(status, message, len(sources), tuple(dict.fromkeys(sources))[:examples])
        for (status, message), sources in ordered
    ]


def find_times(rows: Rows, *, top: int) -> Times | None:
    """None where rows do not say how long pictures took."""
    taken = rows.numbers.get("milliseconds")
    if taken is None or not np.isfinite(taken).any():
        return None
    known = np.flatnonzero(np.isfinite(taken))
    _, firsts = np.unique(rows.texts["source"].codes[known], return_index=True)
    known = known[firsts]
    slowest = known[np.argsort(-taken[known], kind="stable")][:top]
    median, high = np.percentile(taken[known], [50, 99]).tolist()
    names = rows.texts["source"].take(slowest)
    return Times(len(known), median, high, tuple(zip(names, taken[slowest].tolist(), strict=True)))


def _named(rows: Rows, places: Places) -> tuple[tuple[str | None, float], ...]:
    return tuple(zip(rows.texts["source"].take(places), rows.score[places].tolist(), strict=True))


def _levels(rows: Rows, places: Places) -> tuple[int, ...]:
    """How many rows with a score have each level."""
    return tuple(np.bincount(levels_of(rows, places), minlength=len(LEVELS)).tolist())


def _groups(rows: Rows, own: Places, by: Texts) -> list[Group]:
    """Each group's numbers, all groups at a time: rows lie by group and, in a group, by score."""
    count = len(by.values) + 1  # the last one is for null, whose code is -1
    sizes = np.bincount(by.codes[own] % count, minlength=count)
    places = own[rows.scored[own]]
    codes, score = (by.codes[places] % count).astype(np.intp), rows.score[places]
    known = np.bincount(codes, minlength=count)
    starts = np.cumsum(known) - known
    in_order = score[np.lexsort((score, codes))]
    sums = np.bincount(codes, score, minlength=count)
    low, median, high = (_quantiles(in_order, starts, known, share) for share in (0.1, 0.5, 0.9))
    mean = sums / np.maximum(known, 1)
    bins = _bins(score, codes, count, rows.job.scale)
    names: list[str | None] = [*by.values, None]
    order = sorted(np.flatnonzero(sizes).tolist(), key=lambda at: (-int(sizes[at]), names[at] or ""))
    return [
        Group(
            names[at],
            int(sizes[at]),
            int(sizes[at] - known[at]),
            tuple(bins[at].tolist()),
            *(float(found[at]) if known[at] else None for found in (mean, low, median, high)),
        )
        for at in order
    ]


def _quantiles(in_order: Numbers, starts: Places, counts: Places, share: float) -> Numbers:
    """A quantile of each group, by a straight line between the two nearest scores; of an empty one, anything."""
    if not len(in_order):
        return np.zeros(len(starts))
    at = share * np.maximum(counts - 1, 0)
    below = np.floor(at).astype(np.intp)
    first = np.minimum(starts + below, len(in_order) - 1)
    second = np.minimum(first + (below + 1 < counts), len(in_order) - 1)
    values: Numbers = in_order[first] + (at - below) * (in_order[second] - in_order[first])
    return values


def _bins(score: Numbers, codes: Places, count: int, scale: tuple[float, float]) -> npt.NDArray[Any]:
    """The histograms [count, BINS] of all groups."""
    low, high = scale
    edges = [low + i / BINS * (high - low) for i in range(1, BINS)]
    place = np.searchsorted(edges, score)  # a score on an edge is below it, as it is of a level's
    return np.bincount(codes * BINS + place, minlength=count * BINS).reshape(count, BINS)


def _without_name(message: str, source: str) -> str:
    """So that the same fault of two pictures has the same text. Messages hold names in one line, in two ways."""
    message, base = printable(message), source.rpartition("/")[2]
    for name in map(printable, (source, " ".join(source.split()), base)):
        if len(name) > 2:  # a shorter one may be part of a word
            message = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", _NAMES, message)
    return message
