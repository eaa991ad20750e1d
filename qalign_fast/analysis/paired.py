"""Two runs' scores of the same pictures in; how far the second is from the first, with 95 % intervals, out.

What a quantized build costs cannot be seen in two SRCCs: a loss of .0015 lies well inside the interval of either.
Paired, each picture with itself, it can. `verify`, `evaluate --against` and their reports all use what is here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qalign_fast.analysis.measures import flip_share, mean_ranks
from qalign_fast.analysis.resampling import Bootstrap, Interval

if TYPE_CHECKING:
    import numpy.typing as npt

    Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PairedChange:
    """How far scores moved, `new` less `old`, each picture with itself. Shares are 0..1; None of too few pictures.

    pairs: pictures with a score in both. mean: of the changes, with their sign. mean_absolute, largest: without it.
    srcc, plcc: between the two runs. rank_flips: share of all pairs of pictures whose order is reversed.
    changed_ranks: share of pictures whose rank is another. level_flips: share of pictures whose level is another, of
    those whose level is known in both runs.
    """

    pairs: int
    mean: Interval
    mean_absolute: float | None
    largest: float | None
    srcc: Interval
    plcc: Interval
    rank_flips: float | None
    changed_ranks: float | None
    level_flips: float | None


@dataclass(frozen=True)
class LabelledChange:
    """The same, and what it does to the agreement with labels: the correlations of `new` less those of `old`."""

    change: PairedChange
    srcc: Interval
    plcc: Interval


def paired_change(
    old: Numbers, new: Numbers, levels: tuple[npt.NDArray[Any], npt.NDArray[Any]], bootstrap: Bootstrap
) -> PairedChange:
    """old, new: scores [n] of the same pictures. levels: each run's levels, of those pictures whose level is known in
    both. bootstrap: over the pictures' units.
    """
    moved = np.abs(new - old)
    some = len(moved) > 0
    return PairedChange(
        pairs=len(moved),
        mean=bootstrap.mean(new - old),
        mean_absolute=float(moved.mean()) if some else None,
        largest=float(moved.max()) if some else None,
        srcc=bootstrap.srcc(old, new),
        plcc=bootstrap.plcc(old, new),
        rank_flips=flip_share(old, new),
        changed_ranks=float(np.mean(mean_ranks(old) != mean_ranks(new))) if some else None,
        level_flips=float(np.mean(levels[0] != levels[1])) if len(levels[0]) else None,
    )


def labelled_change(
    old: Numbers,
    new: Numbers,
    labels: Numbers,
    levels: tuple[npt.NDArray[Any], npt.NDArray[Any]],
    bootstrap: Bootstrap,
) -> LabelledChange:
    """As `paired_change`. labels: [n]; scores are to rise with them."""
    return LabelledChange(
        change=paired_change(old, new, levels, bootstrap),
        srcc=bootstrap.srcc_change(old, new, labels),
        plcc=bootstrap.plcc_change(old, new, labels),
    )
