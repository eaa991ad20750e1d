"""Triton's row-wise kernels against their contracts: norms, SwiGLU, patches, and the rounding to 8 bits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

pytest.importorskip("triton", reason="Triton is for Linux")

from qalign_kernels.contract import activation, norm
from qalign_kernels.contract.linear import linear
from qalign_kernels.contract.patches import split_patches
from qalign_kernels.contract.quantized_rows import E4M3, QuantizedRows, quantize_rows
from qalign_kernels.cuda import activation as activation_triton
from qalign_kernels.cuda import norm as norm_triton
from qalign_kernels.cuda import patches as patches_triton
from qalign_kernels.cuda.ops import TritonOps
from qalign_kernels.cuda.quantized_rows import quantize_rows as fast_quantize_rows
from support.interpreted import GPU, interpreted
from support.triton_cases import (
    BY_ROWS,
    EPS,
    FACTS,
    close,
    fp8_weight,
    int4_weight,
    int8_weight,
    on,
    rand,
    run_linear,
    same,
)

WIDTHS = [
    (1, 96),  # the last layer's one row
    (77, 128),  # a picture's rows
    (3, 588),  # a patch: no power of two, no multiple of 16
    (2, 2816),  # the abstractor's MLP: a row over several warps
]


@pytest.mark.parametrize("shape", WIDTHS)
@interpreted
def test_layer_norm(shape: tuple[int, int]) -> None:
    x, gain, bias = rand(*shape) * 3 + 1, torch.randn(shape[1]), torch.randn(shape[1])
    y = norm_triton.layer_norm(on(x), on(gain), on(bias), EPS)
    close(y, norm.layer_norm(x, gain, bias, EPS), 2e-6)
    for dtype in BY_ROWS:
        same(norm_triton.layer_norm_rows(on(x), on(gain), on(bias), EPS, dtype), quantize_rows(y.cpu(), dtype))


@pytest.mark.parametrize("shape", WIDTHS)
@interpreted
def test_rms_norm_has_a_gain_for_each_modality(shape: tuple[int, int]) -> None:
    x, visual, text, split = rand(*shape), torch.randn(shape[1]), torch.randn(shape[1]), shape[0] * 65 // 77
    y = norm_triton.rms_norm(on(x), on(visual), on(text), split, EPS)
    close(y, norm.rms_norm(x, visual, text, split, EPS), 2e-6)
    for dtype in BY_ROWS:
        rows = norm_triton.rms_norm_rows(on(x), on(visual), on(text), split, EPS, dtype)
        same(rows, quantize_rows(y.cpu(), dtype))


@pytest.mark.parametrize("shape", WIDTHS)
@interpreted
def test_swiglu(shape: tuple[int, int]) -> None:
    x = rand(shape[0], 2 * shape[1])
    y = activation_triton.swiglu(on(x))
    torch.testing.assert_close(y.cpu(), activation.swiglu(x), rtol=2e-6, atol=1e-6)
    for dtype in BY_ROWS:
        same(activation_triton.swiglu_rows(on(x), dtype), quantize_rows(y.cpu(), dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@interpreted
def test_halves_are_rounded_once(dtype: torch.dtype) -> None:
    x, gain, bias = rand(77, 96).to(dtype), torch.randn(96), torch.randn(96)
    nearest = GPU or dtype == torch.float16  # the interpreter cuts bfloat16 off
    share = torch.finfo(dtype).eps / (2 if nearest else 1) + 2e-6
    y = norm_triton.layer_norm(on(x), on(gain), on(bias), EPS)
    close(y, norm.layer_norm(x.float(), gain, bias, EPS), share)
    z = activation_triton.swiglu(on(x))
    close(z, activation.swiglu(x.float()), share)
    assert y.dtype == z.dtype == dtype


@pytest.mark.parametrize("dtype", BY_ROWS)
@pytest.mark.parametrize("shape", WIDTHS)
@interpreted
def test_rows_in_8_bits_are_the_contracts_to_the_bit(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x = rand(*shape) * torch.logspace(-20, 20, shape[0]).unsqueeze(1)
    same(fast_quantize_rows(on(x), dtype), quantize_rows(x, dtype))


@interpreted
def test_ties_are_rounded_to_even_and_a_row_of_zeros_stays() -> None:
    x = torch.zeros(2, 254)
    x[0] = torch.arange(-127, 127) + 0.5
    x[0, 0] = 127  # a scale of 1
    same(fast_quantize_rows(on(x)), quantize_rows(x))


@pytest.mark.skipif(E4M3 not in BY_ROWS, reason="this GPU has no fp8")
@interpreted
def test_every_value_of_fp8_and_what_lies_between_is_rounded_as_the_contract_has_it() -> None:
    values = torch.arange(0x7F, dtype=torch.uint8).view(E4M3).float()  # 0 to 448; 0x7f is NaN
    ties = (values[1:] + values[:-1]) / 2  # exact in float32
    near = torch.cat([ties * (1 + step * torch.finfo(torch.float32).eps) for step in (-1, 0, 1)])
    x = torch.cat((values, near))
    x = torch.stack((x, -x))
    x[:, 0] = 448  # a scale of 1
    same(fast_quantize_rows(on(x), E4M3), quantize_rows(x, E4M3))
    assert torch.equal(fast_quantize_rows(on(x), E4M3).values[0, : len(values)].cpu().float()[1:], values[1:])


@pytest.mark.parametrize("dtype", BY_ROWS)
@interpreted
def test_the_largest_value_and_a_row_of_zeros_stay_finite(dtype: torch.dtype) -> None:
    x = torch.zeros(200, 64)
    x[1:, 3], x[1:, 5] = torch.rand(199) * 1e4, -1e-3
    x[2, 3], x[3, 3] = -1e30, 1e-38
    rows = fast_quantize_rows(on(x), dtype)
    same(rows, quantize_rows(x, dtype))
    largest = {torch.int8: 127, E4M3: 448}[dtype]
    assert (rows.values.cpu().float().abs().amax(1)[[*range(1, 3), *range(4, 200)]] == largest).all()
    w = int8_weight(64, 16, bias=False) if dtype == torch.int8 else fp8_weight(64, 16, bias=False)
    y = run_linear(x, w)
    assert y.isfinite().all()
    assert (y[0] == 0).all()


@pytest.mark.parametrize("dtype", [*BY_ROWS, torch.float16, torch.float32])
@interpreted
def test_patches_of_pixels_are_the_contracts(dtype: torch.dtype) -> None:
    pixels = torch.randint(0, 256, (2, 28, 28, 3), dtype=torch.uint8)
    pixels[1, :14, :14] = 0  # a patch of zeros
    rows, found = split_patches(pixels, 14).float(), patches_triton.split_patches(on(pixels), 14, 592, dtype)
    assert found.shape == (2, 4, 592)
    plain = patches_triton.split_patches(on(pixels), 14)  # the contract's arguments alone
    assert isinstance(plain, Tensor)
    assert torch.equal(plain.cpu(), rows)
    if isinstance(found, QuantizedRows):
        same(found, quantize_rows(F.pad(rows, (0, 4)), dtype))
    else:
        assert torch.equal(found.cpu().float(), F.pad(rows, (0, 4)))


@interpreted
def test_patches_come_as_long_as_an_int4_weight() -> None:
    pixels, w = torch.randint(0, 256, (2, 28, 28, 3), dtype=torch.uint8), int4_weight(588, 48)
    rows = TritonOps(FACTS, torch.float32).patches_for(on(w), on(pixels), 14)
    assert isinstance(rows, QuantizedRows)
    same(rows, quantize_rows(F.pad(split_patches(pixels, 14).float(), (0, 52))))
    close(run_linear(rows, w), linear(split_patches(pixels, 14).float(), w), 1e-6)
