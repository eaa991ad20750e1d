"""The order of the rows of B sequences, by modality: B*V visual rows, then B*S text rows.

The decoder's norms, keys and values have one weight for each modality. In this order a linear that both modalities
share is one product over all rows. A linear with two weights is two products over two slices.

Letters: B batch, V visual tokens, S text tokens, P prefix tokens, T = V + S, N = B*T rows, D width, Dh head width.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from qalign_fast.families.mplug_owl2.sizes import DecoderConfig
from qalign_kernels.contract.operations import Operations
from qalign_kernels.contract.weight import Array


class Layout(NamedTuple):
    """The places of each sequence's rows, and the rotary tables of their positions."""

    batch: int
    visual: int  # V
    turns: Array  # [2, T, Dh]: cosines and sines of the positions

    @property
    def split(self) -> int:
        """The first text row, B*V."""
        return self.batch * self.visual

    def rows(self, visual: Array, text: Array, ops: Operations) -> Array:
        """Visual rows [B, V, D] and text rows [S, D], which all sequences share -> rows [N, D]."""
        width = text.shape[-1]
        return ops.cat((visual.reshape(-1, width), ops.repeat(text, self.batch).reshape(-1, width)))

    def last(self, count: int) -> slice:
        """The slice of `count` rows that takes the last row of each sequence."""
        text = (count - self.split) // self.batch
        return slice(self.split + text - 1, None, text)


def turns_of(config: DecoderConfig, start: int, count: int) -> npt.NDArray[np.float32]:
    """[2, T, Dh]: cosines and sines of `count` positions from `start`.

    Frequencies and angles are rounded to float32, as upstream's are. Powers, cosines and sines are computed in float64
    and rounded, so that every machine has the same bits.
    """
    width = config.width // config.heads
    frequency = np.power(config.rope_theta, -np.arange(0, width, 2) / width).astype(np.float32)
    angle = np.outer(np.arange(start, start + count, dtype=np.float32), frequency).astype(np.float64)
    angle = np.tile(angle, 2)  # both halves have the same angles
    return np.stack((np.cos(angle), np.sin(angle))).astype(np.float32)
