"""A model and pictures in, which linears must not be rounded as far as the others out, by what that does to scores.

The error of a linear's own output does not tell: a model may live on small differences of large numbers. So each linear
is rounded alone and the pictures are scored. That takes the whole model in memory and a pass for each linear: it is for
small models; a large one is judged block by block on its outputs (pack.py).
"""

from __future__ import annotations

from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F

from qalign_export.parameters import ParameterSource
from qalign_export.rounding.fold import Tensors, blocks
from qalign_export.rounding.quantizer import expand, quantize_fp8, quantize_int4, quantize_int8, read_rows
from qalign_export.rounding.trace import Trace
from qalign_fast.families.mplug_owl2.model.folded import FoldedModel
from qalign_fast.families.prompt import Prompt
from qalign_fast.levels import WEIGHTS
from qalign_kernels.contract.linear import Weight
from qalign_kernels.contract.ops import Ops

_TO_NEAREST = {"int8": quantize_int8, "int4": quantize_int4, "fp8": quantize_fp8}
_OUTLIER = 8  # times the median linear's effect
_HARMLESS = 1e-3  # on 1..5; an effect not worth a higher precision, however small the others are


def sensitive_linears(source: ParameterSource, prompt: Prompt, pixels: Tensor, precision: str) -> dict[str, str]:
    """The linears whose rounding moves scores far more than the others' does -> the precision they need instead.

    pixels: uint8 [B, S, S, 3]. An int4 linear becomes int8, and float32 where 8 bits are bad as well.
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
    for rounded, instead in (("int4", "int8"), ("int8", "fp32")) if precision == "int4" else ((precision, "fp32"),):
        effects = _effects(model, pixels, constants, rounded)
        limit = max(_HARMLESS, _OUTLIER * median(effects.values()))
        found |= {name: instead for name, effect in effects.items() if effect > limit}
    return found


@torch.no_grad()
def _effects(model: FoldedModel, pixels: Tensor, constants: tuple[Tensor, Tensor], precision: str) -> dict[str, float]:
    """How far scores move, in the mean, when each linear alone is rounded."""
    linears = [name for block in blocks(model.config) for name in block.linears]
    exact = _scores(model, pixels, constants)
    effects, ops = {}, model.ops
    assert isinstance(ops, _OneRounded)
    for ops.name in linears:
        weight = model.tensors[f"{ops.name}.weight"]
        ops.rounded = _TO_NEAREST[precision](weight)
        effects[ops.name] = float((_scores(model, pixels, constants) - exact).abs().mean())
    ops.name = ""
    return effects


def _scores(model: FoldedModel, pixels: Tensor, constants: tuple[Tensor, Tensor]) -> Tensor:
    return model.decode(model.encode(pixels), *constants).softmax(-1) @ torch.from_numpy(WEIGHTS)


class _OneRounded(Ops):
    name = ""  # of the linear that is rounded
    rounded: Tensors

    def product(self, x: Tensor, w: Weight) -> Tensor:
        if w.name != self.name:
            return super().product(x, w)
        return F.linear(read_rows(x, self.rounded), expand(self.rounded, x.shape[-1]), w.bias)
