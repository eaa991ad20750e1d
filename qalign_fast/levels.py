"""Five logits in, a `Score` out: float32 softmax over the level words, weighted 5, 4, 3, 2, 1.

Source: Q-Align (ICML 2024), sections 3.1 (rating to level) and 3.3 (level to score).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LEVELS = ("excellent", "good", "fair", "poor", "bad")
LEVEL_IDS = (15129, 1781, 6534, 6460, 4319)  # the family's tokenizer
WEIGHTS = np.array([5, 4, 3, 2, 1], np.float32)


@dataclass(frozen=True)
class Score:
    """What the model thinks of one picture or clip in one task.

    value: 1 (bad) to 5 (excellent), the probabilities' weighted sum.
    logits: the five level tokens' logits, excellent first.
    frames: how many frames were scored; None for a picture.
    warnings: what the reader of this score should know, such as frames left out.
    """

    task: str
    value: float
    logits: tuple[float, ...]
    probabilities: dict[str, float]
    frames: int | None = None
    warnings: tuple[str, ...] = ()

    @property
    def unit(self) -> float:
        """The same score on 0..1."""
        return (self.value - 1) / 4

    @property
    def level(self) -> str:
        """The word for the value, by the paper's five equal intervals on 1..5, so that it never contradicts the value.

        The one word the model would answer is the most probable, `max(probabilities, key=probabilities.get)`.
        """
        return level_of(self.value, 1, 5)


def score_of(
    logits: npt.NDArray[np.float32], task: str, *, frames: int | None = None, warnings: Sequence[str] = ()
) -> Score:
    """The Score of float32 logits [5], excellent first."""
    exp = np.exp(logits - logits.max(), dtype=np.float32)
    probabilities = exp / exp.sum(dtype=np.float32)
    return Score(
        task=task,
        value=min(max(float(probabilities @ WEIGHTS), 1.0), 5.0),  # rounding may step off the scale by an ulp
        logits=tuple(float(x) for x in logits),
        probabilities=dict(zip(LEVELS, (float(p) for p in probabilities), strict=True)),
        frames=frames,
        warnings=tuple(warnings),
    )


def level_of(mos: float, low: float, high: float) -> str:
    """The level word of a mean opinion score on a scale from low to high: five equal intervals, closed above.

    The training rule of the paper, equation 1: the interval i holds low + i/5 (high - low) < mos <= low + (i+1)/5
    (high - low); the lowest interval holds `low` too. Raises ValueError outside the scale.
    """
    if not low <= mos <= high or low == high:
        raise ValueError(f"{mos} is not on a scale from {low} to {high}")
    for i in range(1, 5):
        if mos <= low + i / 5 * (high - low):
            return LEVELS[5 - i]
    return LEVELS[0]
