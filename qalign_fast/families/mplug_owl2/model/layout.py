"""The order of the rows of B sequences, by modality: B*V visual rows, then B*S text rows.

The decoder's norms, keys and values have one weight for each modality. In this order a linear that both modalities
share is one product over all rows. A linear with two weights is two products over two slices.

Letters: B batch, V visual tokens, S text tokens, P prefix tokens, T = V + S, N = B*T rows, D width, Dh head width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from qalign_fast.families.mplug_owl2.sizes import DecoderConfig


class Layout(NamedTuple):
    """The places of each sequence's rows, and the rotary tables of their positions."""

    batch: int
    visual: int  # V
    turns: Tensor  # [2, T, Dh]: cosines and sines of the positions

    @classmethod
    def of(cls, config: DecoderConfig, batch: int, visual: int, text: int, start: int, device: torch.device) -> Layout:
        """The layout of `batch` sequences, whose first position is `start`."""
        return cls(batch, visual, turns_of(config, start, visual + text, device))

    @property
    def split(self) -> int:
        """The first text row, B*V."""
        return self.batch * self.visual

    def rows(self, visual: Tensor, text: Tensor) -> Tensor:
        """Visual rows [B, V, D] and text rows [S, D], which all sequences share -> rows [N, D]."""
        return torch.cat((visual.flatten(0, 1), text.expand(self.batch, -1, -1).flatten(0, 1)))

    def last(self, count: int) -> slice:
        """The slice of `count` rows that takes the last row of each sequence."""
        text = (count - self.split) // self.batch
        return slice(self.split + text - 1, None, text)


def turns_of(config: DecoderConfig, start: int, count: int, device: torch.device) -> Tensor:
    """[2, T, Dh]: cosines and sines of `count` positions from `start`."""
    width = config.width // config.heads
    frequency = config.rope_theta ** (-torch.arange(0, width, 2, device=device).float() / width)
    positions = torch.arange(start, start + count, device=device).float()
    angle = positions.outer(frequency).repeat(1, 2)  # both halves have the same angles
    return torch.stack((angle.cos(), angle.sin()))
