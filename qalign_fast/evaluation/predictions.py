"""A file of scores and a list of labels in, the list's scores out, in its order: whatever wrote the file.

Read are our own rows (Parquet, JSON lines, CSV, a job's folder); the result files of Q-Align's and DeQA-Score's
evaluation scripts, which hold each picture's logits; FAST-VQA's pickle of its branches; a table of names and scores;
and a text file of one score a line, in the list's order.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from qalign_fast.analysis.rows import NEEDED, Rows, levels_of, read_rows
from qalign_fast.analysis.scales import level_places
from qalign_fast.errors import RowsError, one_line
from qalign_fast.evaluation.branches import read_branches
from qalign_fast.evaluation.ensembles import combine
from qalign_fast.evaluation.lists.checks import LARGEST
from qalign_fast.evaluation.lists.read import read_list
from qalign_fast.levels import FIVE_LEVELS, LEVELS
from qalign_fast.records import in_utf8

if TYPE_CHECKING:
    import numpy.typing as npt

    from qalign_fast.evaluation.lists.entries import LabelList

    Numbers = npt.NDArray[np.float64]
    Scored = tuple[float, str | None]  # a score, NaN where there is none, and the error in its place

_ABSENT = "no row names it"
_SPACE = re.compile(r"\s*")
_PICKLES = (".pkl", ".pickle")


@dataclass(frozen=True)
class Predictions:
    """A run's scores of a list's N entries, in the list's order.

    name: what the user called the file. model: its name, sha256 and precision, as far as the file says; of an ensemble
    also its number of members. task: None where the file does not say it. scores: float64 [N] on `scale`, NaN where
    there is none. levels: the place in LEVELS of each, -1 where there is none. errors: why there is none.
    """

    name: str
    model: Mapping[str, Any]
    task: str | None
    scale: tuple[float, float] | None
    scores: Numbers
    levels: npt.NDArray[np.intp]
    errors: tuple[str | None, ...]

    @property
    def model_name(self) -> str:
        """For people."""
        known = " ".join(str(self.model[key]) for key in ("name", "precision") if self.model.get(key))
        return known or "unknown"


def read_predictions(path: Path, labels: LabelList, *, task: str | None = None, root: str | None = None) -> Predictions:
    """The scores that a file holds of a list's entries. `root`: the folder that the list's names start from.

    Raises RowsError for what is none of the forms, for rows of several tasks where `task` names none of them, for
    names that two entries could be meant by, and for a name with two scores; ListError as `read_list` does.
    """
    if path.suffix.lower() in _PICKLES:
        return _from_branches(path, labels)
    if path.suffix.lower() == ".txt":
        return _from_lines(path, labels)
    if path.is_dir() or path.suffix.lower() == ".parquet" or _has_rows(path):
        return _from_rows(read_rows(path, ["level"]), labels, task, root)
    if path.suffix.lower() in (".json", ".jsonl"):
        return _from_results(path, labels, root)
    table = read_list(path, lower_better=False, medium=labels.medium)
    found: dict[str, Scored] = {}
    for entry in table.entries:
        _add(found, entry.name, _usable(entry.label), path)
    return _unscaled(path, labels, _in_order(labels, found, root, path))


def ensemble(members: Sequence[Predictions]) -> Predictions:
    """The mean of the members' z-scores, over the entries that all of them scored. It is on no scale of scores."""
    errors = tuple(next((error for error in each if error), None) for each in zip(*(m.errors for m in members)))
    scores = combine([member.scores for member in members])
    return Predictions(
        name=" + ".join(member.name for member in members),
        model={"name": " + ".join(dict.fromkeys(member.model_name for member in members)), "members": len(members)},
        task=" + ".join(dict.fromkeys(member.task for member in members if member.task)) or None,
        scale=None,
        scores=scores,
        levels=np.full(len(scores), -1),
        errors=errors,
    )


def _has_rows(path: Path) -> bool:
    """Whether it is a file of ours, by its first line."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            first = file.readline(1 << 20)
    except OSError as error:
        raise RowsError(f"{path}: {error.strerror or error}") from error
    return all(name in first for name in NEEDED)


def _from_rows(rows: Rows, labels: LabelList, task: str | None, root: str | None) -> Predictions:
    chosen = np.flatnonzero(rows.in_task(own := rows.one_task(task)))
    scored = rows.scored[chosen]
    sources, texts = rows.texts["source"].take(chosen), rows.texts["error"].take(chosen)
    found: dict[str, Scored] = {}
    places: dict[str, int] = {}
    for i, (source, has) in enumerate(zip(sources, scored.tolist(), strict=True)):
        score = (float(rows.score[chosen[i]]) if has else float("nan"), texts[i])
        if source is not None and _add(found, source, score, Path(rows.name)):
            places[source] = i
    names = _sources_of(labels, places, root, Path(rows.name))
    of_entries = [found[name] if name is not None else (float("nan"), _ABSENT) for name in names]
    level = levels_of(rows, chosen)
    levels = np.array([level[places[name]] if name is not None else -1 for name in names], np.intp)
    scores = np.array([score for score, _ in of_entries], np.float64)
    model = {} if rows.job.model is None else dict(rows.job.model)
    errors = tuple(error for _, error in of_entries)
    return Predictions(rows.name, model, own, rows.job.scale, scores, levels, errors)


def _add(found: dict[str, Scored], name: str, score: Scored, path: Path) -> bool:
    """Adds a name's score, and says whether it did: a score takes an error's place, and no error takes a score's.

    Raises RowsError for a second score that is another, as of a file to which a second run was added.
    """
    had = found.get(name, (float("nan"), None))[0]
    if np.isfinite(had) and np.isfinite(score[0]) and had != score[0]:
        what = f"{name!r} has two scores: {had:g} and {score[0]:g}"
        raise RowsError(f"{path}: {what}; expected the rows of one run, in which a name has one score")
    if np.isfinite(had) and not np.isfinite(score[0]):
        return False
    found[name] = score
    return True


def _usable(score: float) -> Scored:
    """The score; of one that no sum can be made of, an error in its place."""
    if abs(score) <= LARGEST:
        return score, None
    return float("nan"), f"{score:g} is too large for a score" if np.isfinite(score) else "not a number"


def _from_results(path: Path, labels: LabelList, root: str | None) -> Predictions:
    """The file of an evaluation script: JSON objects, one after another, with a name, and logits or a score."""
    found: dict[str, Scored] = {}
    scale: tuple[float, float] | None = (FIVE_LEVELS.low, FIVE_LEVELS.high)
    for number, each in enumerate(_objects(path)):
        name = each.get("image", each.get("img_path", each.get("source")))
        if not isinstance(name, str) or not name:
            raise RowsError(f"{path}: object {number + 1} names no picture; expected 'image' or 'img_path'")
        try:
            score = _weighted(each["logits"]) if "logits" in each else float(each["score"])
            scale = scale if "logits" in each else None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"expected 'logits' of {', '.join(LEVELS)}, or a 'score'"
            raise RowsError(f"{path}: object {number + 1} of {name!r}: {one_line(error)}; {what}") from error
        _add(found, name, _usable(score), path)
    predictions = _unscaled(path, labels, _in_order(labels, found, root, path))
    if scale is None:
        return predictions
    levels = np.where(np.isfinite(predictions.scores), level_places(predictions.scores, scale), -1)
    return replace(predictions, scale=scale, levels=levels)


def _weighted(logits: Mapping[str, Any]) -> float:
    """1..5 from the five levels' logits, in float64; other words do not count, as in upstream's scripts."""
    five = np.array([float(logits[word]) for word in LEVELS])
    shares = np.exp(five - five.max())
    return float(shares @ np.array(FIVE_LEVELS.values) / shares.sum())


def _objects(path: Path) -> Iterator[Mapping[str, Any]]:
    """The objects of a JSON array, of JSON lines, or of objects with nothing between them, as upstream writes them."""
    try:
        text, at, decoder = path.read_text("utf-8-sig"), 0, json.JSONDecoder()
        if text.lstrip().startswith("["):
            found = json.loads(text)
        else:
            found = []
            while (at := _after_space(text, at)) < len(text):
                each, at = decoder.raw_decode(text, at)
                found.append(each)
    except OSError as error:
        raise RowsError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise RowsError(f"{path}: not JSON ({one_line(error)})") from error
    for number, each in enumerate(found):
        if not isinstance(each, dict):
            raise RowsError(f"{path}: object {number + 1} is a {type(each).__name__}; expected objects")
        yield each


def _after_space(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    assert space  # of any length
    return space.end()


def _from_branches(path: Path, labels: LabelList) -> Predictions:
    """The sum of z-scored branches, up to a factor."""
    branches = read_branches(path)
    for name, values in branches.items():
        _check_count(path, len(values), labels, f" of the branch {name!r}" if name else "")
    scores = combine(list(branches.values())) if len(branches) > 1 else next(iter(branches.values()), np.empty(0))
    _check_count(path, len(scores), labels)
    return _unscaled(path, labels, list(map(_usable, scores.tolist())))


def _check_count(path: Path, count: int, labels: LabelList, what: str = "") -> None:
    """Raises RowsError where scores without names are not as many as the list's entries."""
    if count != len(labels.entries):
        raise RowsError(f"{path}: {count} scores{what}; {labels.path} has {len(labels.entries)} entries")


def _from_lines(path: Path, labels: LabelList) -> Predictions:
    try:
        lines = path.read_text("utf-8-sig").split()
        scores = [float(line) for line in lines]
    except OSError as error:
        raise RowsError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise RowsError(f"{path}: {one_line(error)}; expected a score a line, in the list's order") from error
    _check_count(path, len(scores), labels)
    return _unscaled(path, labels, list(map(_usable, scores)))


def _unscaled(path: Path, labels: LabelList, found: Sequence[Scored]) -> Predictions:
    scores = np.array([score for score, _ in found], np.float64)
    levels = np.full(len(scores), -1)
    return Predictions(str(path), {"name": path.stem}, None, None, scores, levels, tuple(e for _, e in found))


def _in_order(labels: LabelList, found: Mapping[str, Scored], root: str | None, path: Path) -> list[Scored]:
    names = _sources_of(labels, found, root, path)
    return [found[name] if name is not None else (float("nan"), _ABSENT) for name in names]


def _sources_of(labels: LabelList, sources: Mapping[str, Any], root: str | None, path: Path) -> list[str | None]:
    """Which of the sources each entry is: the same name; that below the root; or the only one that ends in it.

    Raises RowsError where several end in it.
    """
    ends: dict[str, list[str]] | None = None
    found: list[str | None] = []
    for entry in labels.entries:
        below = os.path.normpath(os.path.join(root, entry.name)) if root is not None else entry.name  # noqa: PTH118
        called = (entry.name, below, in_utf8(entry.name), in_utf8(below))  # files of rows have the last two
        if (same := next((name for name in called if name in sources), None)) is not None:
            found.append(same)
            continue
        ends = _ends(sources) if ends is None else ends
        alike = ends.get(entry.name, [])
        if len(alike) > 1:
            raise RowsError(f"{path}: {entry.name!r} may be {alike[0]!r} or {alike[1]!r}; --root says which")
        found.append(alike[0] if alike else None)
    if labels.entries and not any(name is not None for name in found):
        wanted, some = labels.entries[0].name, next(iter(sources), "nothing")
        raise RowsError(f"{path}: has none of the list's names, such as {wanted!r}; it has {some!r}")
    return found


def _ends(sources: Mapping[str, Any]) -> dict[str, list[str]]:
    """Every end of every source, from a slash on -> the sources that have it."""
    ends: dict[str, list[str]] = {}
    for source in sources:
        parts = PurePosixPath(source.replace("\\", "/")).parts
        for first in range(1, len(parts)):
            ends.setdefault("/".join(parts[first:]), []).append(source)
    return ends
