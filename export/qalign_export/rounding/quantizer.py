"""A linear's float32 weight and rows that it reads in, its tensors of a precision out.

    quantize          any precision: floats, 8-bit numbers with a scale for each output channel, or quantize_int4
    quantize_int4     groups of 32 inputs, to the nearest, or by GPTQ if the rows' Gram matrix is given
    choose_migration  the scale s of each input with which x / s and W·s round better, or ones
    relative_error    how far quantization moves a linear's output: the linear's sensitivity

`qalign_kernels.contract.linear` defines the tensors. Letters: R rows, K inputs, N output channels, g = 32 inputs of a
group, G groups and B blocks as the contract has them, P inputs of a Gram matrix, C = ceil(K / P) of these.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from qalign_kernels.contract.linear import expand_weight, pack_int4, row_dtype
from qalign_kernels.contract.precisions import BLOCK, GROUP, PRECISIONS
from qalign_kernels.contract.quantized_rows import LARGEST, fake_rows

Rounded = tuple[Tensor, Tensor, Tensor]  # w [N, K], k [N, G] and z [N, G]

_LEVELS, _MULTIPLIERS = 15, 16  # the steps between the 16 values of 4 bits, and the largest k
_SPAN = 112  # of max|w|, in steps of int4's scale: |k (w - z)| reaches no further on both sides, 16 · 7
_GRAM_BLOCK = 512  # P of the Gram matrices that an export uses
# bench/studies/real_weights.py measured these, and the table's shares, on rows of another text than they were found on:
_TRIED = 4  # multipliers of a group: the least that reaches its whole range, and those below, which clip it
_DAMPING = 0.2  # added to the Gram matrix's diagonal, as a share of the mean there: the rows are few and others' differ
_MARGIN = 0.8  # a migration is taken if its error on rows that it has not seen is below this share of the error without
_SAMPLE = 512  # output channels, and rows of each half, that a migration is judged by
_CHUNK = 4096  # groups, of output channels or of inputs, that are quantized together on a CPU


def quantize(weight: Tensor, precision: str, rows: Tensor | None = None) -> dict[str, Tensor]:
    """float32 [N, K] -> the linear's tensors in that precision, by their names in `qalign_kernels.contract.linear`.

    `rows` [R, K], float32, are rows that the linear reads: 4 bits use them for GPTQ. 8-bit weights have the scale
    max|w| / (the largest number of their dtype) [N], for each output channel.
    """
    dtype: torch.dtype = getattr(torch, PRECISIONS[precision].weight)
    if not PRECISIONS[precision].rounded:
        return {"weight": weight.to(dtype)}
    if dtype not in LARGEST:
        return quantize_int4(weight, None if rows is None else gram(rows, _GRAM_BLOCK))
    scale = _channel_scale(weight, LARGEST[dtype])
    values = weight / scale.unsqueeze(1)
    return {"weight": (values if dtype.is_floating_point else values.round_()).to(dtype), "scale": scale}


def quantize_int4(weight: Tensor, hessian: Tensor | None = None, damping: float = _DAMPING) -> dict[str, Tensor]:
    """float32 [N, K] -> weight uint8 [N, B, 64], scale float32 [N], groups uint8 [N, G].

    Without a `hessian` each weight becomes the nearest of its group's values. With one, `gram`'s [C, P, P] or [K, K],
    GPTQ is used (Frantar et al. 2023): later inputs of a matrix make up for the error of earlier ones. Inputs past K
    are the zero point: they expand to 0.
    """
    scale = _channel_scale(weight, _SPAN)
    weight = F.pad(weight, (0, -weight.shape[1] % BLOCK))
    if hessian is None:
        codes, multiplier, zero = _nearest(weight, scale)
    else:
        codes, multiplier, zero = _gptq(weight, scale, _factor(hessian.view(-1, *hessian.shape[-2:]), damping))
    packed, groups = pack_int4(codes, multiplier, zero)
    return {"weight": packed, "scale": scale, "groups": groups}


def _channel_scale(weight: Tensor, most: int) -> Tensor:
    largest = weight.abs().amax(1)
    return torch.where(largest > 0, largest / most, 1.0)


def gram(rows: Tensor, block: int = 1024) -> Tensor:
    """Rows [R, K] -> XᵀX / R of every `block` = P inputs [C, P, P], with zeros past K. GPTQ uses it as the Hessian.

    Sums of these over batches of rows serve as well: only ratios within a block matter.
    """
    blocks = F.pad(rows, (0, -rows.shape[1] % block)).reshape(len(rows), -1, block).transpose(0, 1)  # [C, R, P]
    return torch.stack([x.T @ x for x in blocks]) / len(rows)


def choose_migration(weights: Sequence[Tensor], rows: Tensor, precision: str) -> Tensor:
    """Weights [N_i, K] of linears that read the same rows [R, K] -> the scale s [K] by which to divide the rows.

    The product (x / s)(W·s)ᵀ is the same, but its rows and its weights in `precision` round differently. Akin to
    SmoothQuant (Xiao et al. 2023): s_j = |x_j|^a / |W_j|^(1-a), but with root mean squares, and with that a of the
    precision's `shares` whose error on the first half of the rows is the least. Ones, unless the error on the second
    half falls by more than 20 %.
    """
    half = max(1, len(rows) // 2)
    seen, unseen = rows[:half], rows[half:]
    none = torch.ones(rows.shape[1])
    if not len(unseen):
        return none
    weights = [_sample(w) for w in weights]

    def error(s: Tensor, rows: Tensor) -> float:
        return sum(relative_error(w * s, quantize(w * s, precision), _sample(rows) / s) for w in weights)

    best = min([none, *_migrations(weights, seen, PRECISIONS[precision].shares)], key=lambda s: error(s, seen))
    return best if error(best, unseen) < _MARGIN * error(none, unseen) else none


def relative_error(weight: Tensor, quantized: dict[str, Tensor], rows: Tensor) -> float:
    """The squared error of the quantized linear's output on rows [R, K], as a share of the output's own squares."""
    y = F.linear(rows, weight)
    off = F.linear(read_rows(rows, quantized), expand(quantized, rows.shape[1])) - y
    return float(off.square().sum() / y.square().sum().clamp_min(1e-30))


def expand(quantized: dict[str, Tensor], width: int) -> Tensor:
    """ŵ float32 [N, K = width] of `quantize`'s tensors in any precision that has a scale."""
    return expand_weight(**quantized, width=width)


def read_rows(rows: Tensor, quantized: dict[str, Tensor]) -> Tensor:
    """x̂ float32 [..., K]: the rows [..., K] as the quantized linear reads them."""
    return fake_rows(rows, row_dtype(quantized["weight"]))


def _sample(x: Tensor) -> Tensor:
    """At most _SAMPLE of its rows, evenly spaced."""
    return x[:: -(-len(x) // _SAMPLE)]


def _migrations(weights: Sequence[Tensor], rows: Tensor, shares: Sequence[float]) -> Iterator[Tensor]:
    """The candidates s [K]. Their geometric mean is 1; an input that is never used keeps about 1."""
    reads = rows.square().mean(0).sqrt()
    columns = torch.stack([w.square().mean(0) for w in weights]).mean(0).sqrt()
    reads, columns = (x.clamp_min(1e-5 * float(x.max()) + 1e-30).log() for x in (reads, columns))
    for a in shares:
        log_s = a * reads - (1 - a) * columns
        yield (log_s - log_s.mean()).clamp(-5, 5).exp()


def _factor(hessian: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """H [C, P, P] -> M unit upper triangular and the importance d of each input [C, P], with H = M diag(d) Mᵀ.

    (w-q) H (w-q)ᵀ is then the sum over j of d_j ((w_j - q_j) + Σ_{i<j} (w_i - q_i) M_ij)².
    """
    rest = -hessian.shape[1] % BLOCK
    assert not rest or len(hessian) == 1, "a Gram matrix ends within a block"
    damped = F.pad(hessian, (0, rest, 0, rest)) if rest else hessian.clone()
    diagonal = damped.diagonal(dim1=1, dim2=2)
    used = (diagonal > 0).sum(1).clamp_min(1)  # padding would make the mean small
    diagonal += (damping * diagonal.sum(1) / used).clamp_min(1e-20).unsqueeze(1)
    upper = torch.linalg.cholesky(damped.flip(1, 2)).flip(1, 2)  # H = R Rᵀ with R upper
    diagonal = upper.diagonal(dim1=1, dim2=2)
    return upper / diagonal.unsqueeze(1), diagonal.square()


def _nearest(weight: Tensor, scale: Tensor) -> Rounded:
    groups, scale = weight.view(-1, GROUP), scale.repeat_interleave(weight.shape[1] // GROUP)
    (codes, multiplier, zero), alike = _room(groups), torch.ones(GROUP)
    for part in _parts(groups):
        wanted = groups[part].T.contiguous()
        k, z = _grid(wanted, alike, scale[part])
        codes[part] = (_steps(wanted, k * scale[part], *_reach(k, z)) + z).T
        multiplier[part, 0], zero[part, 0] = k, z
    return codes.view(weight.shape), multiplier.view(len(weight), -1), zero.view(len(weight), -1)


def _gptq(weight: Tensor, scale: Tensor, factor: tuple[Tensor, Tensor]) -> Rounded:
    """The greedy choice of q_j by `_factor`'s sum, term by term: round w_j + Σ_{i<j} (w_i - q_i) M_ij.

    The sum over earlier groups of the matrix is one product when a group begins; only the rest goes input by input.
    """
    codes, multiplier, zero = _room(weight)
    for part in _parts(weight):
        columns = weight[part].T.contiguous()  # [K, n]
        errors = torch.empty_like(columns)
        for g, first in enumerate(range(0, len(columns), GROUP)):
            block, at = divmod(first, factor[0].shape[1])
            m, importance = factor[0][block], factor[1][block, at : at + GROUP]
            wanted, here = columns[first : first + GROUP], errors[first : first + GROUP]
            target = wanted + m[:at, at : at + GROUP].T @ errors[first - at : first]
            k, z = _grid(target, importance, scale[part])
            step, reach, steps = k * scale[part], _reach(k, z), torch.empty_like(target)
            for j in range(GROUP):
                target[j] += m[at : at + j, at + j] @ here[:j]
                steps[j] = _steps(target[j], step, *reach)
                here[j] = wanted[j] - steps[j] * step
            codes[part, first : first + GROUP], multiplier[part, g], zero[part, g] = (steps + z).T, k, z
    return codes, multiplier, zero


def _room(weight: Tensor) -> Rounded:
    """Empty tensors for w [n, K], k and z [n, G] of a weight [n, K]."""
    n, k = weight.shape
    codes = torch.empty(n, k, dtype=torch.uint8, device=weight.device)
    multiplier, zero = torch.empty(2, n, k // GROUP, dtype=torch.uint8, device=weight.device)
    return codes, multiplier, zero


def _parts(rows: Tensor) -> Iterator[slice]:
    """Rows that are quantized together. A CPU core keeps a group of _CHUNK of them in its cache; a GPU takes all."""
    size = _CHUNK if rows.device.type == "cpu" else max(1, len(rows))
    return (slice(first, first + size) for first in range(0, len(rows), size))


def _grid(target: Tensor, importance: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """[g, N] -> the k and z [N] of the least squared error, weighted by each input's importance [g].

    z comes from the whole range, so that 0 is always one of the values.
    """
    low, high = target.amin(0).clamp_max(0), target.amax(0).clamp_min(0)
    span = (high - low).clamp_min(torch.finfo(torch.float32).tiny)
    most, zero = (span / (_LEVELS * scale)).ceil_(), (-low * _LEVELS / span).round_()
    best, multiplier = torch.full_like(scale, torch.inf), torch.ones_like(scale)
    for less in range(_TRIED):
        k = (most - less).clamp_(1, _MULTIPLIERS)
        step = k * scale
        error = importance @ (target - _steps(target, step, *_reach(k, zero)) * step).square_()
        multiplier = torch.where(error < best, k, multiplier)
        best = torch.minimum(error, best)
    return multiplier, zero


def _reach(k: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest w - z that 4 bits hold, and that 8 bits hold when it is multiplied by k."""
    most = (LARGEST[torch.int8] / k).floor_()
    return -torch.minimum(z, most), torch.minimum(_LEVELS - z, most)


def _steps(target: Tensor, step: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return (target / step).round_().clamp_(low, high)
