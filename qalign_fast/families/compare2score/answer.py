"""Logits against each anchor in, answers out: five preferences, and the score that explains them best.

Source: Compare2Score (NeurIPS 2024), sections 3.2 and 3.3, and its q_align/evaluate/scorer.py.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qalign_fast.families.compare2score.prompts import ANCHORS
from qalign_fast.families.family import Decode, Tail
from qalign_fast.families.prompt import Prompt
from qalign_fast.levels import Answer, softmax

Vector = npt.NDArray[np.float64]

_TEMPERATURE = np.float32(100)  # upstream divides logits by it
_WORTH = np.array([1, 0.75, 0.5, 0.25, 0], np.float32)  # superior to inferior
# Upstream's preferences of each anchor, worst first, over each.
_AMONG_ANCHORS = np.array(
    [
        [0.5, 2.5912809e-01, 3.3130276e-04, 1.6087297e-06, 1.1803027e-09],
        [7.4087191e-01, 0.5, 2.4985345e-01, 9.9954158e-02, 1.8675303e-08],
        [9.9966872e-01, 7.5014657e-01, 0.5, 4.9968880e-01, 2.4852838e-01],
        [9.9999839e-01, 9.0004587e-01, 5.0031120e-01, 0.5, 2.5400183e-01],
        [1.0, 1.0, 7.5147164e-01, 7.4599814e-01, 0.5],
    ]
)


def answer(outputs: npt.NDArray[np.float32], prompt: Prompt, decode: Decode, _: Tail) -> list[Answer]:
    """Logits [B, 5] against the first anchor, superior first -> answers; the prompt's parts ask about the others.

    An answer's logits and probabilities are the means over the anchors.
    """
    against = np.stack([outputs, *(decode(part) for part in prompt.parts)], axis=1)  # [B, A, 5]
    return [_answer(logits) for logits in against]


def _answer(logits: npt.NDArray[np.float32]) -> Answer:
    """Of one picture's logits [A, 5]."""
    probabilities = np.stack([softmax(row / _TEMPERATURE) for row in logits])
    preferences = (probabilities @ _WORTH).astype(np.float64)
    return Answer(score_of_preferences(preferences), logits.mean(0), probabilities.mean(0))


def score_of_preferences(preferences: Vector) -> float:
    """How far a picture is preferred to each anchor [A], on 0..1 -> its score, on 0..100.

    0 is the lowest and 100 the highest of the picture and its anchors.
    """
    among = np.full((ANCHORS + 1, ANCHORS + 1), 0.5)
    among[:-1, :-1] = _AMONG_ANCHORS
    among[-1, :-1], among[:-1, -1] = preferences, 1 - preferences
    scores = most_probable_scores(among)
    return float(100 * (scores[-1] - scores.min()) / (scores.max() - scores.min()))


def most_probable_scores(preferences: Vector) -> Vector:
    """Preferences [N, N] -> scores [N] of the highest probability a posteriori.

    They maximize sum_ij c_ij log sigmoid(s_i - s_j) - sum_i s_i² / 2, by Newton's steps in float64. The sum is strictly
    concave, so it has one maximum. Upstream goes 100 steps of Adam towards it, from a random start. (Its limit of 1e-6
    on the sigmoid would need scores that are 13.8 apart, which these never are.)
    """
    scores = np.zeros(len(preferences))
    for _ in range(_MOST_STEPS):
        lost = preferences * _sigmoid(scores[None, :] - scores[:, None])  # c_ij sigmoid(s_j - s_i)
        gradient = lost.sum(1) - lost.sum(0) - scores
        curve = lost * _sigmoid(scores[:, None] - scores[None, :])
        curve = curve + curve.T
        step = np.linalg.solve(np.diag(1 + curve.sum(1)) - curve, gradient)
        scores = scores + step
        if np.abs(step).max() < _CLOSE:
            break
    return scores


_MOST_STEPS = 50  # six are enough for any preferences
_CLOSE = 1e-12


def _sigmoid(x: Vector) -> Vector:
    y: Vector = 1 / (1 + np.exp(-x))
    return y
