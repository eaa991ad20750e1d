"""The rows of two runs in; for each task how far the scores have moved, out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from qalign_fast.analysis.columns import Texts
from qalign_fast.analysis.measures import Shift, flip_share, ks_distance, paired_shift, spearman, welch_shift
from qalign_fast.analysis.rows import KEY, Rows, levels_of
from qalign_fast.errors import RowsError

if TYPE_CHECKING:
    import numpy.typing as npt

    Places = npt.NDArray[np.intp]

By = Literal["source", "sha256"]


@dataclass(frozen=True)
class TaskDrift:
    """A task's drift. What cannot be computed from so few rows is None.

    old_scored, new_scored: rows with a score. joined: rows that are in both; paired: those with a score in both.
    only_old, only_new: rows that the other run does not have. became_errors, became_scores: rows in both.
    repeated: rows left out because a later one has the same name. without_hash: rows that --by sha256 cannot join.
    ks: of all scores, 0..1. shift: paired; shift_of_all: unpaired. flips: share of the pairs of paired rows whose order
    is reversed. level_flips: share of the paired rows whose level is another.
    """

    old_scored: int
    new_scored: int
    joined: int
    paired: int
    only_old: int
    only_new: int
    became_errors: int
    became_scores: int
    repeated: int
    without_hash: int
    ks: float | None
    shift: Shift
    shift_of_all: Shift
    spearman: float | None
    flips: float | None
    level_flips: float | None
    largest: float | None

    @property
    def missing(self) -> float | None:
        """The share of rows that only one of the runs has."""
        alone = self.only_old + self.only_new
        return alone / (self.joined + alone) if self.joined + alone else None


def find_drift(old: Rows, new: Rows, by: By = "source") -> dict[str, TaskDrift]:
    """By task. Rows are joined by source (and key, of archives) or by the hash of their content; read with `NEEDED_BY`.

    Raises RowsError where the two have no task in common, other scales, or no hashes to join by.
    """
    if old.job.scale != new.job.scale:
        raise RowsError(f"{old.name} and {new.name} have other scales: {old.job.scale}, {new.job.scale}")
    if not (tasks := [task for task in old.tasks if task in new.tasks]):
        has = "; ".join(f"{rows.name}: {', '.join(rows.tasks) or 'none'}" for rows in (old, new))
        raise RowsError(f"no task is in both ({has})")
    names = tuple(_names(rows, by, both=KEY in old.texts and KEY in new.texts) for rows in (old, new))
    return {task: _of_task(old, new, task, names) for task in tasks}


def _of_task(old: Rows, new: Rows, task: str, names: tuple[Texts, ...]) -> TaskDrift:
    runs = (old, new)
    own = [np.flatnonzero(rows.in_task(task)) for rows in runs]
    named = [rows[column.codes[rows] >= 0] for rows, column in zip(own, names, strict=True)]
    last = [_last(rows, column) for rows, column in zip(named, names, strict=True)]
    a, b = _join(last[0], last[1], names[0], names[1])
    scored = old.scored[a], new.scored[b]
    both = scored[0] & scored[1]
    x, y = old.score[a[both]], new.score[b[both]]
    all_old, all_new = (rows.score[places[rows.scored[places]]] for rows, places in zip(runs, own, strict=True))
    return TaskDrift(
        old_scored=len(all_old),
        new_scored=len(all_new),
        joined=len(a),
        paired=len(x),
        only_old=len(last[0]) - len(a),
        only_new=len(last[1]) - len(b),
        became_errors=int(np.sum(scored[0] & ~scored[1])),
        became_scores=int(np.sum(~scored[0] & scored[1])),
        repeated=sum(map(len, named)) - sum(map(len, last)),
        without_hash=sum(map(len, own)) - sum(map(len, named)),
        ks=ks_distance(all_old, all_new),
        shift=paired_shift(x, y),
        shift_of_all=welch_shift(all_old, all_new),
        spearman=spearman(x, y),
        flips=flip_share(x, y),
        level_flips=float(np.mean(levels_of(old, a[both]) != levels_of(new, b[both]))) if len(x) else None,
        largest=float(np.max(np.abs(y - x))) if len(x) else None,
    )


def _names(rows: Rows, by: By, *, both: bool) -> Texts:
    """What rows are joined by. With `both`, the source and the key in it."""
    if by not in rows.texts:
        raise RowsError(f"{rows.name} has no column {by!r} to join by; a job's rows have it")
    codes, values = rows.texts[by].codes, rows.texts[by].values
    # Parquet cannot hold a name that is no UTF-8, and has an escape in it
    column = Texts(codes, tuple(value.encode("utf-8", "backslashreplace").decode() for value in values))
    if by == "sha256" or not both:
        return column
    key = rows.texts[KEY]
    pairs = column.codes.astype(np.int64) * (len(key.values) + 1) + key.codes + 1
    _, firsts, codes = np.unique(pairs, return_index=True, return_inverse=True)
    texts = zip(column.take(firsts), key.take(firsts), strict=True)
    values = tuple(f"{source}\0{name or ''}" for source, name in texts)
    return Texts(codes.astype(np.int32), values)


def _last(rows: Places, column: Texts) -> Places:
    """Of the rows of one name the last."""
    _, places = np.unique(column.codes[rows][::-1], return_index=True)
    return rows[::-1][places]


def _join(old: Places, new: Places, old_names: Texts, new_names: Texts) -> tuple[Places, Places]:
    """The rows that are in both, as places in each."""
    by_name = {name: code for code, name in enumerate(new_names.values)}
    same = np.array([by_name.get(name, -1) for name in old_names.values] or [-1])  # old code -> new code
    row_of = np.full(len(new_names.values) + 1, -1, np.intp)  # the last is for -1
    row_of[new_names.codes[new]] = new
    found: Any = row_of[same[old_names.codes[old]]]
    return old[found >= 0], found[found >= 0]
