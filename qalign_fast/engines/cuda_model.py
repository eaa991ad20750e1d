"""A family's folded tensors in, its model on the Triton kernels of one GPU out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from qalign_fast.engines.torch_weights import to_device
from qalign_fast.families.family import Constants, Family
from qalign_kernels.contract.attention import BACKENDS, attention_backends
from qalign_kernels.contract.precisions import PRECISIONS

if TYPE_CHECKING:
    from qalign_kernels.cuda.launch import Device


def between_of(precision: str) -> torch.dtype:
    """The dtype of what lies between products, on a GPU."""
    dtype: torch.dtype = getattr(torch, PRECISIONS[precision].between)
    return dtype


def attention_of(precision: str, device: str) -> str:
    """The name of torch's attention kernel that is tried first for a picture's rows on a CUDA device."""
    major, minor = torch.cuda.get_device_capability(device)
    return BACKENDS[attention_backends(10 * major + minor, between_of(precision))[0]]


def build_model(
    family: Family,
    config: Any,
    precision: str,
    mapped: dict[str, Tensor],
    constants: Mapping[str, Constants],
    place: torch.device,
    facts: Device,
) -> tuple[Any, dict[str, Constants]]:
    """The model on `place`, and the constants of every prompt there. The tensors leave `mapped` one at a time.

    `facts`: what is known of the GPU.
    """
    from qalign_kernels.cuda.ops import TritonOps

    between = between_of(precision)
    ops, exact = TritonOps(facts, between), TritonOps(facts, torch.float32)
    tensors = to_device(family.schema(config), mapped, place, between)
    model = family.models().CudaModel(config, tensors, ops, exact)
    there = {name: tuple(x.to(place, between) for x in found) for name, found in constants.items()}
    return model, there
