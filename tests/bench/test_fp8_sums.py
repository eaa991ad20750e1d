"""The model of how a Hopper GPU sums products of 8-bit floats. Fast accumulation is judged by it."""

from __future__ import annotations

import pytest
import torch

from fp8_sums import FAST, SLOW, Core, cut, errors


@pytest.mark.parametrize(
    ("x", "expected"), [(1 + 2**-13, 1 + 2**-13), (1 + 2**-14, 1.0), (-1 - 2**-14, -1.0), (0.0, 0.0)]
)
def test_what_lies_below_13_bits_is_cut_off(x: float, expected: float) -> None:
    assert cut(torch.tensor([x]), 13).item() == expected


def test_products_are_cut_off_below_the_largest_of_their_step() -> None:
    x, ones = torch.full((1, 64), 2.0**-7), torch.full((1, 64), 2.0**-7)
    x[0, 40] = ones[0, 40] = 1.0  # in the second step, where products of 2⁻¹⁴ are half of what is kept beside 1
    assert FAST.sums(x, ones).item() == 1 + 2**-9  # the first step's, 32 · 2⁻¹⁴, are added before
    assert Core(bits=14).sums(x, ones).item() == 1 + 2**-9 + 31 * 2**-14


def test_a_sum_of_one_sign_shrinks_but_where_parts_of_them_go_into_float32() -> None:
    x = torch.full((1, 11008), 1.125)
    exact, fast, slow = 11008 * 1.125**2, FAST.sums(x, x).item(), SLOW.sums(x, x).item()
    assert slow == exact
    assert fast < 0.9 * exact


def test_few_values_are_summed_exactly() -> None:
    x, w = torch.randint(-8, 9, (3, 50)).float(), torch.randint(-8, 9, (130, 50)).float()
    for core in (FAST, SLOW, Core(step=4)):
        assert torch.equal(core.sums(x, w), x @ w.T)


def test_errors_are_of_sums_alone() -> None:
    torch.manual_seed(0)
    one = errors("rows", torch.randn(4, 512), torch.randn(8, 512))
    assert one.slow < one.fast < one.fast_12_bits < one.fp8 < 3e-3
