"""Scores of pictures in; a ranking, and the probability that each is better than the next, out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Numbers = npt.NDArray[np.float64]

DIGITS = 4  # scores that are equal to so many digits tie


@dataclass(frozen=True)
class Place:
    """A picture's rank from 1 and its score. Pictures whose scores tie share a rank: 1, 2, 2, 4.

    tied: how many share it, this one included. better_than_next: the probability that its level is above that of the
    next one in the list, a tie counted as half; None for the last one, and without probabilities.
    """

    rank: int
    source: str
    score: float
    tied: int
    better_than_next: float | None


def make_ranking(sources: Sequence[str], scores: Numbers, probabilities: Numbers | None) -> list[Place]:
    """The best first; those that tie in the order in which they come.

    scores [n]. probabilities [n, L]: of each level, the best first.
    """
    rounded = np.round(scores, DIGITS)
    order = np.argsort(-rounded, kind="stable")
    in_order = -rounded[order]  # rising
    ranks = 1 + np.searchsorted(in_order, in_order)
    tied = np.searchsorted(in_order, in_order, side="right") + 1 - ranks
    better = [None] * len(order) if probabilities is None else _neighbours(probabilities[order])
    return [
        Place(rank, sources[at], float(scores[at]), count, probability)
        for rank, at, count, probability in zip(ranks.tolist(), order.tolist(), tied.tolist(), better, strict=True)
    ]


def better(a: Numbers, b: Numbers) -> Numbers:
    """`levels.probability_better` for arrays [n, L] of probabilities, the best level first: [n]."""
    worse = np.cumsum(b[:, ::-1], axis=1)[:, ::-1] - b  # of b's levels below each
    found: Numbers = np.sum(a * (worse + b / 2), axis=1) / (a.sum(axis=1) * b.sum(axis=1))
    return found


def _neighbours(probabilities: Numbers) -> list[float | None]:
    found = better(probabilities[:-1], probabilities[1:])
    return [*(None if np.isnan(p) else float(p) for p in found), *[None] * min(len(probabilities), 1)]
