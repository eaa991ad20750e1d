"""A name in, how its 4 bits round weights and rows and move outliers out: today's int4 and the two-level forms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from qalign_bench.two_level import Search, quantize_two_level
from qalign_export.quantizer import (
    _MARGIN,
    _migrations,
    _sample,
    choose_migration,
    expand,
    quantize_int4,
)
from qalign_kernels.linear import fake_rows

WHOLE = Search()


@dataclass(frozen=True)
class Form:
    """One way to have 4 bits."""

    name: str
    group: int  # inputs that share a multiplier, or a float scale in today's
    rows: int | None = None  # inputs of a row that share a scale; None: all of them
    search: Search | None = WHOLE  # None: today's weights, a float scale per group
    shares: tuple[float, ...] | None = None  # of the ranges, given to weights by a migration; None: as int4 chooses
    exact_rows: bool = False  # the loss of weights alone

    @property
    def weights_key(self) -> tuple:
        """The same for forms that differ in how they read rows alone: they have the same weights.

        A form that has shares of its own chooses among them by its rows as well.
        """
        return self.group, self.search, self.shares and (*self.shares, self.rows)

    def bits(self, width: int) -> float:
        """Of a weight, its share of scales, multipliers and zero points included."""
        if self.search is None:
            return 4 + 36 / self.group
        return 4 + (4 if self.search.zeros is None else 8) / self.group + 32 / width

    def weights(self, weight: Tensor, hessian: Tensor | None) -> Tensor:
        """ŵ [N, K]."""
        width = weight.shape[1]
        if self.search is None:
            return expand(quantize_int4(weight, self.group, hessian), width)
        return quantize_two_level(weight, self.group, hessian, self.search).expand(width)

    def read(self, x: Tensor) -> Tensor:
        """x̂ [..., K]."""
        return x if self.exact_rows else fake_rows(x, self.rows)

    def migration(self, weights: Sequence[Tensor], rows: Tensor) -> Tensor:
        """s [K]: `choose_migration`'s, or its rule with this form's own shares and rounding."""
        if self.shares is None:
            return choose_migration(weights, rows, "int4", 128)
        half = max(1, len(rows) // 2)
        seen, unseen, none = rows[:half], rows[half:], torch.ones(rows.shape[1])
        weights = [_sample(w) for w in weights]

        def error(s: Tensor, rows: Tensor) -> float:
            return sum(self._error(w * s, _sample(rows) / s) for w in weights)

        best = min([none, *_migrations(weights, seen, self.shares)], key=lambda s: error(s, seen))
        return best if error(best, unseen) < _MARGIN * error(none, unseen) else none

    def _error(self, weight: Tensor, rows: Tensor) -> float:
        y = F.linear(rows, weight)
        off = F.linear(fake_rows(rows, self.rows), self.weights(weight, None)) - y
        return float(off.square().sum() / y.square().sum().clamp_min(1e-30))
