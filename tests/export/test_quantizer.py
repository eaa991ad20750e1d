"""The quantizer against its definition in `qalign_kernels.contract.linear`, and against errors computed directly."""

import pytest
import torch
from torch.nn import functional as F

from qalign_export.rounding.quantizer import (
    choose_migration,
    expand,
    gram,
    quantize,
    quantize_int4,
    read_rows,
    relative_error,
)
from qalign_kernels.contract.linear import expand_weight, linear, pack_int4, spread_int4
from qalign_kernels.contract.precisions import BLOCK, GROUP
from qalign_kernels.contract.quantized_rows import E4M3, fake_rows, quantize_rows
from qalign_kernels.contract.weight import Weight

SHAPES = [
    (8, 256),  # whole blocks
    (6, 88),  # less than one block, its last group cut short
    (5, 32),  # one group
    (7, 200),  # the last block ends in a group of padding alone
]


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _correlated(rows, width, seed=1):
    """Inputs that correlate with each other, as a real layer's do."""
    return _random(rows, 24, seed=seed) @ _random(24, width, seed=99) + 0.3 * _random(rows, width, seed=seed + 1)


def _squares(weight, quantized, rows):
    """The squared error of the output by direct computation, with rounded weights and exact rows."""
    return float(((weight - expand(quantized, weight.shape[1])).double() @ rows.double().T).square().sum())


def test_int8_is_within_half_a_step_of_each_weight():
    weight = _random(16, 96)
    quantized = quantize(weight, "int8")
    assert quantized["weight"].dtype == torch.int8
    assert quantized["weight"].abs().amax(1).eq(127).all()
    torch.testing.assert_close(quantized["scale"], weight.abs().amax(1) / 127)
    assert ((expand(quantized, 96) - weight).abs() <= 0.5001 * quantized["scale"].unsqueeze(1)).all()


def _e4m3(x):
    """The nearest of float8_e4m3fn's values, ties to even, from its definition: 4 bits of exponent, 3 of fraction."""
    step = torch.exp2(x.abs().clamp_min(2.0**-6).log2().floor() - 3)
    return (x / step).round() * step


def test_fp8_is_the_nearest_value_of_each_weight():
    weight = _random(16, 96) * torch.logspace(-6, 3, 16).unsqueeze(1)
    quantized = quantize(weight, "fp8")
    assert quantized["weight"].dtype == E4M3
    assert quantized["weight"].float().abs().amax(1).eq(448).all()
    torch.testing.assert_close(quantized["scale"], weight.abs().amax(1) / 448)
    scaled = weight / quantized["scale"].unsqueeze(1)
    assert torch.equal(quantized["weight"].float(), _e4m3(scaled))
    assert torch.equal(expand(quantized, 96), _e4m3(scaled) * quantized["scale"].unsqueeze(1))


@pytest.mark.parametrize("largest", [1e-38, 1e-20, 0.3, 448.0, 1e20, 3e38])
def test_fp8_rows_are_finite_at_any_size(largest):
    """Some conversions to e4m3 give NaN above 464: the largest value's quotient must not round up to that."""
    rows = torch.rand(500, 32) * 0.4 * largest
    rows[:, 7], rows[0] = -largest * torch.linspace(0.5, 1, 500), 0
    found = quantize_rows(rows, E4M3)
    assert (rows / found.scale).abs().max() <= 448.001
    assert found.values.float().isfinite().all()
    assert (found.values[0].float() == 0).all()
    if largest > 1e-30:
        torch.testing.assert_close(fake_rows(rows, E4M3)[:, 7], rows[:, 7], atol=0, rtol=1e-6)


def _grid(quantized):
    """The w [N, G, 32], k and z [N, G, 1] that `pack_int4` was given, in float32, read as the layout is described."""
    weight, groups = quantized["weight"].int(), quantized["groups"].int().unsqueeze(-1)
    codes = torch.empty(len(weight), weight.shape[1] * BLOCK)
    for j in range(64):
        codes[:, j::BLOCK], codes[:, j + 64 :: BLOCK] = weight[..., j] & 15, weight[..., j] >> 4
    return codes.unflatten(1, (-1, GROUP)), (groups >> 4).float() + 1, (groups & 15).float()


def _blocks(weight):
    return F.pad(weight, (0, -weight.shape[1] % BLOCK))


@pytest.mark.parametrize("blocks", [1, 3])
def test_packing_four_bits_is_undone_by_spreading(blocks):
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (40, blocks * BLOCK), generator=generator, dtype=torch.uint8)
    multiplier = torch.randint(1, 8, (40, 4 * blocks), generator=generator)
    multiplier[0], multiplier[1] = 16, 8  # k (w - z) is at most 127: 8 · 15, and with k = 16 only a part of the codes
    zero = torch.randint(0, 16, (40, 4 * blocks), generator=generator)
    zero[0], codes[0] = 8, codes[0].clamp(1, 15)
    weight, groups = pack_int4(codes, multiplier, zero)
    assert (weight.shape, groups.shape) == ((40, blocks, 64), (40, 4 * blocks))
    assert weight.dtype == groups.dtype == torch.uint8
    for found, given in zip(_grid({"weight": weight, "groups": groups}), (codes, multiplier, zero), strict=True):
        assert torch.equal(found.flatten(1), given.float())
    expected = (codes.int() - zero.repeat_interleave(GROUP, 1)) * multiplier.repeat_interleave(GROUP, 1)
    for width in (blocks * BLOCK, blocks * BLOCK - 40):
        spread = spread_int4(weight, groups, width)
        assert spread.dtype == torch.int8
        assert torch.equal(spread.int(), expected[:, :width])
        scale = torch.rand(40, generator=generator)
        expanded = expand_weight(weight, scale, groups, width)
        assert torch.equal(expanded, expected[:, :width].float() * scale.unsqueeze(1))


@pytest.mark.parametrize("rows, width", SHAPES)
@pytest.mark.parametrize("gptq", [False, True])
def test_int4_is_the_kernels_layout_of_8_bit_whole_numbers(rows, width, gptq):
    weight, blocks = _random(rows, width), -(-width // BLOCK)
    weight[1] *= torch.logspace(-4, 2, width)  # groups of every size
    hessian = gram(_correlated(40, width), blocks * BLOCK) if gptq else None
    quantized = quantize_int4(weight, hessian)
    assert {name: (t.shape, t.dtype) for name, t in quantized.items()} == {
        "weight": ((rows, blocks, 64), torch.uint8),
        "scale": ((rows,), torch.float32),
        "groups": ((rows, 4 * blocks), torch.uint8),
    }
    codes, k, z = _grid(quantized)
    products = (k * (codes - z)).flatten(1)
    assert products.abs().max() <= 127
    assert (products[:, width:] == 0).all()
    assert torch.equal(spread_int4(quantized["weight"], quantized["groups"], width).float(), products[:, :width])
    assert torch.equal(expand(quantized, width), products[:, :width] * quantized["scale"].unsqueeze(1))


@pytest.mark.parametrize("rows, width", SHAPES)
def test_int4_reaches_all_weights_and_is_near_them(rows, width):
    weight = _random(rows, width)
    quantized = quantize_int4(weight)
    torch.testing.assert_close(quantized["scale"], weight.abs().amax(1) / 112)
    _, k, _ = _grid(quantized)
    step = (k.squeeze(-1) * quantized["scale"].unsqueeze(1)).repeat_interleave(GROUP, 1)[:, :width]
    off = (expand(quantized, width) - weight).abs()
    assert (off <= 0.5001 * step).float().mean() > 0.95  # the others are clipped
    groups = _blocks(weight).unflatten(1, (-1, GROUP))
    ranges = groups.amax(-1).clamp_min(0) - groups.amin(-1).clamp_max(0)
    even = GROUP * (ranges / 15).square().sum() / 12  # of 16 values evenly over each range, not multiples of a step
    assert off.square().sum() < 1.1 * even


@pytest.mark.parametrize("rows, width", SHAPES)
@pytest.mark.parametrize("gptq", [False, True])
def test_no_multiplier_that_is_tried_has_a_smaller_error(rows, width, gptq):
    """By direct computation with a diagonal Hessian, where each weight stands alone."""
    weight, importance = _random(rows, width), torch.logspace(-1, 1, width) if gptq else torch.ones(width)
    quantized = quantize_int4(weight, torch.diag(importance) if gptq else None, damping=0)
    target, scale = _blocks(weight).unflatten(1, (-1, GROUP)), quantized["scale"].view(-1, 1, 1)
    codes, k, z = _grid(quantized)
    share = _blocks(importance.unsqueeze(0)).view(1, -1, GROUP)

    def error(steps, multiplier):
        return ((target - steps * multiplier * scale).square() * share).sum(-1, keepdim=True)

    best = error(codes - z, k)
    low, high = target.amin(-1, keepdim=True).clamp_max(0), target.amax(-1, keepdim=True).clamp_min(0)
    first = ((high - low) / (15 * scale)).ceil()
    for less in range(4):
        tried = (first - less).clamp(1, 16)
        steps = (target / (tried * scale)).round().clamp(-z, 15 - z)
        steps = steps.clamp(-(127 // tried), 127 // tried)
        assert (best <= error(steps, tried) * 1.0001 + 1e-12).all()


def test_gptq_clips_an_extreme_that_matters_little():
    weight = _random(32, 128) * 0.1
    weight[:, 5] = 2
    hessian = torch.eye(128)
    hessian[5, 5] = 1e-6
    quantized = [quantize_int4(weight, h, damping=0.01) for h in (torch.eye(128), hessian)]
    off = [(expand(q, 128) - weight).square() for q in quantized]
    others = [i for i in range(GROUP) if i != 5]  # of its group
    assert off[1][:, others].sum() < 0.7 * off[0][:, others].sum()


@pytest.mark.parametrize("rows, width", SHAPES)
def test_gptq_without_correlation_rounds_to_the_nearest(rows, width):
    weight = _random(rows, width)
    torch.testing.assert_close(quantize_int4(weight, torch.eye(width)), quantize_int4(weight))


def test_gptq_beats_rounding_to_nearest_on_rows_it_has_not_seen():
    weight, seen, unseen = _random(48, 512), _correlated(1024, 512), _correlated(512, 512, seed=7)
    nearest = _squares(weight, quantize_int4(weight), unseen)
    by_block = [_squares(weight, quantize_int4(weight, hessian=gram(seen, b)), unseen) for b in (128, 256, 512)]
    assert sorted(by_block, reverse=True) == by_block  # the more of the rows' correlations are used, the better
    assert by_block[0] < 0.9 * nearest
    assert by_block[-1] < 0.5 * nearest


def test_gptq_is_the_papers_update_of_the_remaining_weights():
    """The paper's algorithm 1 as it is printed: inverse Hessian, Cholesky, column after column."""
    weight, rows = _random(4, 64), _correlated(256, 64)
    hessian = gram(rows, 64)[0]
    ours = quantize_int4(weight, hessian, damping=0.01)
    _, k, z = (part[:, :2].double().repeat_interleave(GROUP, 1).squeeze(-1) for part in _grid(ours))
    scale, reach = ours["scale"].double(), 127 // k

    damped = hessian.double() + 0.01 * hessian.double().diagonal().mean() * torch.eye(64)
    inverse = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    left, theirs = weight.double().clone(), torch.empty(4, 64).double()
    for j in range(64):
        w, step = left[:, j : j + 1], (k[:, j] * scale).unsqueeze(1)
        steps = (w / step).round().clamp(-z[:, j : j + 1], 15 - z[:, j : j + 1])
        q = steps.clamp(-reach[:, j : j + 1], reach[:, j : j + 1]) * step
        theirs[:, j : j + 1] = q
        left[:, j + 1 :] -= (w - q) / inverse[j, j] * inverse[j, j + 1 :]
    torch.testing.assert_close(expand(ours, 64).double(), theirs, atol=1e-6, rtol=1e-6)


def test_gptq_of_many_output_channels_is_that_of_each():
    weight, hessian = _random(4100, 64), gram(_correlated(100, 64), 64)  # more than are quantized together
    together = quantize_int4(weight, hessian)
    alone = quantize_int4(weight[4090:], hessian)
    assert torch.equal(together["weight"][4090:], alone["weight"])
    assert torch.equal(together["groups"][4090:], alone["groups"])


def test_gptq_with_fewer_rows_than_inputs_and_inputs_never_used():
    rows = _correlated(16, 256)
    rows[:, 40:50] = 0
    quantized = quantize_int4(_random(8, 256), hessian=gram(rows, 256))
    assert torch.isfinite(expand(quantized, 256)).all()
    silent = quantize_int4(_random(8, 256), hessian=gram(torch.zeros(16, 256), 256))
    torch.testing.assert_close(silent, quantize_int4(_random(8, 256), hessian=torch.eye(256)))


def test_int8_linear_is_the_fake_quantized_linear():
    rows, quantized = _random(9, 96, seed=5), quantize(_random(24, 96), "int8")
    bias = _random(24, seed=6)
    expected = F.linear(fake_rows(rows), expand(quantized, 96), bias)
    found = linear(rows, Weight("int8", **quantized, bias=bias))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_fp8_linear_is_the_fake_quantized_linear():
    rows, quantized = _random(9, 96, seed=5), quantize(_random(24, 96), "fp8")
    bias = _random(24, seed=6)
    expected = F.linear(fake_rows(rows, E4M3), expand(quantized, 96), bias)
    w = Weight("fp8", **quantized, bias=bias)
    torch.testing.assert_close(linear(rows, w), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(linear(rows.view(3, 3, 96), w).flatten(0, 1), linear(rows, w))


def test_fp8_linear_of_many_output_channels_is_that_of_each(monkeypatch):
    monkeypatch.setattr("qalign_kernels.contract.linear._CHUNK", 96 * 10)  # ten channels are widened together
    rows, quantized = _random(9, 96, seed=5), quantize(_random(24, 96), "fp8")
    expected = F.linear(fake_rows(rows, E4M3), expand(quantized, 96))
    torch.testing.assert_close(linear(rows, Weight("fp8", **quantized)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows, width", SHAPES)
def test_int4_linear_is_the_fake_quantized_linear(rows, width):
    x, quantized, bias = _random(9, width, seed=5), quantize_int4(_random(rows, width)), _random(rows, seed=6)
    expected = F.linear(fake_rows(x), expand(quantized, width), bias)
    w = Weight("int4", **quantized, bias=bias)
    torch.testing.assert_close(linear(x, w), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(linear(x.view(3, 3, width), w).flatten(0, 1), linear(x, w))


def test_int4_linear_sums_whole_numbers_exactly(monkeypatch):
    """Also where a row's sum is more than float32 holds, and where output channels are computed in parts."""
    monkeypatch.setattr("qalign_kernels.contract.linear._CHUNK", 4224 * 10)
    weight = _random(24, 4224)
    x, quantized = _random(17, 4224, seed=5), quantize_int4(weight + 3 * weight.sign())
    x[3] = weight[0].sign()
    read = quantize_rows(x)
    weight = spread_int4(quantized["weight"], quantized["groups"], 4224)
    sums = read.values.long() @ weight.T.long()
    assert sums.abs().max() > 2**24
    assert torch.equal(linear(x, Weight("int4", **quantized)), sums.float() * read.scale * quantized["scale"])


def test_one_loud_row_does_not_cost_the_others_their_precision():
    """Each row has a scale: one scale for the whole tensor would round the quiet rows to zero."""
    rows, weight = _random(8, 64), _random(16, 64)
    rows[0] *= 1000
    quantized = quantize(weight, "int8")
    assert relative_error(weight, quantized, rows[1:]) < 3e-4
    per_tensor = rows.abs().max() / 127
    rounded = (rows / per_tensor).round() * per_tensor
    off = F.linear(rounded[1:], expand(quantized, 64)) - F.linear(rows[1:], weight)
    assert off.square().sum() > 0.1 * F.linear(rows[1:], weight).square().sum()
    read = quantize_rows(rows)
    assert read.values.abs().amax(1).eq(127).all()
    assert read.scale.shape == (8, 1)


@pytest.mark.parametrize("precision", ["int8", "int4", "fp8"])
def test_relative_error_is_the_share_of_squares(precision):
    weight, rows = _random(16, 256), _random(40, 256, seed=2)
    quantized = quantize(weight, precision)
    x = fake_rows(rows, E4M3 if precision == "fp8" else torch.int8).double()
    assert torch.equal(read_rows(rows, quantized), x.float())
    y = rows.double() @ weight.double().T
    expected = float((x @ expand(quantized, 256).double().T - y).square().sum() / y.square().sum())
    assert relative_error(weight, quantized, rows) == pytest.approx(expected, rel=1e-3)


def _error(weight, precision, rows):
    return relative_error(weight, quantize(weight, precision), rows)


def _with_outliers(rows, width, seed):
    x = _random(rows, width, seed=seed)
    x[:, :3] *= 40
    return x


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_migration_moves_outliers_and_is_exact_in_float(precision):
    weights = [_random(48, 256), _random(600, 256, seed=4)]  # more than are sampled
    s = choose_migration(weights, _with_outliers(128, 256, seed=1), precision)
    unseen = _with_outliers(64, 256, seed=2)
    assert float(s.log().mean()) == pytest.approx(0, abs=1e-4)
    assert s[:3].min() > s[3:].max()
    for w in weights:
        torch.testing.assert_close(F.linear(unseen / s, w * s), F.linear(unseen, w), atol=1e-3, rtol=1e-4)
        assert _error(w * s, precision, unseen / s) < 0.9 * _error(w, precision, unseen)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_migration_is_exactly_none_where_nothing_is_gained(precision):
    # on int4's grid already, and the same range in every group
    weight = torch.randint(-8, 8, (400, 256), generator=torch.Generator().manual_seed(0)).float()
    weight[:, ::32], weight[:, 1::32] = -8, 7
    assert choose_migration([weight], _random(64, 256, seed=1), precision).eq(1).all()


def test_migration_is_none_where_the_gain_is_only_on_the_rows_it_was_found_on():
    rows = _random(128, 256, seed=1)
    rows[:64, :3] *= 40
    rows[64:, 3:6] *= 40  # the other half has other outliers: moving those of the first half makes it worse
    assert choose_migration([_random(32, 256)], rows, "int8").eq(1).all()


@pytest.mark.parametrize("rows", [torch.zeros(6, 64), _random(1, 64)])
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_migration_needs_rows_that_say_something(rows, precision):
    assert choose_migration([_random(8, 64)], rows, precision).eq(1).all()


@pytest.mark.parametrize("hessian", [None, torch.eye(128)])
def test_constant_weights_are_kept(hessian):
    weight = torch.stack([torch.zeros(128), torch.full((128,), 0.3), torch.full((128,), -2.0)])
    torch.testing.assert_close(expand(quantize_int4(weight, hessian), 128), weight)
    torch.testing.assert_close(expand(quantize(weight, "int8"), 128), weight)
    torch.testing.assert_close(expand(quantize(weight, "fp8"), 128), weight)


def test_one_row_of_zeros_has_no_error():
    weight, rows = _random(4, 64), torch.zeros(1, 64)
    assert relative_error(weight, quantize(weight, "int8"), rows) == 0
    assert relative_error(weight, quantize(weight, "fp8"), rows) == 0
    assert relative_error(weight, quantize_int4(weight), rows) == 0
