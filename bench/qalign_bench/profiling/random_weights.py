"""A product and a form in, weights of random numbers for it out, so many that they come from memory."""

from __future__ import annotations

import torch

from qalign_bench.profiling.model_products import Product
from qalign_bench.profiling.tile_candidates import STORED
from qalign_kernels.contract.linear import pack_int4
from qalign_kernels.contract.precisions import BLOCK, GROUP
from qalign_kernels.contract.weight import Weight
from qalign_kernels.cuda.launch import cdiv

_COLD = 256 << 20  # bytes of weights that are gone through before one is read again: five times an H100's cache
_MOST_WORK = 1e12  # FLOP that are timed at once: with so much arithmetic the weights' way from memory hardly matters


def make_weights(what: Product, form: str, device: torch.device) -> list[Weight]:
    """As many weights as no cache holds at once."""
    shape = what.shape
    size = shape.k * shape.n * STORED[form]
    most = int(_MOST_WORK / (2 * shape.m * shape.k * shape.n))
    copies = 1 if device.type in ("cpu", "meta") else min(1 + int(_COLD / size), max(2, most))
    return [make_weight(what, form, device) for _ in range(copies)]


def make_weight(what: Product, form: str, device: torch.device) -> Weight:
    """One weight in a form of kernels: int8, int4 in blocks, float16 or float8_e4m3fn."""
    _, k, n = what.shape
    bias = torch.randn(n, device=device) if what.bias else None
    if form == "float16":
        return Weight(form, torch.randn(n, k, device=device).half(), None, None, None if bias is None else bias.half())
    if form == "float8_e4m3fn":
        values = torch.randn(n, k, device=device).to(torch.float8_e4m3fn)
        return Weight(form, values, torch.rand(n, device=device) / 1000, None, bias)
    if form == "int8":
        codes = torch.randint(-127, 128, (n, k), dtype=torch.int8, device=device)
        return Weight(form, codes, torch.rand(n, device=device) / 1000, None, bias)
    groups = cdiv(k, BLOCK) * BLOCK // GROUP
    codes = torch.randint(0, 16, (n, groups * GROUP), dtype=torch.uint8, device=device)
    codes[:, k:] = 0
    multiplier = torch.randint(1, 9, (n, groups), dtype=torch.uint8, device=device)
    zero = torch.randint(0, 16, (n, groups), dtype=torch.uint8, device=device)
    packed, of_groups = pack_int4(codes, multiplier, zero)
    return Weight(form, packed, torch.rand(n, device=device) / 1000, of_groups, bias)
