"""A model and pictures in, the linears that need a higher precision out, judged by their effect on scores.

The error of a linear's own output does not tell this: a model may depend on small differences of large numbers. So each
linear is rounded alone and the pictures are scored. That needs the whole model in memory and a pass for each linear, so
it is for small models; a large one is judged block by block on its linears' outputs (blockwise.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from qalign_export.parameters import ParameterSource
from qalign_export.rounding.fold import Tensors, blocks
from qalign_export.rounding.quantizer import expand, quantize, read_rows
from qalign_export.rounding.trace import Trace
from qalign_fast.families.family import Family, Tail
from qalign_fast.families.mplug_owl2.model.folded import FoldedModel
from qalign_fast.families.prompt import Prompt
from qalign_kernels.contract.ops import Ops
from qalign_kernels.contract.precisions import PRECISIONS
from qalign_kernels.contract.weight import Weight

Scores: TypeAlias = npt.NDArray[np.float64]

_OUTLIER = 8  # times the median linear's effect
_HARMLESS = 1e-3  # on 1..5; an effect not worth a higher precision, however small the others are


def sensitive_linears(source: ParameterSource, prompt: Prompt, pixels: Tensor, precision: str) -> dict[str, str]:
    """Each linear whose rounding moves scores far more than the others' -> the precision it needs instead.

    pixels: uint8 [B, S, S, 3]. An int4 linear becomes int8, or float32 if 8 bits are bad as well.
    """
    family, config = source.family, source.config
    embed, anchors = source.read(["decoder.embed"])["decoder.embed"], torch.from_numpy(source.anchors)
    trace = Trace(config, [prompt], embed, pixels[:0], anchors)
    tensors: Tensors = {}
    for block in blocks(config):
        folded = block.fold(source.read(block.reads))
        trace.run(block, folded)
        tensors |= folded
    model = FoldedModel(config, tensors, _OneRounded())
    tail = {name: x.numpy() for name, x in source.read(family.tail(config)).items()}
    score = partial(_scores, model, pixels, _Asked(family, prompt, trace, tail))
    found: dict[str, str] = {}
    while higher := PRECISIONS[precision].higher:
        effects = _effects(model, score, precision)
        limit = max(_HARMLESS, _OUTLIER * median(effects.values()))
        found |= {name: higher for name, effect in effects.items() if effect > limit}
        precision = higher
    return found


@torch.no_grad()
def _effects(model: FoldedModel, score: Callable[[], Scores], precision: str) -> dict[str, float]:
    """The mean change of scores (on 1..5) when each linear alone is rounded."""
    linears = [name for block in blocks(model.config) for name in block.linears]
    exact = score()
    effects, ops = {}, model.ops
    assert isinstance(ops, _OneRounded)
    for name in linears:
        ops.name, ops.rounded = name, quantize(model.tensors[f"{name}.weight"], precision)
        effects[name] = float(np.abs(score() - exact).mean())
    ops.name = ""
    return effects


class _Asked(NamedTuple):
    """What is asked of a family's model, and what answering takes."""

    family: Family
    prompt: Prompt
    trace: Trace  # that has run
    tail: Tail


def _scores(model: FoldedModel, pixels: Tensor, asked: _Asked) -> Scores:
    """The scores [B] of pictures, as on 1..5."""
    family, prompt, trace, tail = asked
    tokens = model.encode(pixels)

    def decode(prompt: Prompt, rows: Sequence[int] | None = None) -> npt.NDArray[np.float32]:
        constants = torch.stack(trace.prefixes[prompt.before]), trace.suffixes[prompt.suffix]
        found: Tensor = model.decode(tokens if rows is None else tokens[list(rows)], *constants)
        return found.numpy()

    answers, scale = family.answers(decode(prompt), prompt, decode, tail), family.scale
    return 1 + 4 * (np.array([answer.value for answer in answers]) - scale.low) / (scale.high - scale.low)


class _OneRounded(Ops):
    """Plain operations, in which one linear is rounded."""

    name = ""  # that linear's; none: all are exact
    rounded: Tensors

    def product(self, x: Tensor, w: Weight) -> Tensor:
        if w.name != self.name:
            return super().product(x, w)
        return F.linear(read_rows(x, self.rounded), expand(self.rounded, x.shape[-1]), w.bias)
