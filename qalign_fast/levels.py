"""The logits of the level words in, a `Score` out: float32 softmax, weighted by what each level is worth.

Source: Q-Align (ICML 2024), sections 3.1 (rating to level) and 3.3 (level to score).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from fractions import Fraction

    import numpy.typing as npt

LEVELS = ("excellent", "good", "fair", "poor", "bad")


@dataclass(frozen=True)
class Scale:
    """The level words that a family answers with, the best first, and what each is worth."""

    words: tuple[str, ...]
    values: tuple[float, ...]  # in falling order, evenly spaced

    @property
    def low(self) -> float:
        """The value of the worst level."""
        return self.values[-1]

    @property
    def high(self) -> float:
        """The value of the best level."""
        return self.values[0]


FIVE_LEVELS = Scale(LEVELS, (5.0, 4.0, 3.0, 2.0, 1.0))  # Q-Align's
WEIGHTS = np.array(FIVE_LEVELS.values, np.float32)


class Answer(NamedTuple):
    """What a model answers to a prompt about one picture or clip; float32, the best level first."""

    value: float
    logits: npt.NDArray[np.float32]
    probabilities: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Score:
    """The model's score of one picture or clip in one task.

    value: a number on the scale, Q-Align's 1 (bad) to 5 (excellent): the weighted sum of the probabilities, unless the
    family has a rule of its own.
    logits: the logits of the level tokens, the best level first.
    probabilities: the probability of each level word, the best level first; they sum to 1.
    frames: the number of frames that were scored; None for a picture.
    warnings: what the reader of this score should know, for example that frames were left out.
    """

    task: str
    value: float
    logits: tuple[float, ...]
    probabilities: dict[str, float]
    frames: int | None = None
    warnings: tuple[str, ...] = ()
    scale: Scale = FIVE_LEVELS

    @property
    def unit(self) -> float:
        """The same score on 0..1."""
        return (self.value - self.scale.low) / (self.scale.high - self.scale.low)

    @property
    def level(self) -> str:
        """The level word for the value, by the paper's equal intervals, so that it never contradicts the value.

        The word that the model itself would answer is the most probable one, `max(probabilities,
        key=probabilities.get)`.
        """
        return level_of(self.value, self.scale.low, self.scale.high, self.scale.words)


def score_of(
    logits: npt.NDArray[np.float32],
    task: str,
    *,
    scale: Scale = FIVE_LEVELS,
    frames: int | None = None,
    warnings: Sequence[str] = (),
) -> Score:
    """The Score of float32 logits [levels], the best level first: section 3.3 of the paper."""
    return make_score(answer_of(logits, scale), task, scale=scale, frames=frames, warnings=warnings)


def answer_of(logits: npt.NDArray[np.float32], scale: Scale) -> Answer:
    """The answer of float32 logits [levels], the best level first, by the same section."""
    probabilities = softmax(logits)
    value = float(probabilities @ np.array(scale.values, np.float32))
    return Answer(min(max(value, scale.low), scale.high), logits, probabilities)  # it may be off the scale by an ulp


def softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Float32 logits [levels] -> probabilities."""
    exp = np.exp(logits - logits.max(), dtype=np.float32)
    probabilities: npt.NDArray[np.float32] = exp / exp.sum(dtype=np.float32)
    return probabilities


def make_score(
    answer: Answer,
    task: str,
    *,
    scale: Scale = FIVE_LEVELS,
    frames: int | None = None,
    warnings: Sequence[str] = (),
) -> Score:
    """The Score of an answer to a task's prompt."""
    return Score(
        task=task,
        value=answer.value,
        logits=tuple(float(x) for x in answer.logits),
        probabilities=dict(zip(scale.words, (float(p) for p in answer.probabilities), strict=True)),
        frames=frames,
        warnings=tuple(warnings),
        scale=scale,
    )


def level_of(
    mos: float | Fraction, low: float | Fraction, high: float | Fraction, words: Sequence[str] = LEVELS
) -> str:
    """The level word of a mean opinion score on a scale from low to high, which is cut into equal intervals.

    This is the training rule of the paper, equation 1: of n intervals, number i holds low + i/n (high - low) < mos <=
    low + (i+1)/n (high - low), and the lowest also holds `low`. `words`: the best first. Of fractions the
    comparison is exact. Raises ValueError for a `mos` outside the scale.
    """
    if not low <= mos <= high or low == high:
        raise ValueError(f"{mos} is not on a scale from {low} to {high}")
    for i in range(1, len(words)):
        if mos <= low + i * (high - low) / len(words):  # i / 5 would be rounded first: 3 / 5 * 9 is below 5.4
            return words[-i]
    return words[0]


def probability_better(a: Score, b: Score) -> float:
    """The probability that the level of `a` is above that of `b`, where a tie counts as half.

    The two levels are taken to be independent, each distributed as its score's probabilities say. 0.5 for equal ones.
    """
    p, q = (np.array(list(score.probabilities.values()), np.float64) for score in (a, b))
    above = float(np.sum(np.triu(np.outer(p, q), 1)))  # the best level is first
    tie = float(p @ q)
    return (above + tie / 2) / float(p.sum() * q.sum())
