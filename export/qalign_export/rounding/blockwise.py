"""A model's parameters in, folded tensors of a precision out, block by block: what every engine's files are made of.

A block is read, folded and run on the calibration pictures. Its outliers are moved where that is exact. Then it is
rounded and written before the next one is read. The error measured on those rows decides which linears stay in a higher
precision; the part of it that is the same for all rows goes into the bias (Nagel et al., ICCV 2019, section 4.2). In
e4m3 outliers stay where they are: its steps are as small as the values, and moving gained nothing on any of the models
here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from qalign_export.parameters import ParameterSource, weight_count
from qalign_export.rounding.fold import Block, Migration, Tensors, blocks
from qalign_export.rounding.quantizer import choose_migration, expand, quantize, read_rows
from qalign_export.rounding.sensitivity import sensitive_linears
from qalign_export.rounding.trace import Trace
from qalign_fast.families.prompt import Before, Prompt
from qalign_kernels.contract.precisions import PRECISIONS

_SMALL = 100_000_000  # weights; a smaller model is judged by its scores as well
_JUDGED = 256  # rows that a rounded linear is judged by
_ROOM = 8  # what calibration saw must be this many times smaller than the largest number that rows can hold


@dataclass
class RoundingResult:
    """What `fold_and_round` gives beside the tensors that it writes."""

    prefixes: dict[Before, Tensor] = field(default_factory=dict)  # `Prompt.before` -> keys, values [L, 2, P, H, Dh]
    suffixes: dict[tuple[int, ...], Tensor] = field(default_factory=dict)  # ids -> embeddings [S, D]
    higher: dict[str, str] = field(default_factory=dict)  # linear -> the higher precision that it has
    errors: dict[str, float] = field(default_factory=dict)  # linear -> relative squared error on calibration rows


def fold_and_round(
    source: ParameterSource,
    precision: str,
    prompts: Sequence[Prompt],
    pixels: Tensor,
    write: Callable[[str, Tensor], None],
    done: Callable[[int, int], None] = lambda _, __: None,
) -> RoundingResult:
    """Calls `write` with each folded tensor, and `done` after each block with the count of finished and of all blocks.

    pixels: uint8 [B, S, S, 3] to calibrate with. If B = 0, weights are rounded without looking at activations: no
    outlier is moved and no linear stays higher.
    """
    embed = source.read(["decoder.embed"])["decoder.embed"]
    trace = Trace(source.config, prompts, embed, pixels, torch.from_numpy(source.anchors))
    result, table = RoundingResult(suffixes=trace.suffixes), PRECISIONS[precision]
    if table.rounded and len(pixels) and weight_count(source.config) < _SMALL:
        result.higher = sensitive_linears(source, prompts[0], pixels, precision)
    every = list(blocks(source.config))
    for i, block in enumerate(every):
        tensors = block.fold(source.read(block.reads))
        inputs = trace.run(block, tensors)
        if table.shares and inputs:
            _move_outliers(block, trace, tensors, inputs, precision)
        for name in block.linears:
            if table.most and trace.largest.get(name, 0) > table.most / _ROOM:
                result.higher[name] = "fp32"
            _round(name, tensors, inputs.get(name), precision, result)
        for name in list(tensors):
            write(name, tensors.pop(name))
        done(i + 1, len(every))
    result.prefixes = {before: torch.stack(layers) for before, layers in trace.prefixes.items()}
    return result


def _move_outliers(block: Block, trace: Trace, tensors: Tensors, inputs: Tensors, precision: str) -> None:
    for migration in block.migrations:
        s = _migrate(migration, tensors, inputs, precision)
        if migration.of_values and s is not None:
            trace.divide_values(block.index, s)


def _migrate(migration: Migration, tensors: Tensors, inputs: Tensors, precision: str) -> Tensor | None:
    """Divides a common input by s [K] in its producers and in the rows seen, and multiplies its consumers by s.

    Returns s, or None if nothing is moved.
    """
    consumers = [f"{name}.weight" for name in migration.consumers]
    rows = torch.cat([inputs[name] for name in migration.seen or migration.consumers])
    s = choose_migration([tensors[name] for name in consumers], rows, precision)
    if bool((s == 1).all()):
        return None
    for name in consumers:
        tensors[name] = tensors[name] * s
    for name in migration.consumers:
        inputs[name] = inputs[name] / s
    for name, part, parts in migration.producers:
        divided = tensors[name].unflatten(0, (parts, -1)).clone()
        divided[part] /= s if divided.ndim == 2 else s.unsqueeze(1)
        tensors[name] = divided.flatten(0, 1)
    return s


def _round(name: str, tensors: Tensors, rows: Tensor | None, precision: str, result: RoundingResult) -> None:
    """Puts the linear in the precision or, where that is measured to be bad, in a higher one."""
    weight = tensors.pop(f"{name}.weight")
    precision = result.higher.get(name, precision)
    rounded = quantize(weight, precision, rows)
    while (worst := PRECISIONS[precision].worst) and rows is not None:
        y, off = _outputs(weight, rounded, rows)
        shift = off.mean(0)
        error = result.errors[name] = float((off - shift).square().sum() / y.square().sum().clamp_min(1e-30))
        if error <= worst:
            bias = tensors.get(f"{name}.bias")
            tensors[f"{name}.bias"] = -shift if bias is None else bias - shift
            break
        higher = PRECISIONS[precision].higher
        assert higher
        precision = result.higher[name] = higher
        rounded = quantize(weight, precision, rows)
    tensors |= {f"{name}.{part}": tensor for part, tensor in rounded.items()}


def _outputs(weight: Tensor, rounded: Tensors, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The linear's output for some of the rows, and the difference when it is rounded; both [R, N]."""
    rows = rows[:: -(-len(rows) // _JUDGED)]
    y = F.linear(rows, weight)
    return y, F.linear(read_rows(rows, rounded), expand(rounded, rows.shape[1])) - y
