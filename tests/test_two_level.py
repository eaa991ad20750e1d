"""The two-level form of 4 bits that is measured beside int4: whole numbers of 8 bits, one float scale per channel."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from qalign_bench.two_level import Search, quantize_two_level
from qalign_export.quantizer import gram
from qalign_kernels.linear import fake_rows, int8_product, quantize_rows

WIDTHS = [(160, 64), (96, 128), (256, 32)]  # the mini model's, a group that is never full, several whole groups


def linear(width: int, rows: int = 512) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and rows that have loud inputs."""
    generator = torch.Generator().manual_seed(width)
    loud = torch.exp(torch.randn(width, generator=generator))
    mixed = torch.randn(rows, width, generator=generator) @ torch.randn(width, width, generator=generator) * loud
    return torch.randn(48, width, generator=generator), mixed


@pytest.mark.parametrize(("width", "group"), WIDTHS)
@pytest.mark.parametrize("gptq", [False, True])
def test_its_product_is_one_sum_of_whole_numbers(width: int, group: int, gptq: bool) -> None:
    weight, x = linear(width)
    found = quantize_two_level(weight, group, gram(x, width) if gptq else None)
    eight_bit = found.eight_bit(width)
    assert torch.equal(eight_bit, eight_bit.round())
    assert eight_bit.abs().max() <= 127
    steps = found.steps.amax(-1) - found.steps.amin(-1)
    assert steps.max() <= 15
    assert ((found.multiplier >= 1) & (found.multiplier <= 16)).all()
    rows, scale = quantize_rows(x)
    y = int8_product(rows, eight_bit.to(torch.int8)).float() * scale * found.scale
    torch.testing.assert_close(y, F.linear(fake_rows(x), found.expand(width)), rtol=1e-4, atol=1e-4 * float(y.std()))


@pytest.mark.parametrize(("width", "group"), WIDTHS)
def test_what_is_searched_and_made_up_for_loses_less(width: int, group: int) -> None:
    weight, x = linear(width)
    seen, unseen = x[::2], x[1::2]
    plain = Search(scale=False, clip=False, zeros=(0,), refit=False)
    found = [
        quantize_two_level(weight, group, None, plain),
        quantize_two_level(weight, group, gram(seen, width), plain),
        quantize_two_level(weight, group, gram(seen, width)),
    ]
    errors = [float(F.linear(unseen, w.expand(width) - weight).square().sum()) for w in found]
    assert errors == sorted(errors, reverse=True)


def test_without_zero_points_the_steps_are_from_minus_8_to_7() -> None:
    weight, x = linear(160)
    steps = quantize_two_level(weight, 64, gram(x, 160), Search(zeros=None)).steps
    assert (float(steps.min()), float(steps.max())) == (-8, 7)


def test_weights_of_nothing_stay_nothing() -> None:
    assert not quantize_two_level(torch.zeros(4, 64), 32, torch.eye(64).unsqueeze(0)).expand(64).any()
