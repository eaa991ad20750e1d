"""The decoder's outputs in, answers out: the token that wins, the row after it, and an MLP on that row.

The head gives the five score tokens' logits and the MLP's first layer before its ReLU, as one linear. What is left of
the MLP is small and is computed here, in numpy and float32.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from qalign_fast.families.family import Decode, Tail
from qalign_fast.families.mplug_owl2.sizes import ModelConfig
from qalign_fast.families.prompt import Prompt
from qalign_fast.families.schema import Shape
from qalign_fast.levels import LEVELS, Answer, softmax

Row = npt.NDArray[np.float32]
LOW, HIGH = 0.0, 5.0  # upstream clamps to them


def answer(outputs: npt.NDArray[np.float32], prompt: Prompt, decode: Decode, tail: Tail) -> list[Answer]:
    """Outputs [B, 5 + H] of the prompt -> answers, H the width of the MLP's first layer.

    Upstream takes the token that wins in the whole vocabulary. Here it is the one that wins among the five, which is
    the same in a trained model. `decode` gives the row after it.
    """
    logits = outputs[:, : len(LEVELS)]
    winners = logits.argmax(1)
    first = np.empty((len(outputs), outputs.shape[1] - len(LEVELS)), np.float32)
    for place, part in enumerate(prompt.parts):
        rows = np.flatnonzero(winners == place).tolist()
        if rows:
            first[rows] = decode(part, None if len(rows) == len(outputs) else rows)[:, len(LEVELS) :]
    # one by one: a product of several rows could be rounded in another way, and a score depend on its neighbours
    values = [min(max(value_of(row, tail), LOW), HIGH) for row in first]
    return [Answer(value, row, softmax(row)) for value, row in zip(values, logits, strict=True)]


def value_of(first: Row, tail: Tail) -> float:
    """The MLP's first layer [H] before its ReLU -> what its last layer gives.

    A layer whose input is as wide as its output adds it.
    """
    x = np.maximum(first, 0)
    *hidden, last = range(1, 1 + len(tail) // 2)
    for i in hidden:
        y = np.maximum(_layer(i, x, tail), 0)
        x = x + y if len(x) == len(y) else y
    return float(_layer(last, x, tail)[0])


def tail(config: ModelConfig) -> Mapping[str, Shape]:
    """The tensors of the MLP after its first layer, and their shapes."""
    widths, shapes = (*config.mlp, 1), dict[str, Shape]()
    for i in range(1, len(widths)):
        shapes |= {f"mlp.{i}.weight": (widths[i], widths[i - 1]), f"mlp.{i}.bias": (widths[i],)}
    return shapes


def _layer(i: int, x: Row, tail: Tail) -> Row:
    y: Row = tail[f"mlp.{i}.weight"] @ x + tail[f"mlp.{i}.bias"]
    return y
