"""A list of labels and a run's scores of it in, the figures of one protocol out, beside what was published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from qalign_fast.analysis.paired import LabelledChange, labelled_change
from qalign_fast.analysis.resampling import DRAWS, FEWEST, Bootstrap, Interval
from qalign_fast.errors import OptionError, RowsError
from qalign_fast.evaluation.lists.known import published_models
from qalign_fast.evaluation.protocols import Agreement, Protocol, agree, correlated_values
from qalign_fast.evaluation.training_data.mixes import FIGURES_OF, checkpoint_of, is_in_domain

if TYPE_CHECKING:
    import numpy.typing as npt

    from qalign_fast.evaluation.lists.entries import LabelList, Published
    from qalign_fast.evaluation.predictions import Predictions

    Numbers = npt.NDArray[np.float64]

TOLERANCE = 0.0015  # of a figure that was published with three digits: half of the last, and what rounding may move
_FEW = 10  # source units; what an interval of fewer is worth has not been looked at


@dataclass(frozen=True)
class Resampling:
    """How intervals are drawn."""

    draws: int = DRAWS
    seed: int = 0


@dataclass(frozen=True)
class Evaluation:
    """One list, one run, one protocol. Never several lists pooled: their labels are of different people and scales.

    srcc, plcc: with 95 % intervals over source units. reproduced: whether the published figures came out, of the same
    list, count, model, prompt and protocol. differences: what is not the same.
    """

    labels: LabelList
    predictions: Predictions
    protocol: Protocol
    agreement: Agreement
    srcc: Interval
    plcc: Interval
    published: tuple[Published, ...]
    differences: tuple[str, ...]
    resampling: Resampling

    @cached_property
    def scored(self) -> npt.NDArray[np.bool_]:
        """[N]: whether an entry of the list has a score."""
        has: npt.NDArray[np.bool_] = np.isfinite(self.predictions.scores)
        return has

    @cached_property
    def targets(self) -> Numbers:
        """[N]: the list's labels."""
        return np.array([entry.label for entry in self.labels.entries])

    @property
    def expected(self) -> int:
        return len(self.labels.entries)

    @property
    def failed(self) -> int:
        return self.expected - int(self.scored.sum())

    @property
    def reproduced(self) -> bool:
        return bool(self.published) and not self.differences

    @property
    def in_domain(self) -> bool | None:
        """Whether the model was trained on the list's data set, by its name; None where that is not known."""
        about = self.labels.known or self.labels.looks_like
        return is_in_domain(str(self.predictions.model.get("name", "")), about.name) if about else None

    @property
    def notes(self) -> tuple[str, ...]:
        """What the reader of the figures should know: of the list, of the protocol's fits, of missing scores."""
        own = () if self.labels.known is None or not self.labels.known.note else (self.labels.known.note,)
        return (*own, *self.labels.notes, *self.agreement.notes, *self._of_intervals())

    def _of_intervals(self) -> tuple[str, ...]:
        """Why there is no interval, or what it is worth."""
        n, units = self.expected - self.failed, self.srcc.units
        if n > 1 and np.ptp(self.predictions.scores[self.scored]) == 0:
            return (f"all {n} scores are equal: they agree or disagree with nothing",)
        if units < FEWEST:
            return (f"{units} source units have a score; an interval needs {FEWEST}",)
        return (f"{units} source units are few: the intervals are rough",) if units < _FEW else ()

    def to_json(self) -> dict[str, Any]:
        """All figures as plain values."""
        labels, run, agreement = self.labels, self.predictions, self.agreement
        return {
            "list": labels.name,
            "title": labels.known.title if labels.known else None,
            "list_file": labels.path.name,
            "list_sha256": labels.sha256,
            "form": labels.form,
            "medium": labels.medium,
            "lower_better": labels.lower_better,
            "model": dict(run.model),
            "task": run.task,
            "in_domain": self.in_domain,
            "protocol": self.protocol.name,
            "correlated": agreement.correlated,
            "srcc": agreement.srcc,
            "srcc_interval": ends_of(self.srcc),
            "plcc": agreement.plcc,
            "plcc_interval": ends_of(self.plcc),
            "krcc": agreement.krcc,
            "rmse_raw": agreement.rmse_raw,
            "rmse_linear": agreement.rmse_linear,
            "rmse_logistic4": agreement.rmse_logistic4,
            "fit": None if agreement.mapping is None else asdict(agreement.mapping),
            "n_expected": self.expected,
            "n_scored": self.expected - self.failed,
            "n_failed": self.failed,
            "units": self.srcc.units,
            "draws": self.resampling.draws,
            "seed": self.resampling.seed,
            "published": [asdict(each) for each in self.published],
            "reproduced": self.reproduced,
            "differences": list(self.differences),
            "notes": list(self.notes),
        }


def evaluate(
    labels: LabelList, run: Predictions, protocol: Protocol, resampling: Resampling | None = None, model: str = ""
) -> Evaluation:
    """The figures of a run on a list. `model`: of those whose figures were published the one to compare with; "": the
    first of the protocol.

    Raises RowsError where no entry has a score, and OptionError for a model of which no figure is known.
    """
    resampling = resampling or Resampling()
    check_published(model)
    has = np.isfinite(run.scores)
    if not has.any():
        why = next((error for error in run.errors if error), "none was scored")
        raise RowsError(f"{run.name}: no entry of {labels.path} has a score; the first: {why}")
    scores, targets = run.scores[has], np.array([entry.label for entry in labels.entries])[has]
    agreement = agree(protocol, scores, targets, lower_better=labels.lower_better)
    x = correlated_values(protocol, scores, targets, lower_better=labels.lower_better)
    draws = _bootstrap(labels, has, resampling)
    srcc, plcc = (_shown(found, protocol) for found in (draws.srcc(x, targets), draws.plcc(x, targets)))
    published = _published(labels, protocol, model)
    differences = _differences(labels, run, protocol, agreement, int(has.sum()), published)
    return Evaluation(labels, run, protocol, agreement, srcc, plcc, published, differences, resampling)


def check_published(model: str) -> None:
    """Raises OptionError, which lists what there is."""
    if model and model not in (has := published_models()):
        raise OptionError(f"no figures are known of {model!r}; there are those of: {', '.join(has)}")


def against(evaluation: Evaluation, other: Predictions) -> LabelledChange:
    """How far the evaluation's run is from another run on the same list: this one less the other.

    Raises RowsError where fewer than two entries have a score in both, or the scales are not the same.
    """
    labels, run = evaluation.labels, evaluation.predictions
    if run.scale != other.scale:
        raise RowsError(f"{run.name} and {other.name} have other scales: {run.scale}, {other.scale}")
    both = np.isfinite(run.scores) & np.isfinite(other.scores)
    if both.sum() < 2:
        raise RowsError(f"{run.name} and {other.name}: {both.sum()} entries have a score in both; two are needed")
    targets = evaluation.targets[both] * (-1 if labels.lower_better else 1)
    leveled = both & (run.levels >= 0) & (other.levels >= 0)
    levels = other.levels[leveled], run.levels[leveled]
    draws = _bootstrap(labels, both, evaluation.resampling)
    return labelled_change(other.scores[both], run.scores[both], targets, levels, draws)


def ends_of(interval: Interval) -> list[float] | None:
    """Both ends, or None."""
    return None if interval.low is None or interval.high is None else [interval.low, interval.high]


def _bootstrap(labels: LabelList, chosen: npt.NDArray[np.bool_], resampling: Resampling) -> Bootstrap:
    units = [entry.unit for entry, has in zip(labels.entries, chosen.tolist(), strict=True) if has]
    return Bootstrap(units, resampling.draws, resampling.seed)


def _shown(found: Interval, protocol: Protocol) -> Interval:
    """Without its sign, where the protocol drops it."""
    if not protocol.absolute or found.value is None or found.value >= 0:
        return found
    low, high = (None if end is None else -end for end in (found.high, found.low))
    return Interval(-found.value, low, high, found.units)


def _published(labels: LabelList, protocol: Protocol, model: str) -> tuple[Published, ...]:
    """What was published of the list, by this protocol first."""
    known = labels.known or labels.looks_like
    found = [] if known is None else [each for each in known.published if model in ("", each.model)]
    return tuple(sorted(found, key=lambda each: each.protocol != protocol.name))


def _differences(
    labels: LabelList,
    run: Predictions,
    protocol: Protocol,
    agreement: Agreement,
    scored: int,
    published: Sequence[Published],
) -> tuple[str, ...]:
    """Why the first published figure cannot be said to be reproduced, or is not."""
    if not published:
        return ()
    its, known, found = published[0], labels.known, []
    if (like := labels.looks_like) is not None:
        told = "is known by no hash" if not like.sha256 else "has other bytes, or other labels were chosen"
        found.append(f"{like.title} {told}")
    if (about := known or like) is not None and about.count and scored != about.count:
        found.append(f"{scored} entries have a score, not {about.count}")
    if its.protocol != protocol.name:
        found.append(f"the published figure is by the protocol {its.protocol}")
    judged = known.task if known else labels.task or "quality"
    if run.task != (asked := protocol.task(judged, labels.medium)):
        found.append(f"the prompt is that of {run.task or 'an unknown task'}, not of {asked}")
    name, checkpoint = str(run.model.get("name", "")), FIGURES_OF.get(its.model)
    if checkpoint is not None and checkpoint_of(name) != checkpoint:
        found.append(
            f"the model is {name}, not {checkpoint}" if name else f"whether the model is {checkpoint} is not known"
        )
    elif checkpoint is None and "members" not in run.model:
        found.append("the published figure is of an ensemble")
    for name, ours, theirs in (("SRCC", agreement.srcc, its.srcc), ("PLCC", agreement.plcc, its.plcc)):
        if ours is None or abs(ours - theirs) > TOLERANCE:
            found.append(f"{name} is {'unknown' if ours is None else format(ours, '.4f')}, not {theirs:.3f}")
    return tuple(found)
