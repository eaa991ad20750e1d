"""An evaluation in, pictures of it out: predicted against labelled, residuals by source unit, error by level."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from qalign_fast.evaluation.evaluation import Evaluation
from qalign_fast.evaluation.lists.optional import load_optional
from qalign_fast.levels import LEVELS
from qalign_fast.records import printable

if TYPE_CHECKING:
    import numpy.typing as npt

    Numbers = npt.NDArray[np.float64]

_INK, _MUTED, _ACCENT, _MARK = "#171b20", "#555e6a", "#0d6b70", "#b5443a"
_MOST_UNITS = 40  # that have a place of their own; of more, those whose residuals are the largest
_DOTS_PER_INCH = 160


Plots: TypeAlias = Mapping[str, bytes]  # a name -> a PNG


def draw_plots(evaluation: Evaluation) -> Plots:
    """A PNG for each name: "scatter", "residuals", "levels". The same evaluation gives the same pictures.

    Raises MissingExtraError where matplotlib is not installed.
    """
    draws: dict[str, Callable[[Any, Evaluation], None]] = {
        "scatter": _scatter,
        "residuals": _residuals,
        "levels": _levels,
    }
    return {name: _draw(draw, evaluation) for name, draw in draws.items()}


def residuals_of(evaluation: Evaluation) -> Numbers:
    """The label less the fitted curve at the score, on the labels' scale: [n], of the entries that have a score."""
    mapping, has = evaluation.agreement.mapping, evaluation.scored
    scores, labels = evaluation.predictions.scores[has], evaluation.targets[has]
    if mapping is None:
        return np.full(len(scores), np.nan)
    residuals: Numbers = labels - mapping(-scores if evaluation.labels.lower_better else scores)
    return residuals


def _draw(draw: Callable[[Any, Evaluation], None], evaluation: Evaluation) -> bytes:
    backend = load_optional("matplotlib.backends.backend_agg", "plots need")
    figure = load_optional("matplotlib.figure", "plots need").Figure(figsize=(5.2, 4.0), layout="constrained")
    backend.FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#d5dae0", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_MUTED)
    draw(axes, evaluation)
    axes.set_title(_title(evaluation), loc="left", fontsize=10, color=_INK, parse_math=False)  # "$" is no formula
    png = BytesIO()
    figure.savefig(png, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
    return png.getvalue()


def _title(evaluation: Evaluation) -> str:
    known = evaluation.labels.known
    name = known.title if known else evaluation.labels.name
    return f"{printable(name)[:60]}: n = {evaluation.expected - evaluation.failed}"


def _scatter(axes: Any, evaluation: Evaluation) -> None:
    has, mapping = evaluation.scored, evaluation.agreement.mapping
    scores, labels = evaluation.predictions.scores[has], evaluation.targets[has]
    size = float(np.clip(4000 / len(scores), 3, 20))
    axes.scatter(scores, labels, s=size, alpha=0.35, color=_ACCENT, edgecolors="none", rasterized=True)
    if mapping is not None:
        x = np.linspace(scores.min(), scores.max(), 200)
        curve = mapping(-x if evaluation.labels.lower_better else x)
        axes.plot(x, curve, color=_MARK, linewidth=2, label=f"{mapping.name}, fitted on these labels")
        axes.legend(frameon=False, fontsize=9)
    scale = evaluation.predictions.scale
    axes.set_xlabel("predicted score" + (f", {scale[0]:g} to {scale[1]:g}" if scale else ""))
    axes.set_ylabel("label" + (", lower is better" if evaluation.labels.lower_better else ""))


def _residuals(axes: Any, evaluation: Evaluation) -> None:
    residuals, has = residuals_of(evaluation), evaluation.scored
    units = [entry.unit for entry, chosen in zip(evaluation.labels.entries, has.tolist(), strict=True) if chosen]
    names, codes = np.unique(np.array(units), return_inverse=True)
    if len(names) == len(units):
        axes.scatter(evaluation.predictions.scores[has], residuals, s=8, alpha=0.4, color=_ACCENT, edgecolors="none")
        axes.set_xlabel("predicted score (each entry is a source unit of its own)")
    else:
        groups = [residuals[codes == i] for i in range(len(names))]
        order = sorted(range(len(names)), key=lambda i: float(np.median(groups[i])))
        if len(order) > _MOST_UNITS:
            order = [*order[: _MOST_UNITS // 2], *order[-_MOST_UNITS // 2 :]]
        box = {"boxprops": {"facecolor": "#54a09b", "edgecolor": _MUTED}, "medianprops": {"color": _INK}}
        axes.boxplot([groups[i] for i in order], patch_artist=True, flierprops={"markersize": 2}, widths=0.7, **box)
        axes.set_xticks(
            range(1, len(order) + 1),
            [printable(names[i])[:18] for i in order],
            rotation=90,
            fontsize=6,
            parse_math=False,
        )
        shown = f"{len(order)} of {len(names)}, the farthest" if len(order) < len(names) else str(len(names))
        axes.set_xlabel(f"source unit ({shown})")
    axes.axhline(0, color=_MARK, linewidth=1)
    axes.set_ylabel("label less fitted curve")


def _levels(axes: Any, evaluation: Evaluation) -> None:
    """By the level of the label: the labels' range cut into five equal parts, as the paper's training cuts it."""
    residuals, labels = residuals_of(evaluation), evaluation.targets[evaluation.scored]
    worth = -labels if evaluation.labels.lower_better else labels
    span = worth.max() - worth.min()
    places = np.clip(np.ceil(5 * (worth - worth.min()) / span) - 1, 0, 4).astype(int) if span else np.zeros(len(worth))
    groups = [np.abs(residuals[places == i]) for i in range(5)]
    means = [float(group.mean()) if len(group) else 0.0 for group in groups]
    colours = ["#b5443a", "#d98a4b", "#b3ab72", "#54a09b", "#0d6b70"]
    axes.bar(range(5), means, color=colours, width=0.7)
    for i, (group, mean) in enumerate(zip(groups, means, strict=True)):
        axes.annotate(f"n = {len(group)}", (i, mean), ha="center", va="bottom", fontsize=9, color=_MUTED)
    axes.set_xticks(range(5), LEVELS[::-1])
    axes.set_xlabel("level of the label")
    axes.set_ylabel("mean absolute error, on the labels' scale")
