"""What the tests of Triton's kernels share: the device, weights, comparisons, and products by small tiles."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qalign_kernels.contract.linear import pack_int4
from qalign_kernels.contract.ops import PLAIN
from qalign_kernels.contract.quantized_rows import E4M3, QuantizedRows
from qalign_kernels.contract.weight import Weight
from qalign_kernels.cuda.launch import Epilogue
from qalign_kernels.cuda.linear import linear as fast_linear
from qalign_kernels.cuda.runtime import device_of
from qalign_kernels.cuda.tiles import Shares, Tile
from support.interpreted import GPU
from support.triton_ahead import DEVICES, FP8_SINCE

DEVICE = torch.device("cuda" if GPU else "cpu")
FACTS = device_of(DEVICE) if GPU else DEVICES[80]
BY_ROWS = [torch.int8, E4M3] if not GPU or FACTS.capability >= FP8_SINCE else [torch.int8]  # types of rows
SUMS = 2**-8 if GPU else 2e-6  # the error of E4M3's sums: a tensor core adds only some 13 bits of each product
FORMS = ["int8", "int4", "fp8"] if E4M3 in BY_ROWS else ["int8", "int4"]
EPS = 1e-6


def rand(*shape: int) -> Tensor:
    """Random rows, one of them with an outlier, as a LLaMA's rows have."""
    x = torch.randn(shape)
    x[-1, shape[-1] // 2] = 60
    return x


def on(x: Any) -> Any:
    """A tensor or a weight, moved to the device; anything else as it is."""
    if isinstance(x, Weight):
        return Weight(x.name, *(on(part) for part in (x.weight, x.scale, x.groups, x.bias)))
    return x.to(DEVICE) if isinstance(x, Tensor) else x


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Asserts equality to a share `tolerance` of each row's largest magnitude."""
    assert found.shape == expected.shape
    off = (found.cpu().float() - expected).abs() / expected.abs().amax(-1, keepdim=True).clamp_min(1e-6)
    assert off.max() <= tolerance, f"off by {off.max():.2e}, tolerance {tolerance}"


def same(found: QuantizedRows, expected: QuantizedRows) -> None:
    """Asserts equality to the bit, except for the signs of zeros."""
    assert found.values.dtype == expected.values.dtype
    assert torch.equal(found.values.cpu().float(), expected.values.float())
    assert torch.equal(found.scale.cpu(), expected.scale)


def int8_weight(k: int, n: int, bias: bool = True) -> Weight:
    codes = torch.randint(-127, 128, (n, k), dtype=torch.int8)
    return Weight("int8", codes, torch.rand(n) / 100, None, torch.randn(n) if bias else None)


def fp8_weight(k: int, n: int, bias: bool = True) -> Weight:
    return Weight("fp8", torch.randn(n, k).to(E4M3), torch.rand(n) / 10, None, torch.randn(n) if bias else None)


def int4_weight(k: int, n: int, bias: bool = True) -> Weight:
    """Random codes, with all multipliers that keep |k (w - z)| within 127 for every w."""
    groups = -(-k // 128) * 4
    zero = torch.randint(0, 16, (n, groups), dtype=torch.uint8)
    most = (127 // torch.maximum(zero, 15 - zero)).clamp_max(16)
    multiplier = (torch.rand(n, groups) * most).to(torch.uint8) + 1
    codes = torch.randint(0, 16, (n, 32 * groups), dtype=torch.uint8)
    codes[:, k:] = 0
    weight, of_groups = pack_int4(codes, multiplier, zero)
    return Weight("int4", weight, torch.rand(n) / 100, of_groups, torch.randn(n) if bias else None)


WEIGHTS = {"int8": int8_weight, "int4": int4_weight, "fp8": fp8_weight}  # the precisions that read rows in 8 bits
STEP = {"int8": 32, "int4": 128, "fp8": 32, "float": 32}  # inputs in a step of the product, by the weights' precision


def expected_linear(x: Tensor, w: Weight, gelu: bool, residual: Tensor | None) -> Tensor:
    return PLAIN.linear(x, w, activation="quick_gelu" if gelu else None, residual=residual)


def run_linear(
    x: Tensor | QuantizedRows, w: Weight, gelu: bool = False, residual: Tensor | None = None, **tile: int
) -> Tensor:
    """The kernel's float32 result. Tiles are small, so that a small x has many tiles and steps too."""
    small = Tile(64 if len(x) > 100 else 16, 32, STEP[w.name], 2, 4)
    epilogue = Epilogue(torch.float32, "quick_gelu" if gelu else None, on(residual))
    return fast_linear(on(x), on(w), small._replace(**tile), epilogue, Shares.of(FACTS, DEVICE))
