"""What levels cost, and whether ours are those of upstream's lists: docs/training_data.md has the table.

    python bench/studies/level_conversion.py LISTS... --json bench/results/level_conversion.json

LISTS are JSON lists of upstream's playground/data, which hold labels and mostly words; they are not in this repository.
Of each, its labels become levels by equation 1 on the scale from its lowest to its highest label. Where it has words,
those are compared with ours, and a scale is looked for on which equation 1 gives the list's own words.
"""

from __future__ import annotations

import argparse
import json
from bisect import bisect_right
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import linprog

from qalign_bench.figures.environment import environment
from qalign_fast.evaluation.training_data.conversations import level_in
from qalign_fast.evaluation.training_data.conversion import convert, cost
from qalign_fast.evaluation.training_data.labels import Labels
from qalign_fast.levels import LEVELS

PAPER = {  # data set -> SRCC, PLCC: table 2 of the paper, of its training sets
    "koniq": (0.952, 0.961),
    "spaq": (0.969, 0.968),
    "kadid": (0.979, 0.982),
    "ava": (0.920, 0.930),
    "lsvq": (0.940, 0.944),
}
RISING = LEVELS[::-1]


def main() -> None:
    """Measures the lists that are named, and writes the JSON."""
    parser = argparse.ArgumentParser(description="What levels cost, on upstream's lists.")
    parser.add_argument("lists", type=Path, nargs="+", help="JSON lists of upstream's playground/data")
    parser.add_argument("--json", type=Path, required=True, help="write the figures here")
    args = parser.parse_args()
    found = {"environment": environment("scipy"), "lists": [study(path) for path in args.lists]}
    args.json.write_text(json.dumps(found, indent=1) + "\n")


def study(path: Path) -> dict[str, Any]:
    """One list's figures. No label of it is among them but the lowest and the highest."""
    entries = json.loads(path.read_text("utf-8"))
    labels = labels_of(path, entries)
    made = convert(labels)
    case = {
        "list": f"{path.parent.name}/{path.stem}",
        "entries": len(entries),
        "labels": [made.low, made.high],
        "ours": [made.srcc, made.plcc],
        "paper": next((figures for name, figures in PAPER.items() if f"_{name}" in path.stem), None),
    }
    return case | (compare(labels, made.words, list(map(level_in, entries))) if "conversations" in entries[0] else {})


def labels_of(path: Path, entries: list[Any]) -> Labels:
    """An entry's label is its gt_score or, in lists without one, what follows the arrow in its id."""
    values = [float(entry["gt_score"] if "gt_score" in entry else entry["id"].rpartition("->")[2]) for entry in entries]
    return made_of(values, path.name)


def made_of(values: list[float], source: str = "") -> Labels:
    """Labels of these values, named by their places."""
    places = tuple(range(1, len(values) + 1))
    return Labels(source, "gt_score", tuple(map(str, places)), tuple(values), places)


def compare(labels: Labels, ours: tuple[str, ...], theirs: list[str]) -> dict[str, Any]:
    """Our words beside the list's: how many differ, on the labels' own scale and on that which fits best."""
    known = np.array([word in LEVELS for word in theirs])
    values, words = np.array(labels.values)[known], [word for word in theirs if word in LEVELS]
    same = sum(a == b for a, b in zip(ours, theirs, strict=True))
    plcc, srcc = cost(tuple(words), values)
    found = {"other_words": int((~known).sum()), "differ": len(words) - same, "theirs": [srcc, plcc]}
    if (scales := fit(values, words)) is None:
        return found | {"scale": None}
    low, high = scales[0]
    fitted = convert(made_of(np.clip(values, low, high).tolist()), low, high).words
    least, most = scales.min(0), scales.max(0)
    return found | {
        "scale": [[least[0], most[0]], [least[1], most[1]]],
        "outside": int(np.sum((values < least[0]) | (values > most[1]))),
        "differ_on_scale": sum(a != b for a, b in zip(fitted, words, strict=True)),
    }


def fit(values: np.ndarray, words: list[str]) -> np.ndarray | None:
    """Scales (low, high) [5, 2] whose edges part the words. None: there is none.

    The first has its edges as far from labels as may be; the others have the lowest and highest low and high.

    Edge i of a scale is low + i/5 (high - low). It may lie between the last label of the levels below it and the next
    one, where the parting is that which puts fewest labels on the wrong side. Levels without labels part nothing.
    """
    rank = np.array([RISING.index(word) for word in words])
    order, bounds, limits = np.sort(np.unique(values)).tolist(), [], []
    for i in range(max(rank.min() + 1, 1), rank.max() + 1):
        last, following = part(values[rank < i].tolist(), values[rank >= i].tolist(), order)
        share = i / len(RISING)
        bounds += [[share - 1, -share], [1 - share, share]]
        limits += [-last, following]
    middle = linprog([0, 0, -1], [[*bound, 1] for bound in bounds], limits, bounds=[(None, None)] * 2 + [(0, None)])
    goals = ([1, 0], [-1, 0], [0, 1], [0, -1])
    ends = [linprog(goal, bounds, limits, bounds=[(None, None)] * 2) for goal in goals]
    return None if middle.status else np.array([best.x[:2] for best in (middle, *ends)])


def part(below: list[float], above: list[float], order: list[float]) -> tuple[float, float]:
    """The label after which `below` and `above` are parted with fewest on the wrong side, and the next label."""
    below, above = sorted(below), sorted(above)
    wrong = [len(below) - bisect_right(below, edge) + bisect_right(above, edge) for edge in order]
    place = wrong.index(min(wrong))
    return order[place], order[min(place + 1, len(order) - 1)]


if __name__ == "__main__":
    main()
