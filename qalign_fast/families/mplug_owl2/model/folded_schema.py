"""A model's sizes and an artifact's folded tensors in, an error out for the first that `FoldedModel` cannot run with.

The shapes are written down, and not found out by running the model on meta tensors: that alone imports all of torch's
compiler, two seconds' work. Kernels read tensors by their address, so that types are held to as well.

Letters: T vision tokens, D width, Q queries, N outputs, K inputs, B = ceil(K / 128) blocks of these.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from qalign_fast.families.mplug_owl2.sizes import AbstractorConfig, DecoderConfig, ModelConfig, VisionConfig
from qalign_kernels.contract.linear import BLOCK, GROUP
from qalign_kernels.contract.quantized_rows import E4M3

Shape: TypeAlias = tuple[int, ...]
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def check_tensors(config: ModelConfig, tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError naming the tensor and what is asked of it. Tensors that no station reads are not looked at."""
    for name, outputs, inputs in linears(config):
        _check_linear(name, outputs, inputs, tensors)
    for name, shape in others(config):
        _check(name, tensors, shape)


def linears(config: ModelConfig) -> Iterator[tuple[str, int, int]]:
    """The name, N and K of each."""
    yield from _vision_linears(config.vision)
    yield from _abstractor_linears(config.abstractor, config.vision.width, config.decoder.width)
    yield from _decoder_linears(config.decoder)


def others(config: ModelConfig) -> Iterator[tuple[str, Shape]]:
    """The name and shape of each float32 tensor beside linears: norms, tables and constants."""
    yield from _vision_others(config.vision)
    yield from _abstractor_others(config.abstractor, config.vision, config.decoder.width)
    yield from _decoder_others(config.decoder)


def _vision_linears(vision: VisionConfig) -> Iterator[tuple[str, int, int]]:
    width = vision.width
    yield "vision.patch", width, 3 * vision.patch**2
    for i in range(vision.layers):
        name = f"vision.layers.{i}."
        yield f"{name}qkv", 3 * width, width
        yield f"{name}out", width, width
        yield f"{name}fc1", vision.mlp, width
        yield f"{name}fc2", width, vision.mlp


def _vision_others(vision: VisionConfig) -> Iterator[tuple[str, Shape]]:
    yield "vision.class_token", (1, vision.width)
    yield "vision.patch_table", (vision.tokens - 1, vision.width)
    layers = (f"layers.{i}.{norm}" for i in range(vision.layers) for norm in ("attention_norm", "mlp_norm"))
    for name in ("pre_norm", *layers, "post_norm"):
        yield from _norm(f"vision.{name}", vision.width)


def _abstractor_linears(config: AbstractorConfig, features: int, out: int) -> Iterator[tuple[str, int, int]]:
    width = config.width
    yield "abstractor.features.kv", 2 * config.layers * width, features
    for i in range(config.layers):
        name = f"abstractor.layers.{i}."
        if i:
            yield f"{name}qkv", 3 * width, width
        yield f"{name}out", width, width
        yield f"{name}gate_up", 2 * config.mlp, width
        yield f"{name}down", width, config.mlp
    yield "abstractor.project", out, width


def _abstractor_others(config: AbstractorConfig, vision: VisionConfig, out: int) -> Iterator[tuple[str, Shape]]:
    queries, width = config.queries, config.width
    yield from _norm("abstractor.features.norm", vision.width)
    for i in range(config.layers):
        name = f"abstractor.layers.{i}."
        yield f"{name}key_table", (vision.tokens, width)
        if i:
            yield from _norm(f"{name}query_norm", width)
            yield f"{name}qkv_table", (queries, 3 * width)
        else:  # its queries are constants
            yield from ((f"{name}{part}", (queries, width)) for part in "xqkv")
        yield from _norm(f"{name}mlp_norm", width)
        yield from _norm(f"{name}inner_norm", config.mlp)
    yield "abstractor.end_token", (1, out)


def _decoder_linears(config: DecoderConfig) -> Iterator[tuple[str, int, int]]:
    width = config.width
    for i in range(config.layers):
        name = f"decoder.layers.{i}."
        yield f"{name}q", width, width
        yield f"{name}kv_visual", 2 * width, width
        yield f"{name}kv_text", 2 * width, width
        yield f"{name}o", width, width
        yield f"{name}gate_up", 2 * config.mlp, width
        yield f"{name}down", width, config.mlp
    yield "decoder.head", 5, width


def _decoder_others(config: DecoderConfig) -> Iterator[tuple[str, Shape]]:
    for i in range(config.layers):
        for norm in ("attention_norm", "mlp_norm"):
            yield from ((f"decoder.layers.{i}.{norm}_{modality}", (config.width,)) for modality in ("visual", "text"))
    yield "decoder.norm", (config.width,)


def _norm(name: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _check_linear(name: str, outputs: int, inputs: int, tensors: Mapping[str, Tensor]) -> None:
    """In whichever precision the dtype of its weight says."""
    weight = _find(f"{name}.weight", tensors)
    if weight.dtype == torch.uint8:
        _check_int4(name, outputs, inputs, tensors)
    else:
        _check(f"{name}.weight", tensors, (outputs, inputs), (*_FLOATS, torch.int8, E4M3))
        if weight.dtype in (torch.int8, E4M3):
            _check(f"{name}.scale", tensors, (outputs,))
    if f"{name}.bias" in tensors:
        _check(f"{name}.bias", tensors, (outputs,))


def _check_int4(name: str, outputs: int, inputs: int, tensors: Mapping[str, Tensor]) -> None:
    if f"{name}.zero" in tensors:
        raise ValueError(f"{name} is in an earlier form of int4, which is not read any more; export the model again")
    blocks = -(-inputs // BLOCK)
    _check(f"{name}.weight", tensors, (outputs, blocks, BLOCK // 2), (torch.uint8,))  # two weights a byte
    _check(f"{name}.scale", tensors, (outputs,))
    _check(f"{name}.groups", tensors, (outputs, blocks * BLOCK // GROUP), (torch.uint8,))


def _check(
    name: str, tensors: Mapping[str, Tensor], shape: Shape, dtypes: tuple[torch.dtype, ...] = (torch.float32,)
) -> None:
    tensor = _find(name, tensors)
    if tensor.shape != shape or tensor.dtype not in dtypes:
        kinds = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        found = f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
        raise ValueError(f"{name} is {found}; the manifest's sizes ask {kinds} {shape}")


def _find(name: str, tensors: Mapping[str, Tensor]) -> Tensor:
    if name not in tensors:
        raise ValueError(f"has no tensor {name!r}")
    return tensors[name]
