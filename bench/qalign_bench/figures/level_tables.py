"""The table of the study of levels: level_conversion.json in, markdown out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qalign_bench.figures.report import markdown_table

_HEADER = ["list", "labels", "on their own scale", "the list's words", "the paper", "words that differ"]


def conversion(found: Mapping[str, Any]) -> str:
    """What levels cost, and how upstream's words compare with ours."""
    rows = [
        [
            f"`{case['list']}`",
            f"{case['entries']:,}, {case['labels'][0]:.4g} to {case['labels'][1]:.4g}",
            _pair(case["ours"]),
            _pair(case["theirs"]) if "theirs" in case else "no words",
            _pair(case["paper"]) if case["paper"] else "",
            *_words(case),
        ]
        for case in found["lists"]
    ]
    made = markdown_table([*_HEADER, "a scale that gives the words", "words that differ on it"], rows)
    facts = found["environment"]
    return f"{made}\n\n`bench/results/level_conversion.json`, {facts['date'][:10]}. Correlations are SRCC / PLCC."


def _words(case: Mapping[str, Any]) -> list[str]:
    if "theirs" not in case:
        return ["", "", ""]
    differ = f"{case['differ']:,}" + (f", and {case['other_words']} other words" if case["other_words"] else "")
    if case["scale"] is None:
        return [differ, "none", ""]
    low, high = case["scale"]
    off = f"{case['differ_on_scale']:,}" + (f"; {case['outside']} labels lie beyond it" if case["outside"] else "")
    return [differ, f"{_span(*low)} to {_span(*high)}", off]


def _span(least: float, most: float) -> str:
    """An end of the scale, as far as the words fix it."""
    texts = [f"{end + 0.0:.4g}" for end in (round(least, 6), round(most, 6))]
    return texts[0] if texts[0] == texts[1] else "..".join(texts)


def _pair(figures: list[float]) -> str:
    return " / ".join(f"{figure:.3f}" for figure in figures)
