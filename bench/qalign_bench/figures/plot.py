"""A bench's results in, a plot out: pictures a second over batch sizes, or where a picture's time goes.

The colours are Okabe and Ito's, which colour-blind readers can tell apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from qalign_bench.cli.session import Run
from qalign_bench.figures.report import Results, case, number, subject

_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999", "#F0E442")
_MARKERS = "osD^vPX*"


def draw(found: Results, path: Path) -> None:
    """Writes the file, in the format of its suffix."""
    runs = found["runs"]
    over_batches = found["scenario"] == "throughput" and len({run["batch"] for run in runs}) > 1
    rows = 4.2 if over_batches else 1.2 + 0.62 * len(runs)
    figure, axes = plt.subplots(figsize=(8.5, rows + 1.0), layout="constrained")
    (_batches if over_batches else _stations)(axes, runs)
    run = runs[0]
    figure.suptitle(subject(run), x=0.01, ha="left", size=12)
    facts = run["environment"]
    title = f"{run['device']}, {facts['date'][:10]}, qalign-fast {facts['packages']['qalign-fast']}"
    axes.set_title(title, loc="left", size=9, color="#555555")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _batches(axes: Axes, runs: Sequence[Run]) -> None:
    """A line for each contestant. Error bars span the rounds' medians."""
    for i, name in enumerate(dict.fromkeys(run["contestant"] for run in runs)):
        own = [run for run in runs if run["contestant"] == name]
        batches, speeds = [run["batch"] for run in own], [run["images_per_second"] for run in own]
        low, high = zip(*(run["images_per_second_range"] for run in own))
        bars = [[s - l for s, l in zip(speeds, low)], [h - s for s, h in zip(speeds, high)]]
        style: dict[str, Any] = {"color": _COLOURS[i % len(_COLOURS)], "marker": _MARKERS[i % len(_MARKERS)]}
        axes.errorbar(batches, speeds, bars, label=name, capsize=3, **style)
    axes.set_xscale("log", base=2)
    ticks = sorted({run["batch"] for run in runs})
    axes.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("pictures at a time")
    axes.set_ylabel("pictures a second (bars: range of the rounds' medians)")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False)


def _stations(axes: Axes, runs: Sequence[Run]) -> None:
    """A bar for each run, its stations end to end. A whisker spans the rounds' medians of the whole."""
    parts = [run["stations_ms"] or {"not told apart": run["ms_p50"]} for run in runs]
    names = list(dict.fromkeys(name for stations in parts for name in stations))
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(names)}
    for row, (run, stations) in enumerate(zip(runs, parts)):
        start = 0.0
        for name, ms in stations.items():
            axes.barh(row, ms, left=start, color=colours[name], height=0.6)
            start += ms
        medians = run["ms_round_medians"]
        axes.plot([min(medians), max(medians)], [row, row], color="black", linewidth=1.2, marker="|", markersize=8)
        speed = run["images_per_second"]
        text = f"  {number(run['ms_p50'])} ms" + (f", {number(speed)} pictures/s" if speed else "")
        axes.text(max(*medians, start), row, text, va="center", size=9)
    for name in names:
        axes.barh(0, 0, color=colours[name], label=name)
    labels = [f"{run['contestant']}, {case(run)}" for run in runs]
    axes.set_yticks(range(len(runs)), labels)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.35 * max(max(run["ms_round_medians"]) for run in runs))
    axes.set_xlabel(f"ms, {runs[0]['ms_of']}; medians (whisker: range of the rounds' medians)")
    axes.legend(frameon=False, ncols=len(names), loc="upper right", bbox_to_anchor=(1, 0), borderaxespad=3)
