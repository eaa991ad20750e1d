"""Scores of many pictures in; where a score stands among them, in percent, out. The map is a JSON file."""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qalign_fast.analysis.job import parse_scale
from qalign_fast.analysis.rows import Rows
from qalign_fast.errors import CalibrationError, RowsError, TaskError, one_line
from qalign_fast.json_values import count
from qalign_fast.levels import FIVE_LEVELS

if TYPE_CHECKING:
    import numpy.typing as npt

    from qalign_fast.records import Row

    Numbers = npt.NDArray[np.float64]

KIND, VERSION = "qalign-fast calibration", 1
QUANTILES = 1001  # a step is a tenth of a percent


@dataclass(frozen=True)
class TaskCalibration:
    """A task's scores: their number, mean, standard deviation (of n), and quantiles from the lowest to the highest.

    scores_sha256: the hash of the scores, sorted, as little-endian doubles.
    """

    count: int
    mean: float
    std: float
    scores_sha256: str
    quantiles: tuple[float, ...]

    def percentile(self, score: float) -> float:
        """Where a score stands, 0..100: 100 i / (m - 1) at quantile i of m, from 0, and a straight line between two.

        Where several quantiles are equal, their score stands in the middle of them. Beyond the ends it is 0 or 100.
        """
        q, last = self.quantiles, len(self.quantiles) - 1
        left, right = bisect_left(q, score), bisect_right(q, score)
        if right == 0 or left > last:
            return 0.0 if right == 0 else 100.0
        if left < right:
            return 50.0 * (left + right - 1) / last if last else 50.0
        return 100.0 * (left - 1 + (score - q[left - 1]) / (q[left] - q[left - 1])) / last


@dataclass(frozen=True)
class Calibration:
    """The map of each task, and the model and options whose scores made it."""

    model: Mapping[str, Any]
    options_sha256: str | None
    scale: tuple[float, float]
    tasks: Mapping[str, TaskCalibration]

    def of_task(self, task: str) -> TaskCalibration:
        """Raises TaskError, which lists what there is."""
        if task not in self.tasks:
            raise TaskError(f"task {task!r} is not in this calibration; it has: {', '.join(self.tasks)}")
        return self.tasks[task]

    def require_model(self, identity: Mapping[str, Any]) -> None:
        """Raises CalibrationError unless a model's sha256, precision and scale are those that gave the scores."""
        from qalign_fast.families.registry import find_family

        same = self.model.get("precision") in (None, identity.get("precision"))
        if not same or identity.get("sha256") != self.model["sha256"]:
            own, other = map(_named, (self.model, identity))
            raise CalibrationError(f"the calibration is of {own}, the model is {other}; calibrate its own rows")
        scale = find_family(identity["family"]).scale if "family" in identity else FIVE_LEVELS
        if self.scale != (scale.low, scale.high):
            (low, high), its = self.scale, f"{scale.low:g} to {scale.high:g}"
            raise CalibrationError(f"the calibration is of scores from {low:g} to {high:g}, the model's are {its}")

    def add_to(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Each row with its score's percentile, 0..100 to two digits; None where it has no score."""
        for row in rows:
            score = row["score"]
            found = None if score is None else round(self.of_task(row["task"]).percentile(score), 2)
            yield row | {"percentile": found}

    def to_json(self) -> str:
        """The same calibration gives the same text."""
        return json.dumps({"kind": KIND, "version": VERSION, **asdict(self)}, indent=1) + "\n"


def calibrate(rows: Rows, model: Mapping[str, Any] | None = None) -> Calibration:
    """The calibration of the rows' scores. `model` stands in for the one that the rows do not name.

    Raises RowsError where no task has a score, where no model is known, and where `model` is not the rows' own.
    """
    known = rows.job.model if rows.job.sha256 else None
    if known and model and known["sha256"] != model["sha256"]:
        raise RowsError(f"{rows.name}: scored with {rows.job.model_name}, which is not the model that was named")
    if not (found := known or model):
        raise RowsError(f"{rows.name}: does not say which model gave the scores; --model names it")
    of_tasks = {task: rows.score[rows.in_task(task) & rows.scored] for task in rows.tasks}
    tasks = {task: _of_scores(scores) for task, scores in sorted(of_tasks.items()) if len(scores)}
    if not tasks:
        raise RowsError(f"{rows.name}: no row has a score; there is nothing to calibrate with")
    facts = {name: found[name] for name in ("name", "sha256", "precision") if name in found}
    return Calibration(facts, rows.job.options_sha256, rows.job.scale, tasks)


def read_calibration(path: Path) -> Calibration:
    """Raises CalibrationError for a file that is none, or of a version that this one cannot read."""
    try:
        found = json.loads(path.read_bytes())
        if (found["kind"], found["version"]) != (KIND, VERSION):
            raise ValueError(f"{found['kind']} of version {found['version']}")
        tasks = {task: _parse_task(value) for task, value in found["tasks"].items()}
        model = {"sha256": None, **found["model"]}
        return Calibration(model, found["options_sha256"], parse_scale(found["scale"]), tasks)
    except OSError as error:
        raise CalibrationError(f"{path}: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        expected = f"expected what `qalign-fast calibrate` of version {VERSION} writes"
        raise CalibrationError(f"{path}: not a calibration ({one_line(error)}); {expected}") from error


def model_identity(
    reference: str | Path | None, precision: str | None = None, base: str | Path | None = None
) -> Mapping[str, Any]:
    """A model's name, sha256 and precision; `precision` and `base` are a checkpoint's, as Scorer.load takes them.

    Raises ArtifactError or CheckpointError for what is no model here; a server's is not.
    """
    from qalign_fast.feed.remote.address import is_address
    from qalign_fast.identity import identify_model

    if is_address(reference):
        raise CalibrationError(
            f"{reference}: a server does not say its model's hash; a calibration needs the model here"
        )
    return identify_model(reference, precision, base)


def _named(model: Mapping[str, Any]) -> str:
    return f"{model.get('name', '?')} in {model.get('precision', '?')} (sha256 {str(model.get('sha256'))[:12]})"


def _of_scores(scores: Numbers) -> TaskCalibration:
    scores = np.sort(scores)
    count = min(QUANTILES, len(scores))
    quantiles = np.quantile(scores, np.arange(count) / max(count - 1, 1)) if count < len(scores) else scores
    digest = sha256(scores.astype("<f8").tobytes()).hexdigest()
    return TaskCalibration(len(scores), float(scores.mean()), float(scores.std()), digest, tuple(quantiles.tolist()))


def _parse_task(value: Mapping[str, Any]) -> TaskCalibration:
    """Raises KeyError, TypeError, ValueError or OverflowError."""
    given = value["quantiles"]
    are_numbers = isinstance(given, list) and all(type(quantile) in (int, float) for quantile in given)
    quantiles = tuple(map(float, given)) if are_numbers else ()
    if not quantiles or list(quantiles) != sorted(quantiles) or not np.isfinite(quantiles).all():
        raise ValueError("its quantiles are not numbers in rising order")
    mean, std = float(value["mean"]), float(value["std"])
    return TaskCalibration(count(value["count"]), mean, std, str(value["scores_sha256"]), quantiles)
