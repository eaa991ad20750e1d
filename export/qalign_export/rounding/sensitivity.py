"""A model and pictures in, the linears that need a higher precision out, judged by their effect on scores.

The error of a linear's own output does not tell this: a model may depend on small differences of large numbers. So each
linear is rounded alone and the pictures are scored. That needs the whole model in memory and a pass for each linear, so
it is for small models; a large one is judged block by block on its linears' outputs (blockwise.py).
"""

from __future__ import annotations

from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F

from qalign_export.parameters import ParameterSource
from qalign_export.rounding.fold import Tensors, blocks
from qalign_export.rounding.quantizer import expand, quantize, read_rows
from qalign_export.rounding.trace import Trace
from qalign_fast.families.mplug_owl2.model.folded import FoldedModel
from qalign_fast.families.prompt import Prompt
from qalign_fast.levels import WEIGHTS
from qalign_kernels.contract.ops import Ops
from qalign_kernels.contract.precisions import PRECISIONS
from qalign_kernels.contract.weight import Weight

_OUTLIER = 8  # times the median linear's effect
_HARMLESS = 1e-3  # on 1..5; an effect not worth a higher precision, however small the others are


def sensitive_linears(source: ParameterSource, prompt: Prompt, pixels: Tensor, precision: str) -> dict[str, str]:
    """Each linear whose rounding moves scores far more than the others' -> the precision it needs instead.

    pixels: uint8 [B, S, S, 3]. An int4 linear becomes int8, or float32 if 8 bits are bad as well.
    """
    trace = Trace(source.config, [prompt], source.read(["decoder.embed"])["decoder.embed"], pixels[:0])
    tensors: Tensors = {}
    for block in blocks(source.config):
        folded = block.fold(source.read(block.reads))
        trace.run(block, folded)
        tensors |= folded
    model = FoldedModel(source.config, tensors, _OneRounded())
    constants = torch.stack(trace.prefixes[prompt.prefix]), trace.suffixes[prompt.suffix]
    found: dict[str, str] = {}
    while higher := PRECISIONS[precision].higher:
        effects = _effects(model, pixels, constants, precision)
        limit = max(_HARMLESS, _OUTLIER * median(effects.values()))
        found |= {name: higher for name, effect in effects.items() if effect > limit}
        precision = higher
    return found


@torch.no_grad()
def _effects(model: FoldedModel, pixels: Tensor, constants: tuple[Tensor, Tensor], precision: str) -> dict[str, float]:
    """The mean change of scores (on 1..5) when each linear alone is rounded."""
    linears = [name for block in blocks(model.config) for name in block.linears]
    exact = _scores(model, pixels, constants)
    effects, ops = {}, model.ops
    assert isinstance(ops, _OneRounded)
    for name in linears:
        ops.name, ops.rounded = name, quantize(model.tensors[f"{name}.weight"], precision)
        effects[name] = float((_scores(model, pixels, constants) - exact).abs().mean())
    ops.name = ""
    return effects


def _scores(model: FoldedModel, pixels: Tensor, constants: tuple[Tensor, Tensor]) -> Tensor:
    logits: Tensor = model.decode(model.encode(pixels), *constants)
    return logits.softmax(-1) @ torch.from_numpy(WEIGHTS)


class _OneRounded(Ops):
    """Plain operations, in which one linear is rounded."""

    name = ""  # that linear's; none: all are exact
    rounded: Tensors

    def product(self, x: Tensor, w: Weight) -> Tensor:
        if w.name != self.name:
            return super().product(x, w)
        return F.linear(read_rows(x, self.rounded), expand(self.rounded, x.shape[-1]), w.bias)
