"""Torch's own products for `cuda.linear`: rows as their weight reads them in, the product and what is still to do out.

    floats   torch.mm, or torch.addmm with a bias or a residual of the same dtype: cuBLAS
    int8     torch._int_mm, sums in int32
    e4m3     torch._scaled_mm by rows and channels, with a bias of the result's 16-bit dtype: cuBLAS

What a product does not do itself, one elementwise kernel does after it (`epilogue.finish_product`). A product of 16-bit
floats is rounded to their dtype before that. Torch's settings hold: where they say so, cuBLAS adds parts of sums in 16
bits (it may by default), and float32 becomes TF32 (by default it does not).

A Hopper GPU's tensor cores sum e4m3's products in some 14 bits. With fast accumulation they sum a whole row so; without
it 128 inputs at a time, which are then added in float32. In a model of that, on gaussian rows and on those of a trained
LLaMA, fast sums add at most 2.3 % of fp8's own squared error in rows of up to 3072 inputs, but up to 13 % in rows of
4032, where sums of one sign shrink. The other sums add less than .1 % (bench/results/fp8_sums.json). Rows longer than
3072 are therefore summed without fast accumulation.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from qalign_kernels.contract.quantized_rows import E4M3, QuantizedRows
from qalign_kernels.contract.weight import Weight
from qalign_kernels.cuda.launch import Epilogue, row_view

_CUBLAS_BY_ROW = 90  # on other GPUs torch takes CUTLASS's products by rows and channels
_ALIGNED = 16  # bytes
_FLOATS = ("float32", "float16", "bfloat16")
_HALVES = (torch.float16, torch.bfloat16)
LONGEST_FAST = 3072  # inputs whose products in e4m3 are summed with fast accumulation


class Rest(NamedTuple):
    """What is still to do to a product, before the epilogue's own activation and residual."""

    row_scale: Tensor | None  # [M, 1]
    column_scale: Tensor | None  # [N]
    bias: Tensor | None  # [N]


def has_product(capability: int, weight_type: str, m: int, k: int, n: int) -> bool:
    """Whether torch can multiply [M, K] by a weight [N, K] correctly. `tiles` has the names of weight types."""
    if weight_type == "int8":
        return m > 16 and k % 8 == 0 and n % 8 == 0
    if weight_type == "float8_e4m3fn":
        # before torch 2.12, the product for sm_89 ignored the stream that it was launched on
        sound = capability != 89 or TorchVersion(torch.__version__) >= (2, 12)
        return capability >= 89 and sound and k % 16 == 0 and n % 16 == 0
    return weight_type in _FLOATS


def by_cublas(capability: int, weight_type: str) -> bool:
    """Whether torch takes cuBLAS for the product, which gives a result of any dtype."""
    if weight_type == "float8_e4m3fn":
        cuda = TorchVersion(torch.version.cuda or "0")
        return capability == _CUBLAS_BY_ROW and cuda >= (12, 9)
    return weight_type in _FLOATS


def product(x: Tensor | QuantizedRows, w: Weight, epilogue: Epilogue) -> tuple[Tensor, Rest | None]:
    """Rows as the weight reads them [..., K] -> [M, N] and what is still to do; None where nothing is."""
    return _of_floats(row_view(x), w, epilogue) if isinstance(x, Tensor) else _of_rows(x, w, epilogue)


def _of_floats(x: Tensor, w: Weight, epilogue: Epilogue) -> tuple[Tensor, Rest | None]:
    residual = None if epilogue.residual is None else row_view(epilogue.residual)
    added = [one for one in (w.bias, residual) if one is not None]
    plain = epilogue.activation is None and epilogue.dtype == x.dtype
    if plain and not added:
        return torch.mm(x, w.weight.T), None
    if plain and len(added) == 1 and added[0].dtype == x.dtype:
        return torch.addmm(added[0], x, w.weight.T), None
    return torch.mm(x, w.weight.T), Rest(None, None, w.bias)


def _of_rows(x: QuantizedRows, w: Weight, epilogue: Epilogue) -> tuple[Tensor, Rest | None]:
    assert w.scale is not None, w.name
    values, scale = _aligned(row_view(x.values)), _aligned(row_view(x.scale))
    if values.dtype != E4M3:
        return torch._int_mm(values, w.weight.T), Rest(scale, w.scale, w.bias)
    dtype = _result_dtype(values.device, epilogue.dtype)
    plain = dtype == epilogue.dtype and epilogue.activation is None and epilogue.residual is None
    added = w.bias if plain and _adds(w.bias, values.device, dtype) else None
    y = torch._scaled_mm(
        values, w.weight.T, scale_a=scale, scale_b=w.scale.unsqueeze(0), bias=added, out_dtype=dtype,
        use_fast_accum=values.shape[1] <= LONGEST_FAST,
    )  # fmt: skip
    return y, None if plain and added is w.bias else Rest(None, None, w.bias)


def _aligned(x: Tensor) -> Tensor:
    """Contiguous, at an address that cuBLAS takes: the scales of a slice may begin at any multiple of 4 bytes."""
    x = x.contiguous()
    return x.clone() if x.data_ptr() % _ALIGNED else x


def _adds(bias: Tensor | None, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the e4m3 product adds the bias: cuBLAS's does, where result and bias are of one 16-bit dtype."""
    return bias is not None and bias.dtype == dtype and dtype in _HALVES and _is_cublas(device)


def _result_dtype(device: torch.device, wanted: torch.dtype) -> torch.dtype:
    """What to ask the e4m3 product for. CUTLASS's without a bias always writes bfloat16 (pytorch/pytorch#187569)."""
    return wanted if _is_cublas(device) else torch.bfloat16


def _is_cublas(device: torch.device) -> bool:
    """Whether the e4m3 product is cuBLAS's. A CPU's takes and gives the same."""
    if device.type != "cuda":
        return True
    major, minor = torch.cuda.get_device_capability(device)
    return by_cublas(10 * major + minor, "float8_e4m3fn")
