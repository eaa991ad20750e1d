"""`contract.linear` by torch's own products: rows as their weight reads them in, the epilogue's result out.

    floats   torch.mm, or torch.addmm with a bias or a residual of the same type: cuBLAS
    int8     torch._int_mm, sums in int32
    fp8      torch._scaled_mm by rows and channels, with a bias of the result's 16-bit type: cuBLAS

What the product does not do by itself is done by one elementwise kernel after it. A product of 16-bit floats is rounded
to their type before that. torch's settings hold: cuBLAS may add parts of sums in 16 bits, and float32 is TF32, where
they say so (by default the one may be and the other is not).

A Hopper GPU's tensor cores sum fp8's products in some 14 bits: with fast accumulation a whole row, without it 128
inputs at a time, which then go into float32. In a model of that, on gaussian rows and on a trained LLaMA's, fast sums
add at most 2.3 % of fp8's own squared error in rows of up to 3072 inputs, but up to 13 % in those of 4032, where sums
of one sign shrink; the others add less than .1 % (bench/results/fp8_sums.json). Longer rows are summed without it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from qalign_kernels.contract.linear import FP8, Weight
from qalign_kernels.contract.quantized_rows import Rows
from qalign_kernels.cuda.epilogue import Epilogue, finish_product
from qalign_kernels.cuda.runtime import row_view

_CUBLAS_BY_ROW = 90  # elsewhere torch takes CUTLASS's products by rows and channels
_ALIGNED = 16  # bytes
_FLOATS = ("float32", "float16", "bfloat16")
_HALVES = (torch.float16, torch.bfloat16)
LONGEST_FAST = 3072  # inputs whose products in fp8 are summed with fast accumulation


def has_product(capability: int, form: str, m: int, k: int, n: int) -> bool:
    """Whether torch multiplies these, and right; forms as in `tiles`, [M, K] by [N, K]."""
    if form == "int8":
        return m > 16 and k % 8 == 0 and n % 8 == 0
    if form == "float8_e4m3fn":
        # before, sm_89's ignored the stream that it was launched on
        sound = capability != 89 or TorchVersion(torch.__version__) >= (2, 12)
        return capability >= 89 and sound and k % 16 == 0 and n % 16 == 0
    return form in _FLOATS


def by_cublas(capability: int, form: str) -> bool:
    """Whether the product is cuBLAS's, which gives any type."""
    if form == "float8_e4m3fn":
        cuda = TorchVersion(torch.version.cuda or "0")
        return capability == _CUBLAS_BY_ROW and cuda >= (12, 9)
    return form in _FLOATS


def linear(x: Tensor | Rows, w: Weight, epilogue: Epilogue) -> Tensor:
    """Rows as the weight reads them [..., K] -> [..., N] of the epilogue's type."""
    y = _of_floats(row_view(x), w, epilogue) if isinstance(x, Tensor) else _of_rows(x, w, epilogue)
    return y.view(*x.shape[:-1], len(w.weight))


def _of_floats(x: Tensor, w: Weight, epilogue: Epilogue) -> Tensor:
    residual = None if epilogue.residual is None else row_view(epilogue.residual)
    added = [one for one in (w.bias, residual) if one is not None]
    plain = epilogue.activation is None and epilogue.dtype == x.dtype
    if plain and not added:
        return torch.mm(x, w.weight.T)
    if plain and len(added) == 1 and added[0].dtype == x.dtype:
        return torch.addmm(added[0], x, w.weight.T)
    return finish_product(torch.mm(x, w.weight.T), None, None, w.bias, epilogue)


def _of_rows(x: Rows, w: Weight, epilogue: Epilogue) -> Tensor:
    assert w.scale is not None, w.name
    values, scale = _aligned(row_view(x.values)), _aligned(row_view(x.scale))
    if values.dtype != FP8:
        return finish_product(torch._int_mm(values, w.weight.T), scale, w.scale, w.bias, epilogue)
    dtype = _fp8_result(values.device, epilogue.dtype)
    plain = dtype == epilogue.dtype and epilogue.activation is None and epilogue.residual is None
    added = w.bias if plain and _adds(w.bias, values.device, dtype) else None
    product = torch._scaled_mm(
        values, w.weight.T, scale_a=scale, scale_b=w.scale.unsqueeze(0), bias=added, out_dtype=dtype,
        use_fast_accum=values.shape[1] <= LONGEST_FAST,
    )  # fmt: skip
    if plain and added is w.bias:
        return product
    return finish_product(product, None, None, w.bias, epilogue)


def _aligned(x: Tensor) -> Tensor:
    """Contiguous from an address that cuBLAS takes: a slice's scales may begin at any multiple of 4 bytes."""
    x = x.contiguous()
    return x.clone() if x.data_ptr() % _ALIGNED else x


def _adds(bias: Tensor | None, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the fp8 product adds it: cuBLAS's, whose result and bias are of one 16-bit type."""
    return bias is not None and bias.dtype == dtype and dtype in _HALVES and _is_cublas(device)


def _fp8_result(device: torch.device, wanted: torch.dtype) -> torch.dtype:
    """Without a bias, CUTLASS's product writes bfloat16 whatever it is asked for (pytorch/pytorch#187569)."""
    return wanted if _is_cublas(device) else torch.bfloat16


def _is_cublas(device: torch.device) -> bool:
    """Whether fp8's product is, or is a CPU's, which takes and gives the same."""
    if device.type != "cuda":
        return True
    major, minor = torch.cuda.get_device_capability(device)
    return by_cublas(10 * major + minor, "float8_e4m3fn")
