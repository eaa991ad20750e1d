"""The quantizer against its definition in `qalign_kernels.linear` and against errors computed directly."""

import pytest
import torch
from torch.nn import functional as F

from qalign_export.quantizer import (
    choose_migration,
    expand,
    gram,
    quantize_fp8,
    quantize_int4,
    quantize_int8,
    read_rows,
    relative_error,
)
from qalign_kernels.linear import (
    FP8,
    Weight,
    expand_int4,
    fake_fp8_rows,
    fake_rows,
    fp8_linear,
    int4_linear,
    int8_linear,
    linear,
    quantize_rows,
    unpack_nibbles,
)

SHAPES = [
    (8, 256, 128),  # whole groups
    (6, 88, 128),  # less than one group
    (5, 32, 32),  # one group, and a zero point alone in its byte
    (7, 200, 64),  # the last group is cut short
]


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _correlated(rows, width, seed=1):
    """Inputs that tell about each other, as a real layer's do."""
    return _random(rows, 24, seed=seed) @ _random(24, width, seed=99) + 0.3 * _random(rows, width, seed=seed + 1)


def _squares(weight, quantized, rows):
    """By direct computation, weights only."""
    return float(((weight - expand(quantized, weight.shape[1])).double() @ rows.double().T).square().sum())


def test_int8_is_within_half_a_step_of_each_weight():
    weight = _random(16, 96)
    quantized = quantize_int8(weight)
    assert quantized["weight"].dtype == torch.int8
    assert quantized["weight"].abs().amax(1).eq(127).all()
    torch.testing.assert_close(quantized["scale"], weight.abs().amax(1) / 127)
    assert ((expand(quantized, 96) - weight).abs() <= 0.5001 * quantized["scale"].unsqueeze(1)).all()


def _e4m3(x):
    """To the nearest of float8_e4m3fn's values, ties to even, from its definition: 4 exponent bits, 3 of fraction."""
    step = torch.exp2(x.abs().clamp_min(2.0**-6).log2().floor() - 3)
    return (x / step).round() * step


def test_fp8_is_the_nearest_value_of_each_weight():
    weight = _random(16, 96) * torch.logspace(-6, 3, 16).unsqueeze(1)
    quantized = quantize_fp8(weight)
    assert quantized["weight"].dtype == FP8
    assert quantized["weight"].float().abs().amax(1).eq(448).all()
    torch.testing.assert_close(quantized["scale"], weight.abs().amax(1) / 448)
    scaled = weight / quantized["scale"].unsqueeze(1)
    assert torch.equal(quantized["weight"].float(), _e4m3(scaled))
    assert torch.equal(expand(quantized, 96), _e4m3(scaled) * quantized["scale"].unsqueeze(1))


@pytest.mark.parametrize("largest", [1e-38, 1e-20, 0.3, 448.0, 1e20, 3e38])
def test_fp8_rows_are_finite_at_any_size(largest):
    """Past 464 some conversions to e4m3 give NaN: the largest value's quotient must not round up to there."""
    rows = torch.rand(500, 32) * 0.4 * largest
    rows[:, 7], rows[0] = -largest * torch.linspace(0.5, 1, 500), 0
    values, scale = quantize_rows(rows, FP8)
    assert (rows / scale).abs().max() <= 448.001
    assert values.float().isfinite().all()
    assert (values[0].float() == 0).all()
    if largest > 1e-30:
        torch.testing.assert_close(fake_fp8_rows(rows)[:, 7], rows[:, 7], atol=0, rtol=1e-6)


@pytest.mark.parametrize("rows, width, group", SHAPES)
def test_int4_plain_range_is_within_half_a_step_of_each_weight(rows, width, group):
    weight = _random(rows, width)
    quantized = quantize_int4(weight, group)
    step = quantized["scale"].repeat_interleave(group, 1)[:, :width]
    # half a step, and as much again at a range's ends: the zero point is rounded
    assert ((expand(quantized, width) - weight).abs() <= 1.0001 * step).all()
    assert ((expand(quantized, width) - weight).abs() <= 0.5001 * step).float().mean() > 0.95


@pytest.mark.parametrize("rows, width, group", SHAPES)
@pytest.mark.parametrize("gptq", [False, True])
def test_int4_layout_is_the_kernels_and_padding_expands_to_zero(rows, width, group, gptq):
    weight, groups = _random(rows, width), -(-width // group)
    hessian = gram(_random(40, width, seed=3), 2 * group) if gptq else None
    quantized = quantize_int4(weight, group, hessian)
    assert {name: (t.shape, t.dtype) for name, t in quantized.items()} == {
        "weight": ((rows, groups, group // 2), torch.uint8),
        "scale": ((rows, groups), torch.float32),
        "zero": ((rows, -(-groups // 2)), torch.uint8),
    }
    assert (expand_int4(**quantized, width=groups * group)[:, width:] == 0).all()
    # one weight by hand: the odd one of a pair is in the high half
    code = int(quantized["weight"][2, 0, 6]) >> 4
    zero = int(quantized["zero"][2, 0]) & 15
    assert float(expand(quantized, width)[2, 13]) == pytest.approx((code - zero) * float(quantized["scale"][2, 0]))


def test_gptq_clips_an_extreme_that_matters_little():
    weight = _random(32, 128) * 0.1
    weight[:, 5] = 2
    hessian = torch.eye(128)
    hessian[5, 5] = 1e-6
    off = [(expand(quantize_int4(weight, 128, h), 128) - weight).square() for h in (None, hessian)]
    others = torch.arange(128) != 5
    assert off[1][:, others].sum() < 0.7 * off[0][:, others].sum()


@pytest.mark.parametrize("rows, width, group", SHAPES)
def test_gptq_without_correlation_rounds_to_the_nearest(rows, width, group):
    weight = _random(rows, width)
    quantized = quantize_int4(weight, group, torch.eye(width))
    zero = unpack_nibbles(quantized["zero"])[:, : quantized["scale"].shape[1]].unsqueeze(-1)
    scale = quantized["scale"].unsqueeze(-1)
    padded = F.pad(weight, (0, -width % group)).unflatten(1, (-1, group))
    nearest = ((padded / scale + zero).round().clamp(0, 15) - zero) * scale
    torch.testing.assert_close(expand(quantized, width), nearest.flatten(1)[:, :width])
    assert _squares(weight, quantized, torch.eye(width)) <= _squares(
        weight, quantize_int4(weight, group), torch.eye(width)
    )


def test_gptq_beats_rounding_to_nearest_on_rows_it_has_not_seen():
    weight, seen, unseen = _random(48, 512), _correlated(1024, 512), _correlated(512, 512, seed=7)
    nearest = _squares(weight, quantize_int4(weight), unseen)
    by_block = [_squares(weight, quantize_int4(weight, hessian=gram(seen, b)), unseen) for b in (128, 256, 512)]
    assert sorted(by_block, reverse=True) == by_block  # the more of the rows' correlations, the better
    assert by_block[0] < 0.9 * nearest
    assert by_block[-1] < 0.5 * nearest


def test_gptq_is_the_papers_update_of_the_remaining_weights():
    """The paper's algorithm 1 as it is printed: inverse Hessian, Cholesky, column after column."""
    weight, rows = _random(4, 64), _correlated(256, 64)
    hessian = gram(rows, 64)[0]
    ours = quantize_int4(weight, 64, hessian, damping=0.01)
    scale, zero = ours["scale"].double(), unpack_nibbles(ours["zero"])[:, :1].double()

    damped = hessian.double() + 0.01 * hessian.double().diagonal().mean() * torch.eye(64)
    inverse = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    left, theirs = weight.double().clone(), torch.empty(4, 64).double()
    for j in range(64):
        w = left[:, j : j + 1]
        q = ((w / scale + zero).round().clamp(0, 15) - zero) * scale
        theirs[:, j : j + 1] = q
        left[:, j + 1 :] -= (w - q) / inverse[j, j] * inverse[j, j + 1 :]
    torch.testing.assert_close(expand(ours, 64).double(), theirs, atol=1e-6, rtol=1e-6)


def test_gptq_of_many_output_channels_is_that_of_each():
    weight, hessian = _random(4100, 64), gram(_correlated(100, 64), 64)  # more than are quantized together
    together = quantize_int4(weight, 64, hessian)
    alone = quantize_int4(weight[4090:], 64, hessian)
    assert torch.equal(together["weight"][4090:], alone["weight"])
    assert torch.equal(together["zero"][4090:], alone["zero"])


def test_gptq_with_fewer_rows_than_inputs_and_inputs_never_used():
    rows = _correlated(16, 256)
    rows[:, 40:50] = 0
    quantized = quantize_int4(_random(8, 256), hessian=gram(rows, 256))
    assert torch.isfinite(expand(quantized, 256)).all()
    silent = quantize_int4(_random(8, 256), hessian=gram(torch.zeros(16, 256), 256))
    torch.testing.assert_close(silent, quantize_int4(_random(8, 256), hessian=torch.eye(256)))


def test_int8_linear_is_the_fake_quantized_linear():
    rows, quantized = _random(9, 96, seed=5), quantize_int8(_random(24, 96))
    bias = _random(24, seed=6)
    expected = F.linear(fake_rows(rows), expand(quantized, 96), bias)
    torch.testing.assert_close(int8_linear(rows, **quantized, bias=bias), expected, atol=1e-5, rtol=1e-5)


def test_fp8_linear_is_the_fake_quantized_linear():
    rows, quantized = _random(9, 96, seed=5), quantize_fp8(_random(24, 96))
    bias = _random(24, seed=6)
    expected = F.linear(fake_fp8_rows(rows), expand(quantized, 96), bias)
    torch.testing.assert_close(fp8_linear(rows, **quantized, bias=bias), expected, atol=1e-5, rtol=1e-5)
    by_type = linear(rows.view(3, 3, 96), Weight("fp8", **quantized, bias=bias))
    assert torch.equal(by_type.flatten(0, 1), fp8_linear(rows, **quantized, bias=bias))


def test_fp8_linear_of_many_output_channels_is_that_of_each(monkeypatch):
    monkeypatch.setattr("qalign_kernels.linear._CHUNK", 96 * 10)  # ten channels are widened together
    rows, quantized = _random(9, 96, seed=5), quantize_fp8(_random(24, 96))
    expected = F.linear(fake_fp8_rows(rows), expand(quantized, 96))
    torch.testing.assert_close(fp8_linear(rows, **quantized), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows, width, group", SHAPES)
def test_int4_linear_is_the_fake_quantized_linear(rows, width, group):
    x, quantized = _random(9, width, seed=5), quantize_int4(_random(rows, width), group)
    expected = F.linear(fake_rows(x, group), expand(quantized, width))
    torch.testing.assert_close(int4_linear(x, **quantized, group=group), expected, atol=1e-5, rtol=1e-5)


def test_one_loud_row_does_not_cost_the_others_their_precision():
    """Per token: a scale per tensor would round the quiet rows to nothing."""
    rows, weight = _random(8, 64), _random(16, 64)
    rows[0] *= 1000
    quantized = quantize_int8(weight)
    assert relative_error(weight, quantized, rows[1:]) < 3e-4
    per_tensor = rows.abs().max() / 127
    rounded = (rows / per_tensor).round() * per_tensor
    off = F.linear(rounded[1:], expand(quantized, 64)) - F.linear(rows[1:], weight)
    assert off.square().sum() > 0.1 * F.linear(rows[1:], weight).square().sum()
    codes, scale = quantize_rows(rows)
    assert codes.abs().amax(1).eq(127).all()
    assert scale.shape == (8, 1)


@pytest.mark.parametrize("quantize", [quantize_int8, quantize_int4, quantize_fp8])
def test_relative_error_is_the_share_of_squares(quantize):
    weight, rows = _random(16, 256), _random(40, 256, seed=2)
    quantized = quantize(weight)
    if quantize is quantize_fp8:
        x = fake_fp8_rows(rows).double()
    else:
        x = fake_rows(rows, None if quantize is quantize_int8 else 128).double()
    assert torch.equal(read_rows(rows, quantized), x.float())
    y = rows.double() @ weight.double().T
    expected = float((x @ expand(quantized, 256).double().T - y).square().sum() / y.square().sum())
    assert relative_error(weight, quantized, rows) == pytest.approx(expected, rel=1e-3)


def _with_outliers(rows, width, seed):
    x = _random(rows, width, seed=seed)
    x[:, :3] *= 40
    return x


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_migration_moves_outliers_and_is_exact_in_float(precision):
    weights = [_random(48, 256), _random(600, 256, seed=4)]  # more than are sampled
    s = choose_migration(weights, _with_outliers(128, 256, seed=1), precision)
    unseen = _with_outliers(64, 256, seed=2)
    quantize = quantize_int8 if precision == "int8" else quantize_int4
    assert float(s.log().mean()) == pytest.approx(0, abs=1e-4)
    assert s[:3].min() > s[3:].max()
    for w in weights:
        torch.testing.assert_close(F.linear(unseen / s, w * s), F.linear(unseen, w), atol=1e-3, rtol=1e-4)
        assert relative_error(w * s, quantize(w * s), unseen / s) < 0.9 * relative_error(w, quantize(w), unseen)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_migration_is_exactly_none_where_nothing_is_gained(precision):
    # on int4's grid already, and the same range in every group
    weight = torch.randint(-8, 8, (400, 256), generator=torch.Generator().manual_seed(0)).float()
    weight[:, ::128], weight[:, 1::128] = -8, 7
    assert choose_migration([weight], _random(64, 256, seed=1), precision).eq(1).all()


def test_migration_is_none_where_the_gain_is_only_on_the_rows_it_was_found_on():
    rows = _random(128, 256, seed=1)
    rows[:64, :3] *= 40
    rows[64:, 3:6] *= 40  # the other half's outliers are others: moving the first ones makes it worse
    assert choose_migration([_random(32, 256)], rows, "int8").eq(1).all()


@pytest.mark.parametrize("rows", [torch.zeros(6, 64), _random(1, 64)])
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_migration_needs_rows_that_say_something(rows, precision):
    assert choose_migration([_random(8, 64)], rows, precision, 32).eq(1).all()


@pytest.mark.parametrize("hessian", [None, torch.eye(128)])
def test_constant_weights_are_kept(hessian):
    weight = torch.stack([torch.zeros(128), torch.full((128,), 0.3), torch.full((128,), -2.0)])
    torch.testing.assert_close(expand(quantize_int4(weight, 128, hessian), 128), weight)
    torch.testing.assert_close(expand(quantize_int8(weight), 128), weight)
    torch.testing.assert_close(expand(quantize_fp8(weight), 128), weight)


def test_one_row_of_zeros_has_no_error():
    weight, rows = _random(4, 64), torch.zeros(1, 64)
    assert relative_error(weight, quantize_int8(weight), rows) == 0
    assert relative_error(weight, quantize_fp8(weight), rows) == 0
    assert relative_error(weight, quantize_int4(weight, 32), rows) == 0
