"""Predictions and labels in, predictions on the labels' scale out: by a logistic curve, a line, or mean and spread.

Subjective quality is not linear at its ends, so some protocols fit a curve before they compare. All fits here are made
on the very data that they are then judged on ("test-fit"), as those protocols do. It adds .002 to .015 to strong
models' PLCC, so a mapped figure never stands without that word.

Source: VQEG's final reports (monotonic logistic functions of 3 and 4 parameters), by scipy's `curve_fit`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qalign_fast.evaluation.lists.optional import load_optional

if TYPE_CHECKING:
    import numpy.typing as npt

    Numbers = npt.NDArray[np.float64]

_EVALUATIONS = 10_000  # of the curve, before a fit is given up


@dataclass(frozen=True)
class Mapping:
    """A fitted function from predictions to labels, and its name: "logistic4", "logistic3" or "linear".

    failed: the functions that were tried before, and did not fit.
    """

    name: str
    parameters: tuple[float, ...]
    failed: tuple[str, ...] = ()

    def __call__(self, x: Numbers) -> Numbers:
        return _FUNCTIONS[self.name](np.asarray(x, np.float64), *self.parameters)


def fit(x: Numbers, y: Numbers) -> Mapping:
    """The logistic of 4 parameters of predictions x that fits labels y [n] best; if that fails 3, then a line."""
    failed: list[str] = []
    for name, start in _starts(x, y).items():
        if (found := _fit(name, start, x, y)) is not None:
            return Mapping(name, found, tuple(failed))
        failed.append(name)
    return Mapping("linear", _line(x, y), tuple(failed))


def match_spread(x: Numbers, y: Numbers) -> Numbers:
    """Predictions x [n] with the mean and the standard deviation (of n) of the labels y, as FAST-VQA compares them."""
    matched: Numbers = standardize(x) * y.std() + y.mean()
    return matched


def standardize(x: Numbers) -> Numbers:
    """x [n] with mean 0 and standard deviation 1 (of n); zeros where all are equal."""
    centred = x - x.mean()
    spread = x.std()
    return centred / spread if spread > 0 else np.zeros_like(centred)


def _logistic4(x: Numbers, high: float, low: float, middle: float, width: float) -> Numbers:
    with np.errstate(over="ignore"):  # far below the middle: exp is inf, and the curve at its low end
        return np.asarray((high - low) / (1 + np.exp(-(x - middle) / abs(width))) + low)


def _logistic3(x: Numbers, high: float, slope: float, middle: float) -> Numbers:
    with np.errstate(over="ignore"):
        return np.asarray(high / (1 + np.exp(-slope * (x - middle))))


def _linear(x: Numbers, slope: float, offset: float) -> Numbers:
    return slope * x + offset


_FUNCTIONS: dict[str, Callable[..., Numbers]] = {
    "logistic4": _logistic4,
    "logistic3": _logistic3,
    "linear": _linear,
}


def _starts(x: Numbers, y: Numbers) -> dict[str, list[float]]:
    """Where a fit begins. That of 4 parameters is the one that DeQA-Score's and pyiqa's published figures began at."""
    spread = float(x.std())
    return {
        "logistic4": [float(y.max()), float(y.min()), float(x.mean()), spread / 4],
        "logistic3": [float(y.max()), 1 / spread if spread else 0.0, float(x.mean())],
    }


def _fit(name: str, start: list[float], x: Numbers, y: Numbers) -> tuple[float, ...] | None:
    """The parameters; None where there is no fit."""
    optimize = load_optional("scipy.optimize", "fits need")
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore", optimize.OptimizeWarning)  # that the parameters' covariance is not known
            found, _ = optimize.curve_fit(_FUNCTIONS[name], x, y, p0=start, maxfev=_EVALUATIONS)
            mapped = _FUNCTIONS[name](x, *found)
    except (RuntimeError, TypeError, ValueError):  # no end of the steps, fewer pairs than parameters, not finite
        return None
    if not np.isfinite(mapped).all() or mapped.std() <= 1e-12 * max(1.0, float(np.abs(mapped).max())):
        return None
    return tuple(float(value) for value in found)


def _line(x: Numbers, y: Numbers) -> tuple[float, float]:
    centred = x - x.mean()
    spread = float(centred @ centred)
    slope = float(centred @ y) / spread if spread else 0.0
    return slope, float(y.mean() - slope * x.mean())
