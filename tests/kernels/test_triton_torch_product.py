"""Torch's own products with the epilogue that our kernel adds to them, against the contract."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.torch_version import TorchVersion

pytest.importorskip("triton", reason="Triton is for Linux")

from qalign_kernels.contract.quantized_rows import E4M3, quantize_rows
from qalign_kernels.contract.weight import Weight
from qalign_kernels.cuda import linear as linear_triton
from qalign_kernels.cuda import torch_product
from qalign_kernels.cuda.launch import Epilogue
from qalign_kernels.cuda.linear import align
from qalign_kernels.cuda.linear import linear as fast_linear
from qalign_kernels.cuda.quantized_rows import quantize_rows as fast_quantize_rows
from qalign_kernels.cuda.tiles import Tile
from support.goldens import ROOT
from support.interpreted import GPU, interpreted
from support.triton_cases import BY_ROWS, FACTS, SUMS, close, expected_linear, fp8_weight, int8_weight, on, rand

CUBLAS = E4M3 in BY_ROWS and (not GPU or torch_product.by_cublas(FACTS.capability, "float8_e4m3fn"))
SCALED_MM = GPU or TorchVersion(torch.__version__) >= (2, 13)  # by rows on a CPU, if not before


def run_torchs_own(x: Tensor, w: Weight, gelu: bool, residual: Tensor | None, dtype: torch.dtype) -> Tensor:
    return fast_linear(on(x), on(w), None, Epilogue(dtype, "quick_gelu" if gelu else None, on(residual)))


def float_weight(dtype: torch.dtype, k: int, n: int, bias: bool = True) -> Weight:
    return Weight("float", torch.randn(n, k).to(dtype), None, None, torch.randn(n).to(dtype) if bias else None)


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@interpreted
def test_floats_by_torchs_own_product(dtype: torch.dtype, bias: bool, residual: bool, gelu: bool) -> None:
    """Results in the weight's dtype and in another, with more columns and rows than one program of the epilogue has."""
    x, w, added = rand(18, 96), float_weight(dtype, 96, 600, bias), torch.randn(18, 600).to(dtype) if residual else None
    wide = Weight("wide", w.weight.float(), None, None, None if w.bias is None else w.bias.float())
    expected = expected_linear(x.to(dtype).float(), wide, gelu, None if added is None else added.float())
    for result in {dtype, torch.float32}:
        y = run_torchs_own(x, w, gelu, added, result)
        assert y.dtype == result
        close(y, expected, max(2e-6, 2.5 * torch.finfo(dtype).eps if dtype != torch.float32 else 0))


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", BY_ROWS)
@interpreted
def test_8_bits_by_torchs_own_product(dtype: torch.dtype, bias: bool, residual: bool, gelu: bool) -> None:
    if dtype == E4M3 and not SCALED_MM:
        pytest.skip("torch has no _scaled_mm by rows on this CPU")
    w = (int8_weight if dtype == torch.int8 else fp8_weight)(96, 48, bias)
    x, added = rand(18, 96), torch.randn(18, 48) if residual else None
    y = run_torchs_own(x, w, gelu, added, torch.float32)
    close(y, expected_linear(x, w, gelu, added), SUMS if dtype == E4M3 else 2e-6)


@interpreted
def test_what_torchs_own_product_adds_itself_takes_no_second_kernel() -> None:
    x, added = rand(18, 96).half(), torch.randn(18, 40).half()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear_triton, "finish_product", None)
        for bias, residual in ((False, None), (True, None), (False, added)):
            run_torchs_own(x, float_weight(torch.float16, 96, 40, bias), False, residual, torch.float16)
        with pytest.raises(TypeError):
            run_torchs_own(x, float_weight(torch.float16, 96, 40), False, added, torch.float16)


@pytest.mark.parametrize("bias", [None, torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.skipif(not CUBLAS or not SCALED_MM, reason="cuBLAS has no fp8 by rows here, nor has torch on a CPU")
@interpreted
def test_a_bias_of_the_results_type_is_added_by_the_product_in_fp8(
    dtype: torch.dtype, bias: torch.dtype | None
) -> None:
    x, w, added = rand(18, 96), fp8_weight(96, 48), torch.randn(18, 48)
    w = replace(w, bias=None if bias is None or w.bias is None else w.bias.to(bias))
    expected = {case: expected_linear(x, w, *case) for case in ((False, None), (True, None), (False, added))}
    finish, finished = linear_triton.finish_product, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear_triton, "finish_product", lambda *given: (finished.append(given[3]), finish(*given))[1])
        for case, y in expected.items():
            close(run_torchs_own(x, w, *case, dtype), y, SUMS + 2.5 * torch.finfo(dtype).eps * (dtype != torch.float32))
    alone = bias is None or bias == dtype != torch.float32
    assert len(finished) == (2 if alone else 3)
    if w.bias is not None:  # in the type that it was given in
        assert all(torch.equal(one.cpu(), w.bias) for one in finished)


@pytest.mark.parametrize(("k", "fast"), [(592, True), (1024, True), (2816, True), (4096, False), (11008, False)])
def test_long_sums_in_fp8_are_taken_without_fast_accumulation(
    k: int, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def look(values: Tensor, w: Tensor, use_fast_accum: bool, **_: Any) -> Tensor:
        seen.append(use_fast_accum)
        return torch.zeros(len(values), w.shape[1])

    monkeypatch.setattr(torch, "_scaled_mm", look)
    rows = quantize_rows(torch.randn(17, k), E4M3)
    fast_linear(rows, fp8_weight(k, 16, bias=False), None, Epilogue(torch.float32))
    assert seen == [fast]


def test_fast_accumulation_is_for_sums_that_it_harms_less_than_a_tenth_as_much_as_fp8_does() -> None:
    """By what bench/studies/fp8_sums.py found, in every kind of rows. The longest rows are harmed more."""
    found = json.loads((ROOT / "bench/results/fp8_sums.json").read_text())["products"]
    harmed = {one["inputs"] for one in found if one["fast"] >= one["fp8"] / 10}
    measured = sorted({one["inputs"] for one in found if one["inputs"] < min(harmed)})
    assert measured[-1] == torch_product.LONGEST_FAST
    assert all(one["slow"] < one["fp8"] / 1000 for one in found)


@interpreted
def test_torchs_own_product_takes_last_rows_and_a_weight_aligned_to_more_inputs() -> None:
    x, w = rand(80, 588), int8_weight(588, 48)
    whole = run_torchs_own(x, align(w), False, None, torch.float32)
    close(whole, expected_linear(x, w, False, None), 1e-6)
    rows = fast_quantize_rows(on(rand(80, 96)))
    w, last = int8_weight(96, 48), slice(11, None, 4)
    own, ours = (
        fast_linear(rows[last], on(w), tile, Epilogue(torch.float32)) for tile in (None, Tile(16, 32, 32, 2, 4))
    )
    close(own, ours.cpu(), 1e-6)


@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.int8, E4M3])
def test_torchs_own_product_is_given_aligned_rows_and_scales(
    dtype: torch.dtype, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kv_text's rows begin after 65 visual rows of each picture. With few pictures, scales are at byte 260 or 520."""
    seen = []

    def look(values: Tensor, w: Tensor, scale_a: Tensor | None = None, **_: Any) -> Tensor:
        seen.extend([values, *([] if scale_a is None else [scale_a])])
        return torch.zeros(len(values), w.shape[1])

    monkeypatch.setattr(torch, "_int_mm", look)
    monkeypatch.setattr(torch, "_scaled_mm", look)
    monkeypatch.setattr(linear_triton, "finish_product", lambda product, scale, *_: (seen.append(scale), product)[1])
    w = int8_weight(32, 16, bias=False) if dtype == torch.int8 else fp8_weight(32, 16, bias=False)
    rows = quantize_rows(torch.randn(77 * batch, 32), dtype)[65 * batch :]
    fast_linear(rows, w, None, Epilogue(torch.float32))
    values, scale = seen
    assert values.data_ptr() % 16 == scale.data_ptr() % 16 == 0
    assert torch.equal(values.float(), rows.values.float())
    assert torch.equal(scale, rows.scale)


@pytest.mark.skipif(not GPU or E4M3 not in BY_ROWS, reason="needs a CUDA device that has fp8")
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_text_rows_of_few_pictures_are_multiplied_in_fp8(batch: int) -> None:
    w, x = fp8_weight(128, 64), rand(77 * batch, 128)
    rows = fast_quantize_rows(on(x), E4M3)[65 * batch :]
    found, expected = fast_linear(rows, on(w), None, Epilogue(torch.float32)), expected_linear(x, w, False, None)
    close(found, expected[65 * batch :], 1e-2)
