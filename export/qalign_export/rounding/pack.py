"""A model's parameters in, folded tensors of a precision out, block by block: what both engines' files are made of.

A block is read, folded, run on the calibration pictures, its outliers moved where that is exact, rounded and written,
before the next one is read. Which linears stay in a higher precision is decided by the error measured on those rows;
the part of it that is the same for all rows goes into the bias (Nagel et al., ICCV 2019, section 4.2). In fp8 outliers
stay where they are: its steps are as small as the values, and moving gained nothing on any of the models here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from qalign_export.parameters import ParameterSource, weight_count
from qalign_export.rounding.fold import Migration, Tensors, blocks
from qalign_export.rounding.quantizer import (
    MOVED,
    choose_migration,
    expand,
    gram,
    quantize_fp8,
    quantize_int4,
    quantize_int8,
    read_rows,
)
from qalign_export.rounding.sensitivity import sensitive_linears
from qalign_export.rounding.trace import Trace
from qalign_fast.families.prompt import Prompt

PRECISIONS = ("fp32", "fp16", "bf16", "fp8", "int8", "int4")
_FLOATS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_HIGHER = {"int4": "int8", "int8": "fp32", "fp8": "fp32"}  # what a linear that rounds badly becomes
_WORST = {"int4": 0.1, "int8": 0.02, "fp8": 0.02}  # relative squared error of a linear's output from which it does
_SMALL = 100_000_000  # weights; a model below is judged by its scores as well
_JUDGED = 256  # rows that a rounded linear is judged by
_FP16_ROOM = 65504 / 8  # eight times what calibration saw must still be finite in float16
_GRAM_BLOCK = 512


@dataclass(frozen=True)
class Recipe:
    """How weights become a precision."""

    precision: str
    migrate: bool = True
    gptq: bool = True


FLOAT = Recipe("fp32")


@dataclass
class Packed:
    """What packing gives beside the tensors it wrote."""

    prefixes: dict[tuple[int, ...], Tensor] = field(default_factory=dict)  # ids -> keys and values [L, 2, P, H, Dh]
    suffixes: dict[tuple[int, ...], Tensor] = field(default_factory=dict)  # ids -> embeddings [S, D]
    higher: dict[str, str] = field(default_factory=dict)  # linear -> the higher precision it has
    errors: dict[str, float] = field(default_factory=dict)  # linear -> relative squared error on calibration rows


def pack(
    source: ParameterSource,
    recipe: Recipe,
    prompts: Sequence[Prompt],
    pixels: Tensor,
    write: Callable[[str, Tensor], None],
    done: Callable[[int, int], None] = lambda _, __: None,
) -> Packed:
    """Calls `write` with each packed tensor, and `done` with how many blocks are, and of how many.

    pixels: uint8 [B, S, S, 3] to calibrate with; with none, B = 0, weights are rounded without looking at activations:
    no outlier is moved, no linear stays higher.
    """
    quantizes = recipe.migrate and recipe.precision in _WORST
    moves = quantizes and recipe.precision in MOVED
    trace = Trace(source.config, prompts, source.read(["decoder.embed"])["decoder.embed"], pixels)
    packed = Packed()
    if quantizes and len(pixels) and weight_count(source.config) < _SMALL:
        packed.higher = sensitive_linears(source, prompts[0], pixels, recipe.precision)
    every = list(blocks(source.config))
    for i, block in enumerate(every):
        tensors = block.fold(source.read(block.reads))
        inputs = trace.run(block, tensors)
        if moves and inputs:
            for migration in block.migrations:
                s = _migrate(migration, tensors, inputs, recipe)
                if migration.of_values and s is not None:
                    trace.divide_values(block.index, s)
        for name in block.linears:
            if recipe.precision == "fp16" and trace.largest.get(name, 0) > _FP16_ROOM:
                packed.higher[name] = "fp32"
            _round(name, tensors, inputs.get(name), recipe, packed)
        for name in list(tensors):
            write(name, tensors.pop(name))
        done(i + 1, len(every))
    packed.prefixes = {ids: torch.stack(layers) for ids, layers in trace.prefixes.items()}
    packed.suffixes = trace.suffixes
    return packed


def _migrate(migration: Migration, tensors: Tensors, inputs: Tensors, recipe: Recipe) -> Tensor | None:
    """Divides a common input by its s, where it comes from and in the rows seen, and multiplies what reads it."""
    readers = [f"{name}.weight" for name in migration.consumers]
    rows = torch.cat([inputs[name] for name in migration.seen or migration.consumers])
    s = choose_migration([tensors[name] for name in readers], rows, recipe.precision)
    if bool((s == 1).all()):
        return None
    for name in readers:
        tensors[name] = tensors[name] * s
    for name in migration.consumers:
        inputs[name] = inputs[name] / s
    for name, part, parts in migration.producers:
        divided = tensors[name].unflatten(0, (parts, -1)).clone()
        divided[part] /= s if divided.ndim == 2 else s.unsqueeze(1)
        tensors[name] = divided.flatten(0, 1)
    return s


def _round(name: str, tensors: Tensors, rows: Tensor | None, recipe: Recipe, packed: Packed) -> None:
    """Puts the linear in the recipe's precision or, where that is measured to be bad, in a higher one."""
    weight = tensors.pop(f"{name}.weight")
    precision = packed.higher.get(name, recipe.precision)
    rounded = _quantize(weight, rows, precision, recipe)
    while precision in _WORST and rows is not None:
        y, off = _outputs(weight, rounded, rows)
        shift = off.mean(0)
        error = packed.errors[name] = float((off - shift).square().sum() / y.square().sum().clamp_min(1e-30))
        if error <= _WORST[precision]:
            bias = tensors.get(f"{name}.bias")
            tensors[f"{name}.bias"] = -shift if bias is None else bias - shift
            break
        precision = packed.higher[name] = _HIGHER[precision]
        rounded = _quantize(weight, rows, precision, recipe)
    tensors |= {f"{name}.{part}": tensor for part, tensor in rounded.items()}


def _outputs(weight: Tensor, rounded: Tensors, rows: Tensor) -> tuple[Tensor, Tensor]:
    """What the linear gives for some of the rows, and how far off it is when rounded; both [R, N]."""
    rows = rows[:: -(-len(rows) // _JUDGED)]
    y = F.linear(rows, weight)
    return y, F.linear(read_rows(rows, rounded), expand(rounded, rows.shape[1])) - y


def _quantize(weight: Tensor, rows: Tensor | None, precision: str, recipe: Recipe) -> Tensors:
    if precision == "int8":
        return quantize_int8(weight)
    if precision == "fp8":
        return quantize_fp8(weight)
    if precision == "int4":
        hessian = gram(rows, _GRAM_BLOCK) if recipe.gptq and rows is not None else None
        return quantize_int4(weight, hessian)
    return {"weight": weight.to(_FLOATS[precision])}
