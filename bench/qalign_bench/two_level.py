"""A linear's float32 weight in, 4-bit weights whose products are one int32 sum over all inputs out: a form to weigh.

    ŵ = s_n · k_ng · (w - z_ng), w and z in 0..15, k in 1..16, |k_ng (w - z_ng)| <= 127, one float scale s_n per channel

k (w - z) are int8 weights, so that rows that have one scale each multiply with them as int8's do: no float32 between
groups. That is QServe's idea (Lin et al. 2024). `qalign_kernels.linear`'s int4 has a float scale per group instead.

Letters: K inputs, N output channels, g inputs a group, G = ceil(K / g) groups, C blocks of B inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from qalign_export.quantizer import _factor

Grid = tuple[Tensor, Tensor]  # one group's multiplier k and zero point z [N]

_LEVELS, _MIDDLE, _LARGEST, _MULTIPLIERS = 15, 8, 127, 16
_FACTORS = (0.72, 0.79, 0.86, 0.93, 1.0, 1.08)  # of max|w| / 127, tried for s_n
_TRIED = 5  # multipliers tried for a group: the first that reaches its whole range, and those below, which clip it
_DAMPING = 0.2  # as qalign_export.quantizer's


@dataclass(frozen=True)
class Search:
    """What is tried beside the plain choice: the largest weight at 127, the range's own multiplier and zero point."""

    scale: bool = True  # s_n of the least error, among _FACTORS
    clip: bool = True  # smaller multipliers
    zeros: tuple[int, ...] | None = (-1, 0, 1)  # off the range's own; None: 8 for all, which need not be kept
    refit: bool = True  # at the end the s_n of least squares


@dataclass(frozen=True)
class TwoLevel:
    """The form's tensors, each as whole numbers in float32 but for the scale."""

    steps: Tensor  # w - z [N, G, g]
    multiplier: Tensor  # [N, G]
    scale: Tensor  # [N]

    def eight_bit(self, width: int) -> Tensor:
        """k (w - z) [N, K = width]."""
        return (self.steps * self.multiplier.unsqueeze(-1)).flatten(1)[:, :width]

    def expand(self, width: int) -> Tensor:
        """ŵ float32 [N, K = width]."""
        return self.eight_bit(width) * self.scale.unsqueeze(1)


def quantize_two_level(
    weight: Tensor, group: int, hessian: Tensor | None = None, search: Search = Search()
) -> TwoLevel:
    """float32 [N, K] -> the form, to the nearest or, with `gram`'s matrices [C, B, B], as GPTQ does."""
    width, rest = weight.shape[1], -weight.shape[1] % group
    columns = F.pad(weight, (0, rest)).T.contiguous()  # [K, N]
    if hessian is None:
        blocks, importance = None, torch.ones(len(columns))
    else:
        blocks, by_block = _factor(hessian, group, _DAMPING)
        importance = by_block.flatten()[: len(columns)]
    scale = _scale(columns, importance, group, search)
    groups = list(_round(columns, importance, blocks, scale, group, search))
    steps, multipliers = (torch.stack(parts).movedim(-1, 0) for parts in zip(*groups, strict=True))
    found = TwoLevel(steps, multipliers, scale)
    assert found.eight_bit(width).abs().max() <= _LARGEST
    if search.refit:
        found = TwoLevel(steps, multipliers, _refit(weight, found.eight_bit(width), hessian, scale))
    return found


def _scale(columns: Tensor, importance: Tensor, group: int, search: Search) -> Tensor:
    """s [N], by the error of all groups, each rounded to the nearest."""
    plain = columns.abs().amax(0) / _LARGEST
    plain = torch.where(plain > 0, plain, 1.0)
    if not search.scale:
        return plain
    best, found = torch.full_like(plain, torch.inf), plain
    parts = list(zip(torch.split(columns, group), torch.split(importance, group), strict=True))
    few = Search(clip=search.clip, zeros=search.zeros and (0,))
    for factor in _FACTORS:
        scale = plain * factor
        error = torch.stack([_grid(part, d, scale, few)[1] for part, d in parts]).sum(0)
        found = torch.where(error < best, scale, found)
        best = torch.minimum(error, best)
    return found


def _round(
    columns: Tensor, importance: Tensor, blocks: Tensor | None, scale: Tensor, group: int, search: Search
) -> Iterator[tuple[Tensor, Tensor]]:
    """Each group's w - z [g, N] and k [N]; with `_factor`'s M, later inputs make up for the errors of earlier ones."""
    errors = torch.empty_like(columns)
    for first in range(0, len(columns), group):
        wanted, here = columns[first : first + group], errors[first : first + group]
        target, size = wanted.clone(), len(columns) if blocks is None else blocks.shape[1]
        block, at = divmod(first, size)
        if blocks is not None:
            m = blocks[block]
            target += m[:at, at : at + group].T @ errors[first - at : first]
        (k, z), _ = _grid(target, importance[first : first + group], scale, search)
        low, high = _reach(k, z)
        step = k * scale
        steps = torch.empty_like(target)
        for j in range(group):
            if blocks is not None:
                target[j] += m[at : at + j, at + j] @ here[:j]
            steps[j] = (target[j] / step).round_().clamp_(low, high)
            here[j] = wanted[j] - steps[j] * step
        yield steps, k


def _grid(target: Tensor, importance: Tensor, scale: Tensor, search: Search) -> tuple[Grid, Tensor]:
    """[g, N] -> the multiplier and zero point [N] of the least squared error, each input's weighted, and that error."""
    low, high = target.amin(0).clamp_max(0), target.amax(0).clamp_min(0)
    if search.zeros is None:
        unit = torch.maximum(-low / _MIDDLE, high / (_LEVELS - _MIDDLE))
        low, high = -unit * _MIDDLE, unit * (_LEVELS - _MIDDLE)
    span = torch.where(high > low, high - low, 1.0)
    first = (span / (_LEVELS * scale)).ceil_() if search.clip else (span / (_LEVELS * scale)).round_()
    middle = (-low * _LEVELS / span).round_()
    best = torch.full_like(scale, torch.inf)
    multiplier = zero = best
    for less in range(_TRIED if search.clip else 1):
        k = (first - less).clamp_(1, _MULTIPLIERS)
        step = k * scale
        ratio = target / step
        nearest = ratio.round()
        for off in search.zeros or (0,):
            z = (middle + off).clamp_(0, _LEVELS)
            error = (importance @ (ratio - nearest.clamp(*_reach(k, z))).square_()) * step.square()
            better = error < best
            best = torch.where(better, error, best)
            multiplier, zero = torch.where(better, k, multiplier), torch.where(better, z, zero)
    return (multiplier, zero), best


def _reach(k: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest w - z: of 4 bits, and of 8 when multiplied."""
    most = (_LARGEST / k).floor_()
    return -torch.minimum(z, most), torch.minimum(_LEVELS - z, most)


def _refit(weight: Tensor, eight_bit: Tensor, hessian: Tensor | None, scale: Tensor) -> Tensor:
    """s [N] of the least (w - s q) H (w - s q)ᵀ, the Hessian's blocks one by one, damped as GPTQ's."""
    if hessian is None:
        read = eight_bit
    else:
        rest = hessian.shape[0] * hessian.shape[1] - weight.shape[1]
        parts = F.pad(eight_bit, (0, rest)).view(-1, *hessian.shape[:2]).transpose(0, 1)  # [C, N, B]
        diagonal = hessian.diagonal(dim1=1, dim2=2)
        used = (diagonal > 0).sum(1).clamp_min(1)
        damping = (_DAMPING * diagonal.sum(1) / used).view(-1, 1, 1)
        read = (parts @ hessian + damping * parts).transpose(0, 1).flatten(1)[:, : weight.shape[1]]
    fitted = (weight * read).sum(1) / (eight_bit * read).sum(1)
    return torch.where(fitted > 0, fitted, scale)
