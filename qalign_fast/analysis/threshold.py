"""Rows and a wish in, "the best 30 %" or "3.2 and above"; which rows are kept, and the score that decides, out."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

from qalign_fast.analysis.rows import Rows
from qalign_fast.analysis.scales import to_unit
from qalign_fast.errors import RowsError

if TYPE_CHECKING:
    import numpy.typing as npt

    Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Cut:
    """A threshold, and what it keeps of some rows.

    value: the lowest score that is kept, on the rows' scale; unit: the same on 0..1; None where no row has a score.
    kept, scored: rows. asked: how many a share asked for; None for a score. tied: rows that have exactly this score.
    errors: rows without a score, which are never kept.
    """

    value: float | None
    unit: float | None
    kept: int
    scored: int
    asked: int | None
    tied: int
    errors: int

    @property
    def more_by_ties(self) -> int:
        """Rows that are kept beyond those asked for, because they tie with the last one."""
        return 0 if self.asked is None else self.kept - self.asked


@dataclass(frozen=True)
class Threshold:
    """The rows that are kept [R], and the cut of each group by its text, None for null; or of all rows, by None."""

    kept: Mask
    cuts: dict[str | None, Cut]

    @property
    def total(self) -> tuple[int, int, int]:
        """Rows kept, rows with a score, rows without."""
        cuts = self.cuts.values()
        return sum(c.kept for c in cuts), sum(c.scored for c in cuts), sum(c.errors for c in cuts)


def find_threshold(rows: Rows, task: str, wish: Fraction | float, group: str | None = None) -> Threshold:
    """What is kept of a task's rows.

    wish: a share (Fraction): the ceil(share * n) best of the n rows with a score, and all that tie with the last of
    them; or a score (float): all rows of this score or a higher one. With `group`, a column or "folder", a share is
    taken within each group. Raises RowsError where no row has a score, or for a column that is not there.
    """
    of_task = rows.in_task(task)
    if not np.any(rows.scored & of_task):
        raise RowsError(f"{rows.name}: no row of task {task!r} has a score; there is nothing to keep")
    if group is None:
        kept, cut = _cut(rows, of_task, wish)
        return Threshold(kept, {None: cut})
    column, kept, cuts = rows.group(group), np.zeros(len(rows), bool), dict[str | None, Cut]()
    order = np.argsort(column.codes, kind="stable")  # the rows of a group beside each other
    starts = np.searchsorted(column.codes[order], np.arange(-1, len(column.values) + 1))
    for code, (start, end) in enumerate(pairwise(starts), -1):
        own = np.sort(order[start:end][of_task[order[start:end]]])
        if len(own):
            kept[own], cuts[None if code < 0 else column.values[code]] = _cut_some(rows, own, wish)
    return Threshold(kept, dict(sorted(cuts.items(), key=lambda item: (item[0] is None, item[0] or ""))))


def _cut(rows: Rows, mask: Mask, wish: Fraction | float) -> tuple[Mask, Cut]:
    own, kept = np.flatnonzero(mask), np.zeros(len(rows), bool)
    kept[own], cut = _cut_some(rows, own, wish)
    return kept, cut


def _cut_some(rows: Rows, own: npt.NDArray[Any], wish: Fraction | float) -> tuple[Mask, Cut]:
    """Which of the rows at these places are kept."""
    scored, score = rows.scored[own], rows.score[own]
    known, asked = np.sort(score[scored]), None
    value = None if isinstance(wish, Fraction) else wish
    if isinstance(wish, Fraction) and len(known):
        asked = ceil(wish * len(known))
        value = float(known[-asked])
    kept = scored & (score >= value) if value is not None else np.zeros(len(own), bool)
    tied = int(np.sum(known == value))
    unit = None if value is None else to_unit(value, rows.job.scale)
    return kept, Cut(value, unit, int(kept.sum()), len(known), asked, tied, len(own) - len(known))
