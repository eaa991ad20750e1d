"""Predictions and labels in, agreement out: correlations and errors by the protocol of one of four projects.

The projects' figures are not the same even on the same predictions. A figure here always says whose protocol it is of.
"""

from __future__ import annotations

from collections.abc import Mapping as MappingType
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qalign_fast.analysis.measures import spearman
from qalign_fast.errors import OptionError
from qalign_fast.evaluation.lists.optional import load_optional
from qalign_fast.evaluation.mapping import Mapping, fit, match_spread

if TYPE_CHECKING:
    import numpy.typing as npt

    Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Protocol:
    """How one project compares predictions with labels.

    described: in one sentence. correlated: what is correlated with the labels: "raw" predictions, or those that a fit
    on the same data "mapped". absolute: whether the sign of a correlation is dropped. added: what its RMSE adds to the
    mean square. tasks: the task, by the prompt that its figures were made with, of a medium and a kind of judgement.
    """

    name: str
    described: str
    correlated: str = "raw"
    absolute: bool = False
    added: float = 0.0
    tasks: MappingType[tuple[str, str], str] | None = None

    def task(self, judged: str, medium: str) -> str:
        """The task by which the protocol asks for "quality" or "aesthetics" of an "image" or a "video"."""
        return (self.tasks or {}).get((judged, medium), judged)


_PAPER = {
    ("quality", "image"): "quality-paper",
    ("quality", "video"): "quality-paper",
    ("aesthetics", "image"): "aesthetics-paper",
}
PROTOCOLS = {
    each.name: each
    for each in (
        Protocol("qalign", "raw scores, as Q-Align's evaluation scripts", tasks=_PAPER),
        Protocol("deqa", "scores mapped by a logistic, as DeQA-Score's", correlated="mapped", tasks=_PAPER),
        Protocol(
            "pyiqa",
            "raw scores, without sign, as pyiqa's benchmark",
            absolute=True,
            added=1e-8,
            tasks={("aesthetics", "image"): "aesthetic"},
        ),
        Protocol("fastvqa", "z-scored branches summed, with the labels' mean and spread, as FAST-VQA's", tasks=_PAPER),
    )
}


@dataclass(frozen=True)
class Agreement:
    """How well predictions agree with labels. None where it cannot be computed: below two pairs, or of constants.

    A correlation is positive where better predictions go with better labels, also of labels that fall with quality.
    rmse_raw: of predictions as they are; of another scale than the labels' it means nothing. rmse_linear: with the
    labels' mean and spread. rmse_logistic4: mapped, as `mapping` says. correlated: "raw", or the function's name and
    "(test-fit)". notes: what the reader of the figures should know.
    """

    srcc: float | None
    plcc: float | None
    krcc: float | None
    rmse_raw: float | None
    rmse_linear: float | None
    rmse_logistic4: float | None
    correlated: str
    mapping: Mapping | None
    notes: tuple[str, ...] = ()


def find_protocol(name: str) -> Protocol:
    """Raises OptionError, which lists what there is."""
    if name not in PROTOCOLS:
        raise OptionError(f"protocol {name!r} is not one; there are: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def agree(protocol: Protocol, predictions: Numbers, labels: Numbers, *, lower_better: bool = False) -> Agreement:
    """The agreement of predictions [n], higher is better, with labels [n]; `lower_better` is the labels'."""
    x, y = (np.asarray(values, np.float64) for values in (predictions, labels))
    rising = -x if lower_better else x  # as the labels should
    if len(x) < 2:
        return Agreement(None, None, None, _rmse(x, y, protocol.added), None, None, protocol.correlated, None)
    mapping = fit(rising, y)
    mapped = mapping(rising)
    raw = protocol.correlated == "raw"
    srcc, plcc, krcc = _correlations(rising if raw else mapped, y)
    notes = [f"the fit of {name} failed; {mapping.name} took its place" for name in mapping.failed]
    if _falls(rising, y):
        notes.append("scores fall where labels rise: is the labels' direction right?")
        if not raw and srcc is not None and srcc > 0:
            notes.append("the fitted curve falls too, so the correlations of mapped scores hide it")
    if protocol.absolute:
        srcc, plcc, krcc = (None if value is None else abs(value) for value in (srcc, plcc, krcc))
    return Agreement(
        srcc=srcc,
        plcc=plcc,
        krcc=krcc,
        rmse_raw=_rmse(x, y, protocol.added),
        rmse_linear=_rmse(match_spread(rising, y), y, protocol.added),
        rmse_logistic4=_rmse(mapped, y, protocol.added),
        correlated="raw" if raw else f"{mapping.name}(test-fit)",
        mapping=mapping,
        notes=tuple(notes),
    )


def correlated_values(
    protocol: Protocol, predictions: Numbers, labels: Numbers, *, lower_better: bool = False
) -> Numbers:
    """What the protocol correlates with the labels: predictions [n] that rise with the labels, mapped if it maps."""
    rising = -predictions if lower_better else predictions
    return rising if protocol.correlated == "raw" or len(rising) < 2 else fit(rising, labels)(rising)


def _correlations(x: Numbers, y: Numbers) -> tuple[float | None, float | None, float | None]:
    """Spearman's, Pearson's and Kendall's (tau b)."""
    stats = load_optional("scipy.stats", "correlations need")
    if x.min() == x.max() or y.min() == y.max():
        return None, None, None
    found = (stats.spearmanr(x, y)[0], stats.pearsonr(x, y)[0], stats.kendalltau(x, y)[0])
    srcc, plcc, krcc = (float(value) if np.isfinite(value) else None for value in found)
    return srcc, plcc, krcc


def _falls(x: Numbers, y: Numbers) -> bool:
    """Whether ranks of y fall where those of x rise. A fitted curve would turn x around, so x is not mapped."""
    found = spearman(x, y)
    return found is not None and found < 0


def _rmse(x: Numbers, y: Numbers, added: float) -> float | None:
    return float(np.sqrt(np.mean((x - y) ** 2) + added)) if len(x) else None
