"""Which end of a list's labels is the better one, where neither a known list nor the form tells it.

DMOS is lower for better pictures in LIVE and CSIQ. Others' lists of the same pictures turn it around, under the same
names. So it is not taken from the data set's name: what the names say of the distortion's level decides.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

from qalign_fast.errors import ListError
from qalign_fast.evaluation.lists.checks import CSIQ_NAME, LIVE_NAME
from qalign_fast.evaluation.lists.entries import Labelled

# the pictures of one series differ in the distortion's level alone, the last number
_LEVELS = (
    re.compile(r"(.*[Ii]\d\d_\d\d)_(\d\d?)\.(?:png|bmp)", re.IGNORECASE),  # KADID-10k, TID2013: I01_01_01.png
    re.compile(r"(.*\.(?:AWGN|BLUR|fnoise|JPEG|jpeg2000))\.(\d)\.png"),  # CSIQ; contrast may fall and rise again
)
_ENOUGH = 4  # pairs of levels that are next to each other
_MOST = 0.75  # of these pairs; of KADID-10k's 7,959 pairs 0.87 fall, of CSIQ's 600 all rise
_REFERENCES = 0.1  # of LIVE's pictures; it has 0.21. A list that is turned around may have one 0, of the worst picture
_GOOD, _BAD = ("excellent", "good"), ("poor", "bad")


def find_direction(entries: Sequence[Labelled], column: str) -> tuple[bool, str | None]:
    """Whether lower is better, and a note where that was found out and not assumed.

    column: the label's, or "". Raises ListError for labels that could be either: of LIVE, of CSIQ, of a column "dmos".
    """
    steps = _steps(entries)
    if len(steps) >= _ENOUGH:
        rising = sum(steps) / len(steps)
        in_steps = f"with the distortion's level in {max(rising, 1 - rising):.0%} of {len(steps)} steps"
        if rising >= _MOST:
            return True, f"labels rise {in_steps}: lower is better"
        if rising <= 1 - _MOST:
            return False, f"labels fall {in_steps}"
    is_live = all(LIVE_NAME.fullmatch(entry.name) for entry in entries)
    zeros = sum(entry.label == 0 for entry in entries)
    if is_live and zeros >= _REFERENCES * len(entries) and not any(entry.label < 0 for entry in entries):
        return True, "labels of 0 are LIVE's references: lower is better"
    if is_live or column == "dmos" or all(CSIQ_NAME.fullmatch(entry.name) for entry in entries):
        what = f"its labels are called {column!r}" if column == "dmos" else "its names are LIVE's or CSIQ's"
        raise ListError(f"{what}: lower is better in some such lists and higher in others; say which: lower_better")
    return False, None


def _steps(entries: Sequence[Labelled]) -> list[bool]:
    """For pictures of one series whose levels are next to each other: whether the label rises."""
    series: dict[str, dict[int, float]] = defaultdict(dict)
    for entry in entries:
        for pattern in _LEVELS:
            if match := pattern.fullmatch(entry.name):
                series[match[1]][int(match[2])] = entry.label
    return [
        b[1] > a[1]
        for levels in series.values()
        for a, b in pairwise(sorted(levels.items()))
        if b[0] == a[0] + 1 and b[1] != a[1]
    ]


def inverted_words(words: Sequence[tuple[str, float]], lower_better: bool) -> str | None:
    """A note, where the level words of a list that trains follow its labels the wrong way.

    words: the level word of each entry, and its label.
    """
    good = [label for word, label in words if word in _GOOD]
    bad = [label for word, label in words if word in _BAD]
    if not good or not bad or (sum(good) / len(good) < sum(bad) / len(bad)) == lower_better:
        return None
    return f'its words call {len(good)} of the worst entries "excellent" or "good": a model trained on it is inverted'
