"""The square with a gradient against the rule's pixels and against itself, shifted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from qalign_fast.pixels.float_square import pad_and_resize_floats
from qalign_fast.pixels.square import pad_and_resize

PAD = (122, 116, 104)
SIZES = [
    (112, 112),  # the model's own: nothing is resized
    (37, 91),  # enlarged, padded above and below
    (300, 120),  # shrunk by 2.7, padded left and right
    (1000, 999),  # many taps, an odd padding
]


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Random blocks, so that sums overshoot 0..255."""
    blocks = np.random.default_rng(seed).choice([0, 90, 255], (height // 3 + 1, width // 3 + 1, 3))
    return blocks.repeat(3, 0).repeat(3, 1)[:height, :width].astype(np.uint8)


def floats(pixels: np.ndarray) -> torch.Tensor:
    return torch.tensor(pixels).movedim(-1, 0)[None].double() / 255


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_without_rounding_it_is_within_two_roundings_of_the_rule(height: int, width: int) -> None:
    """The second product widens the first one's half steps by its weights' magnitudes, which sum to less than 1.3."""
    pixels = picture(height, width)
    expected = pad_and_resize(pixels, 112, PAD)
    found = 255 * pad_and_resize_floats(floats(pixels), 112, PAD)[0].movedim(0, -1).numpy()
    assert np.abs(found - expected).max() <= 0.5 + 0.5 * 1.3 + 0.01
    assert abs((found - expected).mean()) < 0.02
    if (height, width) == (112, 112):
        np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_rounded_it_is_the_rule_to_the_bit_with_the_same_gradient(height: int, width: int) -> None:
    pixels = picture(height, width, seed=1)
    images = [floats(pixels).requires_grad_() for _ in range(2)]
    weights = torch.randn(1, 3, 112, 112, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rounded, smooth = (pad_and_resize_floats(x, 112, PAD, r) for x, r in zip(images, (True, False), strict=True))
    steps = 255 * rounded[0].movedim(0, -1).detach().numpy()
    np.testing.assert_allclose(steps, pad_and_resize(pixels, 112, PAD), atol=1e-9)
    gradients = [torch.autograd.grad((y * weights).sum(), x)[0] for x, y in zip(images, (rounded, smooth), strict=True)]
    assert torch.equal(*gradients)
    assert gradients[0].abs().max() > 0


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_white_picture_keeps_its_gradient(height: int, width: int) -> None:
    """A sum of weights may come out above 1 by rounding, and must not be clipped then."""
    white = torch.ones(1, 3, height, width, requires_grad=True)
    gradient = torch.autograd.grad(pad_and_resize_floats(white, 112, PAD)[..., 40:70, 40:70].sum(), white)[0]
    assert gradient.sum().item() == pytest.approx(3 * 30 * 30, rel=1e-5)  # each output's weights sum to 1


def test_the_gradient_is_that_of_central_differences() -> None:
    images = floats(np.asarray(Image.effect_noise((31, 20), 60).convert("RGB"))) * 0.8 + 0.1
    assert torch.autograd.gradcheck(
        lambda x: pad_and_resize_floats(x, 28, PAD), images[..., ::4].contiguous().requires_grad_(), atol=1e-8
    )
