"""A linear's float32 weight and rows it reads in, the 8- or 4-bit tensors of `qalign_kernels.linear` out.

    quantize_int8     to the nearest, per output channel
    quantize_fp8      the same in e4m3
    quantize_int4     groups of g inputs, to the nearest, or GPTQ where the rows' Gram matrix is given
    choose_migration  the scale s of each input that x / s and W·s round better with, or ones
    relative_error    what a linear's quantization does to its output: its sensitivity

Letters: R rows, K inputs, N output channels, g inputs a group, G = ceil(K / g) groups, C blocks of B inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from qalign_kernels.linear import (
    FP8,
    LARGEST,
    expand_fp8,
    expand_int4,
    expand_int8,
    fake_fp8_rows,
    fake_rows,
    pack_nibbles,
)

Groups = tuple[Tensor, Tensor, Tensor]  # one group's codes [g, N], scale [N] and zero point [N]

_LEVELS = 15  # the steps between the 16 values of 4 bits
# Measured by qalign_bench.real_weights, on rows of another text than the one they were found on:
_SHRINKS = (1.0, 0.93, 0.86, 0.79, 0.72)  # shares of a group's range tried: clipping an input that matters little
_DAMPING = 0.2  # added to the Gram matrix's diagonal, as a share of the mean there: the rows are few and others' differ
_SHARES = {"int8": (0.4, 0.5, 0.6), "int4": (0.15,)}  # of the ranges, given to weights: more would undo GPTQ's gain
_MARGIN = 0.8  # of the error without a migration: what a migration must reach on rows it has not seen
_SAMPLE = 512  # output channels and rows a half that a migration is judged by
MOVED = tuple(_SHARES)  # precisions that migrations are for
_CHUNK = 4096  # output channels quantized together: a group of them stays in a core's cache


def quantize_int8(weight: Tensor) -> dict[str, Tensor]:
    """float32 [N, K] -> weight int8 [N, K] and scale float32 [N], max|w| / 127 of each output channel."""
    scale = _channel_scale(weight, torch.int8)
    return {"weight": (weight / scale.unsqueeze(1)).round_().to(torch.int8), "scale": scale}


def quantize_fp8(weight: Tensor) -> dict[str, Tensor]:
    """float32 [N, K] -> weight fp8 [N, K] and scale float32 [N], max|w| / 448 of each output channel."""
    scale = _channel_scale(weight, FP8)
    return {"weight": (weight / scale.unsqueeze(1)).to(FP8), "scale": scale}


def _channel_scale(weight: Tensor, dtype: torch.dtype) -> Tensor:
    largest = weight.abs().amax(1)
    return torch.where(largest > 0, largest / LARGEST[dtype], 1.0)


def quantize_int4(
    weight: Tensor, group: int = 128, hessian: Tensor | None = None, damping: float = _DAMPING
) -> dict[str, Tensor]:
    """float32 [N, K] -> weight uint8 [N, G, g/2], scale float32 [N, G], zero uint8 [N, ceil(G/2)].

    Without a `hessian` each weight to the nearest, in its group's plain range: nothing says which error matters. With
    one, `gram`'s [C, B, B] or [K, K], as GPTQ (Frantar et al. 2023): later inputs of a block make up for the error of
    earlier ones, and a range may be clipped. Inputs past K are the zero point: they expand to 0.
    """
    groups = -(-weight.shape[1] // group)
    factor = None if hessian is None else _factor(hessian.view(-1, *hessian.shape[-2:]), group, damping)
    weight = F.pad(weight, (0, -weight.shape[1] % group))
    codes = torch.empty(len(weight), groups, group, dtype=torch.uint8)
    scale, zero = torch.empty(len(weight), groups), torch.empty(len(weight), groups, dtype=torch.uint8)
    for first in range(0, len(weight), _CHUNK):
        part = slice(first, first + _CHUNK)
        rounded = _gptq(weight[part], group, factor) if factor else _nearest(weight[part], group)
        for g, (c, s, z) in enumerate(rounded):
            codes[part, g], scale[part, g], zero[part, g] = c.T, s, z
    return {"weight": pack_nibbles(codes), "scale": scale, "zero": pack_nibbles(zero)}


def gram(rows: Tensor, block: int = 1024) -> Tensor:
    """Rows [R, K] -> XᵀX / R of each block of inputs [C, B, B], zeros past K: what GPTQ takes for the Hessian.

    Sums of these over batches of rows serve as well: only ratios within a block matter.
    """
    blocks = F.pad(rows, (0, -rows.shape[1] % block)).reshape(len(rows), -1, block).transpose(0, 1)  # [C, R, B]
    return torch.stack([x.T @ x for x in blocks]) / len(rows)


def choose_migration(weights: Sequence[Tensor], rows: Tensor, precision: str, group: int = 128) -> Tensor:
    """The linears' weights [N_i, K] that read the same rows [R, K] -> the scale s [K] to divide the rows by.

    The product (x / s)(W·s)ᵀ is the same; its 8-bit rows and `precision` ("int8" or "int4") weights are not. Akin to
    SmoothQuant (Xiao et al. 2023): s_j = |x_j|^a / |W_j|^(1-a), but of root mean squares, and with the a of the least
    error on the first half of the rows. Ones, unless it gains at least 2 % on the second half too.
    """
    half = max(1, len(rows) // 2)
    seen, unseen = rows[:half], rows[half:]
    none = torch.ones(rows.shape[1])
    if not len(unseen):
        return none
    weights = [_sample(w) for w in weights]

    def error(s: Tensor, rows: Tensor) -> float:
        return sum(relative_error(w * s, _quantize(w * s, precision, group), _sample(rows) / s) for w in weights)

    best = min([none, *_migrations(weights, seen, _SHARES[precision])], key=lambda s: error(s, seen))
    return best if error(best, unseen) < _MARGIN * error(none, unseen) else none


def relative_error(weight: Tensor, quantized: dict[str, Tensor], rows: Tensor) -> float:
    """The squared error of the quantized linear's output on rows [R, K], as a share of the output's own squares."""
    y = F.linear(rows, weight)
    off = F.linear(read_rows(rows, quantized), expand(quantized, rows.shape[1])) - y
    return float(off.square().sum() / y.square().sum().clamp_min(1e-30))


def expand(quantized: dict[str, Tensor], width: int) -> Tensor:
    """ŵ float32 [N, K = width] of any form."""
    if "zero" in quantized:
        return expand_int4(**quantized, width=width)
    return expand_fp8(**quantized) if quantized["weight"].dtype == FP8 else expand_int8(**quantized)


def read_rows(rows: Tensor, quantized: dict[str, Tensor]) -> Tensor:
    """x̂ float32 [..., K]: what the quantized linear makes of rows [..., K]."""
    weight = quantized["weight"]
    if weight.dtype == FP8:
        return fake_fp8_rows(rows)
    return fake_rows(rows, 2 * weight.shape[-1] if "zero" in quantized else None)


def _sample(x: Tensor) -> Tensor:
    """At most so many of its rows, evenly apart."""
    return x[:: -(-len(x) // _SAMPLE)]


def _quantize(weight: Tensor, precision: str, group: int) -> dict[str, Tensor]:
    return quantize_int8(weight) if precision == "int8" else quantize_int4(weight, group)


def _migrations(weights: Sequence[Tensor], rows: Tensor, shares: Sequence[float]) -> Iterator[Tensor]:
    """The candidates s [K], of geometric mean 1; an input that is never used keeps about 1."""
    reads = rows.square().mean(0).sqrt()
    columns = torch.stack([w.square().mean(0) for w in weights]).mean(0).sqrt()
    reads, columns = (x.clamp_min(1e-5 * float(x.max()) + 1e-30).log() for x in (reads, columns))
    for a in shares:
        log_s = a * reads - (1 - a) * columns
        yield (log_s - log_s.mean()).clamp(-5, 5).exp()


def _factor(hessian: Tensor, group: int, damping: float) -> tuple[Tensor, Tensor]:
    """H [C, B, B] -> M unit upper triangular and the importance d of each input [C, B], with H = M diag(d) Mᵀ.

    (w-q) H (w-q)ᵀ is then the sum over j of d_j ((w_j - q_j) + Σ_{i<j} (w_i - q_i) M_ij)².
    """
    rest = -hessian.shape[1] % group
    assert not rest or len(hessian) == 1, "a block ends within a group"
    damped = F.pad(hessian, (0, rest, 0, rest)) if rest else hessian.clone()
    diagonal = damped.diagonal(dim1=1, dim2=2)
    used = (diagonal > 0).sum(1).clamp_min(1)  # padding would make the mean small
    diagonal += (damping * diagonal.sum(1) / used).clamp_min(1e-20).unsqueeze(1)
    upper = torch.linalg.cholesky(damped.flip(1, 2)).flip(1, 2)  # H = R Rᵀ with R upper
    diagonal = upper.diagonal(dim1=1, dim2=2)
    return upper / diagonal.unsqueeze(1), diagonal.square()


def _nearest(weight: Tensor, group: int) -> Iterator[Groups]:
    for wanted in torch.split(weight.T, group):
        scale, zero = _range(wanted)
        yield _round(wanted, scale, zero), scale, zero


def _gptq(weight: Tensor, group: int, factor: tuple[Tensor, Tensor]) -> Iterator[Groups]:
    """The greedy choice of q_j by `_factor`'s sum, term by term: round w_j + Σ_{i<j} (w_i - q_i) M_ij.

    The sum over earlier groups of the block is one product, when a group begins; only the rest is done by input.
    """
    columns = weight.T.contiguous()  # [K, N]
    errors = torch.empty_like(columns)
    for first in range(0, len(columns), group):
        block, at = divmod(first, factor[0].shape[1])
        m, importance = factor[0][block], factor[1][block, at : at + group]
        wanted, here = columns[first : first + group], errors[first : first + group]
        target = wanted + m[:at, at : at + group].T @ errors[first - at : first]
        scale, zero = _clipped_range(target, importance)
        codes = torch.empty_like(target)
        for j in range(group):
            target[j] += m[at : at + j, at + j] @ here[:j]
            codes[j] = _round(target[j], scale, zero)
            here[j] = wanted[j] - (codes[j] - zero) * scale
        yield codes, scale, zero


def _clipped_range(target: Tensor, importance: Tensor) -> tuple[Tensor, Tensor]:
    """[g, N] -> the scale and zero point [N] of the least squared error, weighted by each input's importance [g]."""
    scale, zero = _range(target)
    best = torch.full_like(scale, torch.inf)
    for shrink in _SHRINKS:
        step, point = _range(target, shrink)
        error = importance @ (target - (_round(target, step, point) - point) * step).square_()
        better = error < best
        best, scale, zero = (torch.where(better, *pair) for pair in ((error, best), (step, scale), (point, zero)))
    return scale, zero


def _range(target: Tensor, shrink: float = 1.0) -> tuple[Tensor, Tensor]:
    """[g, N] -> the scale and zero point [N] of the whole range, or of a share of it. 0 is always one of the values."""
    low, high = target.amin(0).clamp_max(0) * shrink, target.amax(0).clamp_min(0) * shrink
    scale = torch.where(high > low, (high - low) / _LEVELS, 1.0)
    return scale, (-low / scale).round_()


def _round(target: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return (target / scale + zero).round_().clamp_(0, _LEVELS)
