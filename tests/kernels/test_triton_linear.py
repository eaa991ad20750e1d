"""Triton's products, in every precision and by every kind of tile, against the contract."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="Triton is for Linux")

from qalign_kernels.contract import activation
from qalign_kernels.contract.linear import linear, modal_linear, pack_int4, spread_int4
from qalign_kernels.contract.quantized_rows import E4M3, QuantizedRows
from qalign_kernels.contract.weight import Modal, Weight
from qalign_kernels.cuda import norm as norm_triton
from qalign_kernels.cuda.launch import Epilogue
from qalign_kernels.cuda.linear import align
from qalign_kernels.cuda.linear import linear as fast_linear
from qalign_kernels.cuda.quantized_rows import quantize_rows as fast_quantize_rows
from qalign_kernels.cuda.tiles import Shares, Tile
from support.interpreted import GPU, interpreted
from support.triton_cases import (
    BY_ROWS,
    DEVICE,
    EPS,
    FACTS,
    FORMS,
    STEP,
    SUMS,
    WEIGHTS,
    close,
    expected_linear,
    fp8_weight,
    int4_weight,
    int8_weight,
    on,
    rand,
    run_linear,
)

SHAPES = [
    (1, 128, 96),  # the last layer's one row
    (77, 136, 80),  # a picture's rows; the last step is 8 inputs
    (1025, 64, 48),  # a picture's rows in the vision tower: several bands of tiles
    (5, 588, 33),  # patches; columns that fill no tile
    (16, 32, 5),  # the head
]


@pytest.mark.parametrize("shape", SHAPES)
@interpreted
def test_int8_linear(shape: tuple[int, int, int]) -> None:
    m, k, n = shape
    x, w, residual = rand(m, k), int8_weight(k, n), torch.randn(m, n)
    close(run_linear(x, w, True, residual), expected_linear(x, w, True, residual), 1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.skipif(E4M3 not in BY_ROWS, reason="this GPU has no fp8")
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


@pytest.mark.parametrize("form", ["int8", "int4"])
@pytest.mark.parametrize(
    ("shape", "splits"),
    [(shape, splits) for shape in SHAPES[:4] for splits in ((2, 3, 5) if shape[0] < 1000 else (3,))],
)
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


@interpreted
def test_int8_sums_are_exact_at_their_largest() -> None:
    k = 11008  # the longest row: 127 * 127 * 11008 needs 28 bits, more than a float32 has
    w = Weight("int8", torch.full((16, k), 127, dtype=torch.int8), torch.ones(16))
    w.weight[0, 0] = 126
    rows = QuantizedRows(torch.full((1, k), 127, dtype=torch.int8), torch.full((1, 1), 1.0))
    exact = torch.tensor([127 * 127 * k - 127] + 15 * [127 * 127 * k])
    y = run_linear(QuantizedRows(on(rows.values), on(rows.scale)), w, inputs=256)
    assert torch.equal(y.cpu()[0], exact.float())


@pytest.mark.parametrize("shape", SHAPES)
@interpreted
def test_int4_linear(shape: tuple[int, int, int]) -> None:
    """The contract's result, and to the bit that of int8 by the spread weights; for rows filled up and not."""
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
    rows = QuantizedRows(torch.eye(128, dtype=torch.int8), torch.ones(128, 1))
    y = run_linear(
        QuantizedRows(on(rows.values), on(rows.scale)), Weight("int4", weight, torch.ones(len(groups)), of_groups)
    )
    assert torch.equal(y.cpu().T, spread_int4(weight, of_groups, 128).float())


@interpreted
def test_int4_sums_are_exact_at_their_largest() -> None:
    k = 11008
    zero, multiplier = torch.zeros(16, k // 32, dtype=torch.uint8), torch.full((16, k // 32), 9, dtype=torch.uint8)
    codes = torch.full((16, k), 14, dtype=torch.uint8)  # 9 times that is 126
    codes[0, 0] = 13
    weight, of_groups = pack_int4(codes, multiplier, zero)
    rows = QuantizedRows(on(torch.full((1, k), 127, dtype=torch.int8)), on(torch.ones(1, 1)))
    y = run_linear(rows, Weight("int4", weight, torch.ones(16), of_groups))
    exact = torch.tensor([127 * 126 * k - 127 * 9] + 15 * [127 * 126 * k])
    assert torch.equal(y.cpu()[0], exact.float())


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
def test_broken_rows_stay_where_they_are() -> None:
    x, gain = rand(40, 96), torch.rand(96)
    broken = x.clone()
    broken[17:] = float("nan")
    fp8 = [fp8_weight(96, 48)] if E4M3 in BY_ROWS else []
    for w in (int8_weight(96, 48), int4_weight(96, 48), Weight("float", torch.randn(48, 96)), *fp8):
        y = run_linear(norm_triton.rms_norm(on(broken), on(gain), on(gain), 20, EPS), w)
        assert torch.equal(y[:17], run_linear(norm_triton.rms_norm(on(x), on(gain), on(gain), 20, EPS), w)[:17])
