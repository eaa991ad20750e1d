"""Plain numpy and the C++ kernels on numpy arrays, against the contracts in plain torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from qalign_export.rounding.quantizer import quantize
from qalign_kernels.contract.operations import Operations
from qalign_kernels.contract.ops import PLAIN as CONTRACT
from qalign_kernels.contract.weight import Weight
from qalign_kernels.cpu.numpy_ops import load_numpy
from qalign_kernels.cpu.plain_numpy import PLAIN

PRECISIONS = ["fp32", "fp16", "bf16", "int8", "int4"]
FLOATS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@pytest.fixture(params=["plain numpy", "native"])
def ops(request: pytest.FixtureRequest) -> Operations:
    if request.param == "plain numpy":
        return PLAIN
    found = load_numpy(library_path=request.getfixturevalue("library"))
    assert found is not None
    return found


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def to_numpy(x: torch.Tensor | None) -> np.ndarray | None:
    """numpy has no bfloat16."""
    return x if x is None else (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()


def assert_close(found: np.ndarray, expected: torch.Tensor, tolerance: float) -> None:
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"),
    [
        ((2, 5), 160, 96),  # whole groups of int4
        ((7,), 588, 32),  # OneAlign's patches: the last block is filled up
        ((3,), 2816, 5),  # sums that float32 does not hold
        ((1,), 4096, 8),
    ],
)
def test_linear(ops: Operations, rows: tuple[int, ...], inputs: int, outputs: int, precision: str) -> None:
    x, w, bias, residual = random(*rows, inputs), random(outputs, inputs), random(outputs), random(*rows, outputs)
    tensors = {"weight": w.to(FLOATS[precision])} if precision in FLOATS else quantize(w, precision)
    weight = Weight("linear", **tensors, bias=bias)
    if precision in FLOATS:  # whose results the contract rounds to 16 bits: here they are float32
        weight = Weight("linear", tensors["weight"].float(), bias=bias)
    read = x.to(FLOATS[precision]).float() if precision in FLOATS else x
    expected = CONTRACT.linear(read, weight, activation="quick_gelu", residual=residual)
    given = Weight("linear", **{name: to_numpy(t) for name, t in tensors.items()}, bias=bias.numpy())
    found = ops.linear(x.numpy(), given, activation="quick_gelu", residual=residual.numpy())
    assert_close(found, expected, 1e-5 if precision in FLOATS else 2e-6)


def test_a_row_of_zeros_stays_zero(ops: Operations) -> None:
    tensors = quantize(random(8, 64), "int8")
    weight = Weight("linear", **{name: to_numpy(t) for name, t in tensors.items()})
    np.testing.assert_array_equal(ops.linear(np.zeros((2, 64), np.float32), weight), 0)


def test_norms_and_swiglu(ops: Operations) -> None:
    x, gain, bias = random(2, 6, 96) * 3 + 1, random(96), random(96)
    arrays = x.numpy(), gain.numpy(), bias.numpy()
    assert_close(ops.layer_norm(*arrays, 1e-5), CONTRACT.layer_norm(x, gain, bias, 1e-5), 2e-6)
    for split in (0, 4, 6):
        expected = CONTRACT.rms_norm(x[0], gain, bias, split, 1e-6)
        assert_close(ops.rms_norm(x[0].numpy(), gain.numpy(), bias.numpy(), split, 1e-6), expected, 2e-6)
    wide = torch.cat((random(5, 64) * 60, random(5, 64)), -1)  # gates for which exp overflows
    assert_close(ops.swiglu(wide.numpy()), CONTRACT.swiglu(wide), 2e-6)


def test_attention_on_views(ops: Operations) -> None:
    """Queries, keys and values are parts of one product's rows, or repeat the same rows for every picture."""
    qkv, heads = random(2, 9, 3 * 64), 4
    views = qkv.chunk(3, -1)
    parts = np.split(qkv.numpy(), 3, -1)
    assert_close(ops.attention(*parts, heads), CONTRACT.attention(*views, heads), 1e-5)
    same = random(3, 64)
    repeated = ops.repeat(same.numpy(), 2)
    expected = CONTRACT.attention(CONTRACT.repeat(same, 2), views[1], views[2], heads)
    assert_close(ops.attention(repeated, parts[1], parts[2], heads), expected, 1e-5)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("batch", "visual", "text", "prefix"), [(1, 5, 3, 4), (3, 5, 3, 4), (2, 0, 4, 0)])
def test_attention_by_modality(ops: Operations, batch: int, visual: int, text: int, prefix: int, last: bool) -> None:
    heads, width = 4, 16
    kv_visual, kv_text = random(batch * visual, 2 * heads * width), random(batch * text, 2 * heads * width)
    q = random(batch if last else batch * (visual + text), heads * width)
    before, turns = random(2, prefix, heads, width), random(2, visual + text, width)
    given = q, kv_visual, kv_text, before, turns
    expected = CONTRACT.attention_by_modality(*given, batch)
    assert_close(ops.attention_by_modality(*(x.numpy() for x in given), batch), expected, 1e-5)


def test_patches_are_the_contracts(ops: Operations) -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 28, 28, 3), np.uint8))
    weight = Weight("patch", random(8, 588))
    found = ops.patches_for(weight, pixels.numpy(), 14)
    np.testing.assert_array_equal(found, CONTRACT.patches_for(weight, pixels, 14))


def test_weights_that_are_mapped_read_only_are_taken(library: Path) -> None:
    ops = load_numpy(library_path=library)
    assert ops is not None
    weight = random(8, 64).numpy()
    expected = ops.linear(random(3, 64).numpy(), Weight("w", weight))
    weight.flags.writeable = False
    np.testing.assert_array_equal(ops.linear(random(3, 64).numpy(), Weight("w", weight)), expected)
