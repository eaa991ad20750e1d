"""Every Triton kernel against its contract in plain torch.

Where there is a GPU the kernels run on it. Elsewhere Triton's interpreter runs them on a CPU's tensors, in a process of
its own: whether Triton interprets is settled when it is imported, and something else may have imported it in this one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import replace
from functools import wraps
from multiprocessing import get_context
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend
from torch.torch_version import TorchVersion

from support.goldens import GOLDEN, ROOT

pytest.importorskip("triton", reason="Triton is for Linux")

from qalign_export.parameters import open_parameters
from qalign_export.rounding.blockwise import fold_and_round
from qalign_export.rounding.quantizer import expand
from qalign_fast.engines.torch_cuda import CudaModel, to_device
from qalign_fast.families.mplug_owl2.model.folded import FoldedModel
from qalign_fast.families.mplug_owl2.prompts import prompt
from qalign_fast.levels import score_of
from qalign_kernels.contract import activation, attention, norm
from qalign_kernels.contract.attention import BACKENDS
from qalign_kernels.contract.linear import (
    FP8,
    Modal,
    Weight,
    linear,
    modal_linear,
    pack_int4,
    quantize_rows,
    spread_int4,
)
from qalign_kernels.contract.ops import PLAIN, Ops
from qalign_kernels.contract.patches import split_patches
from qalign_kernels.contract.quantized_rows import Rows
from qalign_kernels.cuda import activation as activation_triton
from qalign_kernels.cuda import attention as attention_triton
from qalign_kernels.cuda import norm as norm_triton
from qalign_kernels.cuda import patches as patches_triton
from qalign_kernels.cuda import tiles, torch_product
from qalign_kernels.cuda.epilogue import Epilogue
from qalign_kernels.cuda.linear import align
from qalign_kernels.cuda.linear import linear as fast_linear
from qalign_kernels.cuda.ops import TritonOps
from qalign_kernels.cuda.rows import quantize_rows as fast_quantize_rows
from qalign_kernels.cuda.runtime import Device
from qalign_kernels.cuda.tiles import Shares, Tile, table_key
from support.triton_ahead import DEVICES, FP8_SINCE

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
FACTS = Device.of(DEVICE) if GPU else DEVICES[80]
ENABLED = {
    "cuDNN": torch.backends.cuda.cudnn_sdp_enabled,
    "flash": torch.backends.cuda.flash_sdp_enabled,
    "efficient": torch.backends.cuda.mem_efficient_sdp_enabled,
    "math": torch.backends.cuda.math_sdp_enabled,
}
BY_ROWS = [torch.int8, FP8] if not GPU or FACTS.capability >= FP8_SINCE else [torch.int8]  # types of rows
CUBLAS = FP8 in BY_ROWS and (not GPU or torch_product.by_cublas(FACTS.capability, "float8_e4m3fn"))
SCALED_MM = GPU or TorchVersion(torch.__version__) >= (2, 13)  # by rows on a CPU, if not before
SUMS = 2**-8 if GPU else 2e-6  # how far off fp8's are: of each product a tensor core adds some 13 bits
FORMS = ["int8", "int4", "fp8"] if FP8 in BY_ROWS else ["int8", "int4"]
EPS = 1e-6
WIDTHS = [
    (1, 96),  # the last layer's one row
    (77, 128),  # a picture's rows
    (3, 588),  # a patch: no power of two, no multiple of 16
    (2, 2816),  # the abstractor's MLP: a row over several warps
]
SHAPES = [
    (1, 128, 96),  # the last layer's one row
    (77, 136, 80),  # a picture's rows; the last step is 8 inputs
    (1025, 64, 48),  # a picture's rows in the vision tower: several bands of tiles
    (5, 588, 33),  # patches; columns that fill no tile
    (16, 32, 5),  # the head
]
pool: list[Executor] = []


@pytest.fixture(scope="module", autouse=True)
def interpreter() -> Iterator[None]:
    if GPU:  # Triton would look at the environment when it compiles
        yield
        return
    with pytest.MonkeyPatch.context() as environment, ProcessPoolExecutor(1, get_context("spawn")) as executor:
        environment.setenv("TRITON_INTERPRET", "1")
        pool.append(executor)
        yield
        pool.clear()


def interpreted(check: Callable[..., None]) -> Callable[..., None]:
    """Makes a check on DEVICE a test, run where kernels can run."""

    @wraps(check)
    def test(**case: Any) -> None:
        if GPU:
            torch.manual_seed(0)
            check(**case)
        else:
            pool[0].submit(_run, check.__name__, case).result()

    return test


def _run(name: str, case: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    globals()[name].__wrapped__(**case)


def rand(*shape: int) -> Tensor:
    """Rows of which one has an outlier, as a LLaMA's have."""
    x = torch.randn(shape)
    x[-1, shape[-1] // 2] = 60
    return x


def on(x: Any) -> Any:
    """A tensor, a weight or what else there is, on the device."""
    if isinstance(x, Weight):
        return Weight(x.name, *(on(part) for part in (x.weight, x.scale, x.groups, x.bias)))
    return x.to(DEVICE) if isinstance(x, Tensor) else x


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """To that share of the largest magnitude, row by row."""
    assert found.shape == expected.shape
    off = (found.cpu().float() - expected).abs() / expected.abs().amax(-1, keepdim=True).clamp_min(1e-6)
    assert off.max() <= tolerance, f"off by {off.max():.2e}, tolerance {tolerance}"


def same(found: Rows, expected: tuple[Tensor, Tensor]) -> None:
    """To the bit, but for a zero's sign."""
    assert found.values.dtype == expected[0].dtype
    assert torch.equal(found.values.cpu().float(), expected[0].float())
    assert torch.equal(found.scale.cpu(), expected[1])


def int8_weight(k: int, n: int, bias: bool = True) -> Weight:
    codes = torch.randint(-127, 128, (n, k), dtype=torch.int8)
    return Weight("int8", codes, torch.rand(n) / 100, None, torch.randn(n) if bias else None)


def fp8_weight(k: int, n: int, bias: bool = True) -> Weight:
    return Weight("fp8", torch.randn(n, k).to(FP8), torch.rand(n) / 10, None, torch.randn(n) if bias else None)


def float_weight(dtype: torch.dtype, k: int, n: int, bias: bool = True) -> Weight:
    return Weight("float", torch.randn(n, k).to(dtype), None, None, torch.randn(n).to(dtype) if bias else None)


def int4_weight(k: int, n: int, bias: bool = True) -> Weight:
    """With every multiplier that |k (w - z)| allows for all w."""
    groups = -(-k // 128) * 4
    zero = torch.randint(0, 16, (n, groups), dtype=torch.uint8)
    most = (127 // torch.maximum(zero, 15 - zero)).clamp_max(16)
    multiplier = (torch.rand(n, groups) * most).to(torch.uint8) + 1
    codes = torch.randint(0, 16, (n, 32 * groups), dtype=torch.uint8)
    codes[:, k:] = 0
    weight, of_groups = pack_int4(codes, multiplier, zero)
    return Weight("int4", weight, torch.rand(n) / 100, of_groups, torch.randn(n) if bias else None)


WEIGHTS = {"int8": int8_weight, "int4": int4_weight, "fp8": fp8_weight}  # forms that read rows in 8 bits
STEP = {"int8": 32, "int4": 128, "fp8": 32, "float": 32}  # inputs, of weights by name


def expected_linear(x: Tensor, w: Weight, gelu: bool, residual: Tensor | None) -> Tensor:
    return PLAIN.linear(x, w, activation="quick_gelu" if gelu else None, residual=residual)


def run_linear(x: Tensor | Rows, w: Weight, gelu: bool = False, residual: Tensor | None = None, **tile: int) -> Tensor:
    """The kernel's float32 result, of many tiles and steps even where x is small."""
    small = Tile(64 if len(x) > 100 else 16, 32, STEP[w.name], 2, 4)
    epilogue = Epilogue(torch.float32, "quick_gelu" if gelu else None, on(residual))
    return fast_linear(on(x), on(w), small._replace(**tile), epilogue, Shares.of(FACTS, DEVICE))


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


@pytest.mark.skipif(FP8 not in BY_ROWS, reason="this GPU has no fp8")
@interpreted
def test_every_value_of_fp8_and_what_lies_between_is_rounded_as_the_contract_has_it() -> None:
    values = torch.arange(0x7F, dtype=torch.uint8).view(FP8).float()  # 0 to 448; 0x7f is NaN
    ties = (values[1:] + values[:-1]) / 2  # exact in float32
    near = torch.cat([ties * (1 + step * torch.finfo(torch.float32).eps) for step in (-1, 0, 1)])
    x = torch.cat((values, near))
    x = torch.stack((x, -x))
    x[:, 0] = 448  # a scale of 1
    same(fast_quantize_rows(on(x), FP8), quantize_rows(x, FP8))
    assert torch.equal(fast_quantize_rows(on(x), FP8).values[0, : len(values)].cpu().float()[1:], values[1:])


@pytest.mark.parametrize("dtype", BY_ROWS)
@interpreted
def test_the_largest_value_and_a_row_of_zeros_stay_finite(dtype: torch.dtype) -> None:
    x = torch.zeros(200, 64)
    x[1:, 3], x[1:, 5] = torch.rand(199) * 1e4, -1e-3
    x[2, 3], x[3, 3] = -1e30, 1e-38
    rows = fast_quantize_rows(on(x), dtype)
    same(rows, quantize_rows(x, dtype))
    largest = {torch.int8: 127, FP8: 448}[dtype]
    assert (rows.values.cpu().float().abs().amax(1)[[*range(1, 3), *range(4, 200)]] == largest).all()
    w = int8_weight(64, 16, bias=False) if dtype == torch.int8 else fp8_weight(64, 16, bias=False)
    y = run_linear(x, w)
    assert y.isfinite().all()
    assert (y[0] == 0).all()


@pytest.mark.parametrize("shape", SHAPES)
@interpreted
def test_int8_linear(shape: tuple[int, int, int]) -> None:
    m, k, n = shape
    x, w, residual = rand(m, k), int8_weight(k, n), torch.randn(m, n)
    close(run_linear(x, w, True, residual), expected_linear(x, w, True, residual), 1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.skipif(FP8 not in BY_ROWS, reason="this GPU has no fp8")
@interpreted
def test_fp8_linear(shape: tuple[int, int, int]) -> None:
    m, k, n = shape
    x, w, residual = rand(m, k), fp8_weight(k, n), torch.randn(m, n)
    close(run_linear(x, w, True, residual), expected_linear(x, w, True, residual), SUMS)


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("form", FORMS)
@interpreted
def test_epilogues(form: str, bias: bool, residual: bool, gelu: bool) -> None:
    w = WEIGHTS[form](96, 40, bias)
    x, added = rand(18, 96), torch.randn(18, 40) if residual else None
    close(run_linear(x, w, gelu, added), expected_linear(x, w, gelu, added), SUMS if form == "fp8" else 1e-6)


def run_torchs_own(x: Tensor, w: Weight, gelu: bool, residual: Tensor | None, dtype: torch.dtype) -> Tensor:
    return fast_linear(on(x), on(w), None, Epilogue(dtype, "quick_gelu" if gelu else None, on(residual)))


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@interpreted
def test_floats_by_torchs_own_product(dtype: torch.dtype, bias: bool, residual: bool, gelu: bool) -> None:
    """Results of the weight's type, and of another: more columns and rows than one program of the epilogue has."""
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
    if dtype == FP8 and not SCALED_MM:
        pytest.skip("torch has no _scaled_mm by rows on this CPU")
    w = (int8_weight if dtype == torch.int8 else fp8_weight)(96, 48, bias)
    x, added = rand(18, 96), torch.randn(18, 48) if residual else None
    y = run_torchs_own(x, w, gelu, added, torch.float32)
    close(y, expected_linear(x, w, gelu, added), SUMS if dtype == FP8 else 2e-6)


@interpreted
def test_what_torchs_own_product_adds_itself_takes_no_second_kernel() -> None:
    x, added = rand(18, 96).half(), torch.randn(18, 40).half()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_product, "finish_product", None)
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
    finish, finished = torch_product.finish_product, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_product, "finish_product", lambda *given: (finished.append(given[3]), finish(*given))[1])
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
    rows = Rows(*quantize_rows(torch.randn(17, k), FP8))
    fast_linear(rows, fp8_weight(k, 16, bias=False), None, Epilogue(torch.float32))
    assert seen == [fast]


def test_fast_accumulation_is_for_sums_that_it_harms_less_than_a_tenth_as_much_as_fp8_does() -> None:
    """By what bench/qalign_bench/fp8_sums.py found, in every kind of rows: the longest of them are harmed more."""
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


@pytest.mark.parametrize("form", ["int8", "int4"])
@pytest.mark.parametrize("splits", [2, 3, 5])
@pytest.mark.parametrize("shape", SHAPES[:4])
@interpreted
def test_parts_of_a_tile_add_up_to_the_same_bits(shape: tuple[int, int, int], splits: int, form: str) -> None:
    m, k, n = shape
    x, w, residual, shares = rand(m, k), WEIGHTS[form](k, n), torch.randn(m, n), Shares.of(FACTS, DEVICE)
    whole = run_linear(x, w, True, residual)
    tile, epilogue = (
        Tile(64 if m > 100 else 16, 32, STEP[form], 2, 4, splits),
        Epilogue(torch.float32, "quick_gelu", on(residual)),
    )
    for _ in range(2):  # what one product leaves is what the next one finds
        assert torch.equal(fast_linear(on(x), on(w), tile, epilogue, shares), whole)
        assert not shares.sums.any()
        assert not shares.arrived.any()


@pytest.mark.parametrize("form", ["int8", "int4"])
@pytest.mark.parametrize("splits", [1, 3])
@interpreted
def test_rows_that_are_two_powers_of_two(splits: int, form: str) -> None:
    shares, residual = Shares.of(FACTS, DEVICE), torch.randn(90, 48)
    for m in (1, 64, 77, 80, 90):
        x, w = rand(m, 136), WEIGHTS[form](136, 48)
        epilogue = Epilogue(torch.float32, "quick_gelu", on(residual[:m]))
        y = fast_linear(on(x), on(w), Tile(80, 32, STEP[form], 2, 4, splits), epilogue, shares)
        assert torch.equal(y, run_linear(x, w, True, residual[:m]))
        assert not shares.sums.any()
        assert not shares.arrived.any()


@interpreted
def test_tiles_that_are_finished_by_halves() -> None:
    x, w, residual = rand(140, 72), int8_weight(72, 200), torch.randn(140, 200)
    large = run_linear(x, w, True, residual, rows=128, columns=128)
    assert torch.equal(large, run_linear(x, w, True, residual))


@pytest.mark.parametrize(
    "modal",
    [
        Modal(65, 96),  # one picture's rows: q of all, k and v of each modality
        Modal(65, 0),  # the last layer's k and v
        Modal(32, 64),  # tiles that end with both
    ],
)
@pytest.mark.parametrize("form", ["int8", "int4"])
@pytest.mark.parametrize("splits", [1, 3])
@interpreted
def test_linears_of_each_modality_in_one_product(modal: Modal, splits: int, form: str) -> None:
    x, w = rand(77, 384), WEIGHTS[form](384, modal.common + 2 * 72)
    tile = Tile(32, 32, STEP[form], 2, 4, splits)
    y = fast_linear(on(x), on(w), tile, Epilogue(torch.float32), Shares.of(FACTS, DEVICE), modal)
    expected = modal_linear(x, w, modal)
    assert expected.shape == (77, modal.common + 72)
    close(y, expected, 1e-6)
    apart = [
        linear(x[: modal.split], w.part(modal.common, modal.common + 72)),
        linear(x[modal.split :], w.part(modal.common + 72, modal.common + 144)),
    ]
    assert torch.equal(expected[:, modal.common :], torch.cat(apart))


@pytest.mark.parametrize("dtype", [*BY_ROWS, torch.float16, torch.float32])
@interpreted
def test_patches_of_pixels_are_the_contracts(dtype: torch.dtype) -> None:
    pixels = torch.randint(0, 256, (2, 28, 28, 3), dtype=torch.uint8)
    pixels[1, :14, :14] = 0  # a patch of zeros
    rows, found = split_patches(pixels, 14).float(), patches_triton.split_patches(on(pixels), 14, 592, dtype)
    assert found.shape == (2, 4, 592)
    if isinstance(found, Rows):
        same(found, quantize_rows(F.pad(rows, (0, 4)), dtype))
    else:
        assert torch.equal(found.cpu().float(), F.pad(rows, (0, 4)))


@pytest.mark.skipif(not GPU or FACTS.capability != 90, reason="for sm_90")
@pytest.mark.parametrize("tile", [Tile(128, 128, 128, 3, 4, hopper=True), Tile(256, 128, 128, 4, 8, hopper=True)])
@pytest.mark.parametrize(
    "shape",
    [
        (77, 4096, 4096),  # a decoder's product of one picture: every tile is shared
        (77, 11008, 4096),
        (616, 4096, 4096),  # of eight
        (1025, 1024, 3072),  # vision's
        (8200, 1024, 1024),
        (1024, 592, 1024),  # patches: the last step is 80 inputs
        (300, 112, 72),  # less than one step, columns that fill no tile
    ],
)
def test_hoppers_product_is_the_others_to_the_bit(shape: tuple[int, int, int], tile: Tile) -> None:
    m, k, n = shape
    x, w, residual, shares = rand(m, k), int8_weight(k, n), torch.randn(m, n).half(), Shares.of(FACTS, DEVICE)
    rows, small = fast_quantize_rows(on(x)), Tile(64, 64, 128, 3, 4)
    for epilogue in (
        Epilogue(torch.float16, "quick_gelu"),
        Epilogue(torch.float32),
        Epilogue(torch.float16, None, on(residual)),
    ):
        other = fast_linear(rows, on(w), small, epilogue)
        for _ in range(5):
            found = fast_linear(rows, on(w), tile, epilogue, shares)
            assert torch.equal(found, other) if epilogue.activation is None else torch.allclose(found, other, rtol=1e-3)
            assert not shares.sums.any()
            assert not shares.arrived.any()
    modal, stacked = Modal(m * 65 // 77, 0), on(int8_weight(k, 2 * n, bias=False))
    close(fast_linear(rows, stacked, tile, Epilogue(torch.float32), shares, modal),
          fast_linear(rows, stacked, small, Epilogue(torch.float32), None, modal).cpu(), 0)  # fmt: skip


@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.int8, FP8])
def test_torchs_own_product_is_given_aligned_rows_and_scales(
    dtype: torch.dtype, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kv_text's rows begin after 65 visual ones a picture: their scales at byte 260 or 520 of few pictures."""
    seen = []

    def look(values: Tensor, w: Tensor, scale_a: Tensor | None = None, **_: Any) -> Tensor:
        seen.extend([values, *([] if scale_a is None else [scale_a])])
        return torch.zeros(len(values), w.shape[1])

    monkeypatch.setattr(torch, "_int_mm", look)
    monkeypatch.setattr(torch, "_scaled_mm", look)
    monkeypatch.setattr(torch_product, "finish_product", lambda product, scale, *_: (seen.append(scale), product)[1])
    w = int8_weight(32, 16, bias=False) if dtype == torch.int8 else fp8_weight(32, 16, bias=False)
    rows = Rows(*quantize_rows(torch.randn(77 * batch, 32), dtype))[65 * batch :]
    fast_linear(rows, w, None, Epilogue(torch.float32))
    values, scale = seen
    assert values.data_ptr() % 16 == scale.data_ptr() % 16 == 0
    assert torch.equal(values.float(), rows.values.float())
    assert torch.equal(scale, rows.scale)


@pytest.mark.skipif(not GPU or FP8 not in BY_ROWS, reason="needs a CUDA device that has fp8")
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_text_rows_of_few_pictures_are_multiplied_in_fp8(batch: int) -> None:
    w, x = fp8_weight(128, 64), rand(77 * batch, 128)
    rows = fast_quantize_rows(on(x), FP8)[65 * batch :]
    found, expected = fast_linear(rows, on(w), None, Epilogue(torch.float32)), expected_linear(x, w, False, None)
    close(found, expected[65 * batch :], 1e-2)


@interpreted
def test_int8_sums_are_exact_at_their_largest() -> None:
    k = 11008  # the longest row: 127 * 127 * 11008 needs 28 bits, more than a float32 has
    w = Weight("int8", torch.full((16, k), 127, dtype=torch.int8), torch.ones(16))
    w.weight[0, 0] = 126
    rows = Rows(torch.full((1, k), 127, dtype=torch.int8), torch.full((1, 1), 1.0))
    exact = torch.tensor([127 * 127 * k - 127] + 15 * [127 * 127 * k])
    y = run_linear(Rows(on(rows.values), on(rows.scale)), w, inputs=256)
    assert torch.equal(y.cpu()[0], exact.float())


@pytest.mark.parametrize("shape", SHAPES)
@interpreted
def test_int4_linear(shape: tuple[int, int, int]) -> None:
    """The contract's, and to the bit what int8's is of the weights that it spreads, of rows filled up and not."""
    m, k, n = shape
    x, w, residual = rand(m, k), int4_weight(k, n), torch.randn(m, n)
    assert w.groups is not None
    y = run_linear(x, w, True, residual)
    close(y, expected_linear(x, w, True, residual), 1e-6)
    eight = Weight("int8", spread_int4(w.weight, w.groups, k), w.scale, None, w.bias)
    assert torch.equal(y, run_linear(x, eight, True, residual))
    assert torch.equal(y, run_linear(fast_quantize_rows(on(x)), w, True, residual))


@interpreted
def test_every_code_of_every_group_is_spread_as_the_contract_has_it() -> None:
    groups = [(k, z) for k in range(1, 17) for z in range(16) if k * max(z, 15 - z) <= 127]
    multiplier, zero = (torch.tensor(one, dtype=torch.uint8).view(-1, 1).expand(-1, 4) for one in zip(*groups))
    weight, of_groups = pack_int4(torch.arange(16, dtype=torch.uint8).repeat(len(groups), 8), multiplier, zero)
    rows = Rows(torch.eye(128, dtype=torch.int8), torch.ones(128, 1))
    y = run_linear(Rows(on(rows.values), on(rows.scale)), Weight("int4", weight, torch.ones(len(groups)), of_groups))
    assert torch.equal(y.cpu().T, spread_int4(weight, of_groups, 128).float())


@interpreted
def test_int4_sums_are_exact_at_their_largest() -> None:
    k = 11008
    zero, multiplier = torch.zeros(16, k // 32, dtype=torch.uint8), torch.full((16, k // 32), 9, dtype=torch.uint8)
    codes = torch.full((16, k), 14, dtype=torch.uint8)  # 9 times that is 126
    codes[0, 0] = 13
    weight, of_groups = pack_int4(codes, multiplier, zero)
    rows = Rows(on(torch.full((1, k), 127, dtype=torch.int8)), on(torch.ones(1, 1)))
    y = run_linear(rows, Weight("int4", weight, torch.ones(16), of_groups))
    exact = torch.tensor([127 * 126 * k - 127 * 9] + 15 * [127 * 126 * k])
    assert torch.equal(y.cpu()[0], exact.float())


@interpreted
def test_patches_come_as_long_as_an_int4_weight() -> None:
    pixels, w = torch.randint(0, 256, (2, 28, 28, 3), dtype=torch.uint8), int4_weight(588, 48)
    rows = TritonOps(FACTS, torch.float32).patches_for(on(w), on(pixels), 14)
    assert isinstance(rows, Rows)
    same(rows, quantize_rows(F.pad(split_patches(pixels, 14).float(), (0, 52))))
    close(run_linear(rows, w), linear(split_patches(pixels, 14).float(), w), 1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@interpreted
def test_float_linear(shape: tuple[int, int, int]) -> None:
    m, k, n = shape
    x, residual = rand(m, k), torch.randn(m, n)
    for dtype in (torch.float32, torch.float16):  # the interpreter multiplies bfloat16's bits, not its values
        w = Weight("float", torch.randn(n, k).to(dtype), None, None, torch.randn(n))
        product = x.to(dtype).float() @ w.weight.float().T + w.bias  # torch would round it to the weight's type
        y = run_linear(x, w, True, residual)
        close(y, residual + activation.quick_gelu(product), 2e-6)


@interpreted
def test_aligned_inputs_change_nothing() -> None:
    x, w = rand(5, 588), int8_weight(588, 48)
    assert align(w).weight.shape == (48, 592)
    assert torch.equal(run_linear(x, align(w)), run_linear(x, w))
    half = Weight("float", torch.randn(48, 588).half())
    close(run_linear(x, align(half)), run_linear(x, half).cpu(), 1e-6)


@interpreted
def test_last_rows_are_taken_without_a_copy() -> None:
    ops, w = TritonOps(FACTS, torch.float32), int8_weight(96, 48)
    x, gain = rand(10, 96), torch.rand(96)
    rows = ops.rms_norm_for([w], on(x), on(gain), on(gain), 4, EPS)
    assert isinstance(rows, Rows)
    last = rows[6::3]  # two sequences of two visual and three text rows
    assert last.values.data_ptr() == rows.values[6].data_ptr()
    y = ops.linear(last, on(w))
    assert torch.equal(y, ops.linear(rows, on(w))[6::3])
    exact = norm_triton.rms_norm(on(x), on(gain), on(gain), 4, EPS).cpu()
    close(y, linear(exact[6::3], w), 1e-6)


@interpreted
def test_rows_are_in_8_bits_only_where_every_reader_takes_them() -> None:
    ops, x = TritonOps(FACTS, torch.float16), on(rand(3, 96))
    int8, int4, half = int8_weight(96, 16), int4_weight(96, 16), Weight("half", torch.zeros(16, 96).half())
    gain, fp8 = on(torch.ones(96)), fp8_weight(96, 16)
    cases = [([int8, int8], Rows), ([int8, half], Tensor), ([int4, int8], Rows), ([half], Tensor),
             ([int8, fp8], Tensor), ([int4, fp8], Tensor)]  # fmt: skip
    for readers, kind in cases + ([([fp8, fp8], Rows)] if FP8 in BY_ROWS else []):
        found = [
            ops.rms_norm_for(readers, x, gain, gain, 2, EPS),
            ops.layer_norm_for(readers, x, gain, gain, EPS),
            ops.swiglu_for(readers, x),
        ]
        assert all(isinstance(one, kind) for one in found)
        assert all(one.values.dtype == readers[-1].weight.dtype for one in found if isinstance(one, Rows))
        assert all(one.dtype == torch.float16 for one in found[:2] if isinstance(one, Tensor))


@interpreted
def test_broken_rows_stay_where_they_are() -> None:
    x, gain = rand(40, 96), torch.rand(96)
    broken = x.clone()
    broken[17:] = float("nan")
    fp8 = [fp8_weight(96, 48)] if FP8 in BY_ROWS else []
    for w in (int8_weight(96, 48), int4_weight(96, 48), Weight("float", torch.randn(48, 96)), *fp8):
        y = run_linear(norm_triton.rms_norm(on(broken), on(gain), on(gain), 20, EPS), w)
        assert torch.equal(y[:17], run_linear(norm_triton.rms_norm(on(x), on(gain), on(gain), 20, EPS), w)[:17])


def sequences(batch: int, visual: int, text: int, places: int, heads: int, width: int) -> list[Tensor]:
    """packed_attention's tensors with q for all rows."""
    d, t = heads * width, visual + text
    angle = torch.arange(places, places + t).float().outer(torch.rand(width // 2)).repeat(1, 2)
    q = torch.randn(batch * t, d) * width**-0.5
    kv = torch.randn(batch * visual, 2 * d), torch.randn(batch * text, 2 * d)
    return [q, *kv, torch.randn(2, places, heads, width), torch.stack((angle.cos(), angle.sin()))]


@pytest.mark.parametrize(
    "sizes",
    [
        (2, 65, 12, 15, 2, 32),  # OneAlign's quality prompt
        (1, 65, 15, 18, 1, 128),  # its aesthetics prompt, a whole head
        (3, 9, 4, 33, 2, 24),  # a prefix of more than one step; a head that is no power of two
        (1, 130, 12, 15, 1, 16),  # a clip of two frames
        (2, 31, 1, 3, 1, 16),  # a step of keys that ends with the sequence
    ],
)
@pytest.mark.parametrize("last", [False, True])
@interpreted
def test_packed_attention(sizes: tuple[int, ...], last: bool) -> None:
    q, *others = sequences(*sizes)
    q = q[: sizes[0]] if last else q
    expected = attention.packed_attention(q, *others, sizes[0])
    found = attention_triton.packed_attention(on(q), *(on(x) for x in others), sizes[0])
    largest = max(others[0].abs().max(), others[2].abs().max())
    assert (found.cpu() - expected).abs().max() <= 1e-5 * largest
    wide = on(torch.cat((q, q, q), dim=1))  # columns of a wider product
    beside = torch.cat((others[0], others[0]), dim=1)[:, others[0].shape[1] :]
    assert torch.equal(found, attention_triton.packed_attention(
        wide[:, q.shape[1] : 2 * q.shape[1]], on(beside), *(on(x) for x in others[1:]), sizes[0]))  # fmt: skip
    halves = (on(x.half()) for x in others[:2])
    found = attention_triton.packed_attention(on(q.half()), *halves, on(others[2]), on(others[3]), sizes[0])
    assert (found.cpu() - expected).abs().max() <= 2e-3 * largest


@pytest.mark.parametrize(
    ("capability", "dtype", "cudnn", "asked"),
    [
        (90, torch.float16, 91900, ["cuDNN", "flash", "efficient", "math"]),
        (86, torch.float16, 91900, ["flash", "cuDNN", "efficient", "math"]),
        (90, torch.float16, 91002, ["flash", "efficient", "math"]),  # is wrong on a picture's 1025 rows
        (90, torch.float16, None, ["flash", "efficient", "math"]),
        (90, torch.float32, 91900, ["efficient", "math"]),
    ],
)
def test_torchs_attention_is_asked_for_by_name(
    capability: int, dtype: torch.dtype, cudnn: int | None, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In that order while it is called, and torch is left as it was."""
    seen: list[list[str]] = []

    def look(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        order = (BACKENDS.get(SDPBackend(one), "") for one in torch._C._get_sdp_priority_order())
        seen.append([name for name in order if name and ENABLED[name]()])
        return q

    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: cudnn)
    before = torch._C._get_sdp_priority_order()
    ops, x = TritonOps(DEVICES[capability], dtype), torch.zeros(1, 2, 32)
    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", look)
    ops.attention(x, x, x, 2)
    assert seen == [asked]
    assert ops.name == f"Triton, {asked[0]} attention"
    assert torch._C._get_sdp_priority_order() == before


def test_attention_that_is_off_in_torch_stays_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91900)
    monkeypatch.setattr(torch.backends.cuda, "cudnn_sdp_enabled", lambda: False)
    assert TritonOps(DEVICES[90], torch.float16).name == "Triton, flash attention"


@pytest.mark.skipif(not GPU, reason="needs a CUDA device")
@pytest.mark.parametrize("batch", [1, 2, 64])
@pytest.mark.parametrize(("queries", "keys"), [(1025, 1025), (64, 1089)])
def test_every_attention_of_torchs_gives_the_same(queries: int, keys: int, batch: int) -> None:
    """By name and alone, on the vision tower's and the abstractor's shapes, laid as the model lays them: the first one
    asked for has to take them.
    """
    q = torch.randn(batch, queries, 3 * 1024, device=DEVICE).half()[..., :1024] / 8
    k, v = (torch.randn(batch, keys, 1024, device=DEVICE).half() for _ in range(2))
    expected = attention.attention(q.float(), k.float(), v.float(), 16)
    first = attention.attention_backends(FACTS.capability, torch.float16)[0]
    for backend in {first, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION}:
        found = attention.attention_by([backend], q, k, v, 16)
        assert (found.float() - expected).abs().max() < 2e-3 * v.abs().max(), backend


@interpreted
def test_a_sequence_does_not_see_another() -> None:
    q, visual, text, *others = sequences(2, 9, 4, 5, 2, 16)
    found = attention_triton.packed_attention(*(on(x) for x in (q, visual, text, *others)), 2)
    visual[9:], text[4:] = float("nan"), float("nan")
    beside = attention_triton.packed_attention(*(on(x) for x in (q, visual, text, *others)), 2)
    assert torch.equal(found[:9], beside[:9])
    assert torch.equal(found[18:22], beside[18:22])


@interpreted
def test_the_model_on_these_kernels_gives_upstreams_logits() -> None:
    source, tensors = open_parameters(GOLDEN / "narrow-112"), {}
    quality = prompt("quality")
    rounded = fold_and_round(source, "fp32", [quality], torch.empty(0), lambda name, x: tensors.update({name: on(x)}))
    expected = np.load(GOLDEN / "narrow-112/expected.npz")
    model = FoldedModel(source.config, tensors, TritonOps(FACTS, torch.float32))
    tokens = model.encode(on(torch.from_numpy(expected["resized_uint8"][:1])))
    logits = model.decode(tokens, on(rounded.prefixes[quality.prefix]), on(rounded.suffixes[quality.suffix]))
    np.testing.assert_allclose(logits.cpu().numpy(), expected["logits_quality_image"][:1], atol=2e-4)


@interpreted
def test_the_model_in_float16_by_torchs_own_products_gives_upstreams_scores() -> None:
    source, tensors = open_parameters(GOLDEN / "narrow-112"), {}
    quality = prompt("quality")
    rounded = fold_and_round(source, "fp16", [quality], torch.empty(0), tensors.__setitem__)
    expected = np.load(GOLDEN / "narrow-112/expected.npz")
    half, exact = TritonOps(FACTS, torch.float16), TritonOps(FACTS, torch.float32)
    model = CudaModel(source.config, to_device(tensors, DEVICE, torch.float16), half, exact)
    tokens = model.encode(on(torch.from_numpy(expected["resized_uint8"][:1])))
    prefix, suffix = rounded.prefixes[quality.prefix].half(), rounded.suffixes[quality.suffix].half()
    logits = model.decode(tokens, on(prefix), on(suffix)).cpu()
    assert logits.dtype == torch.float32
    assert abs(score_of(logits.numpy()[0], "quality").value - expected["score_quality_image"][0]) < 1e-2


class Apart(TritonOps):
    """Norms and SwiGLU as floats, which linears put into 8 bits themselves."""

    layer_norm_for = Ops.layer_norm_for
    rms_norm_for = Ops.rms_norm_for
    swiglu_for = Ops.swiglu_for


@pytest.mark.parametrize("precision", ["int8", "int4"])
@interpreted
def test_the_engines_model_is_the_packed_one_to_the_bit(precision: str) -> None:
    """q, k and v in one product, biases as a calibrated export has them; not in a layer whose k and v are floats."""
    source, tensors = open_parameters(GOLDEN / "narrow-112"), dict[str, Tensor]()
    quality = prompt("quality")
    rounded = fold_and_round(source, precision, [quality], torch.empty(0), tensors.__setitem__)
    for name in [name for name in tensors if re.fullmatch(r"decoder\..*\.(q|kv_visual|kv_text)\.weight", name)]:
        tensors[name.replace("weight", "bias")] = torch.randn(len(tensors[name]))
    floats = "decoder.layers.1.kv_visual."
    quantized = {part: tensors.pop(floats + part) for part in ("weight", "scale", "groups") if floats + part in tensors}
    tensors[f"{floats}weight"] = expand(quantized, source.config.decoder.width)
    pixels = on(torch.from_numpy(np.load(GOLDEN / "narrow-112/expected.npz")["resized_uint8"][:2]))
    constants = on(rounded.prefixes[quality.prefix]), on(rounded.suffixes[quality.suffix])
    ops = TritonOps(FACTS, torch.float32)
    model = CudaModel(source.config, to_device(tensors, DEVICE, torch.float32), ops, ops)
    assert "decoder.layers.0.qkv.bias" in model.tensors
    assert "decoder.layers.1.qkv.weight" not in model.tensors
    expected = FoldedModel(source.config, model.tensors, ops)  # which does not look at it
    tokens = model.encode(pixels)
    assert torch.equal(tokens, expected.encode(pixels))
    assert torch.equal(model.decode(tokens, *constants), expected.decode(tokens, *constants))


@pytest.mark.parametrize("precision", FORMS)
@interpreted
def test_rows_handed_on_in_8_bits_change_nothing(precision: str) -> None:
    source, tensors = open_parameters(GOLDEN / "narrow-112"), {}
    quality = prompt("quality")
    rounded = fold_and_round(
        source, precision, [quality], torch.empty(0), lambda name, x: tensors.update({name: on(x)})
    )
    constants = on(rounded.prefixes[quality.prefix]), on(rounded.suffixes[quality.suffix])
    pixels = on(torch.from_numpy(np.load(GOLDEN / "narrow-112/expected.npz")["resized_uint8"][:1]))
    handed, apart = (FoldedModel(source.config, tensors, kind(FACTS, torch.float32)) for kind in (TritonOps, Apart))
    tokens = handed.encode(pixels)
    assert torch.equal(tokens, apart.encode(pixels))
    assert torch.equal(handed.decode(tokens, *constants), apart.decode(tokens, *constants))


@pytest.mark.skipif(not GPU, reason="needs a CUDA device")
def test_a_tile_that_does_not_fit_this_gpu_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    huge = [256, 256, 256, 8, 8]  # a megabyte of shared memory
    monkeypatch.setattr(tiles, "measured", lambda: {table_key(FACTS): {"int8": [[77, 512, 512, *huge]]}})
    x, w = rand(77, 512), int8_weight(512, 512)
    with pytest.warns(UserWarning, match="refused here"):
        y = TritonOps(FACTS, torch.float32).linear(on(x), on(w))
    close(y, expected_linear(x, w, False, None), 1e-6)
