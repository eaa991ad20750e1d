"""The mini model in a form of 4 bits, in plain torch: what the form moves the scores of 504 damaged pictures by.

Linears are multiplied in float32, of rounded rows and expanded weights: the contract up to the order of float32's sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from qalign_bench.two_level_forms import Form
from qalign_export.fidelity import Fidelity, compare, generate_pictures
from qalign_export.fold import Migration, Tensors, blocks
from qalign_export.mini_eval import distorted
from qalign_export.quantizer import gram
from qalign_export.sensitivity import sensitive_linears
from qalign_export.source import Source, open_source
from qalign_export.trace import Trace
from qalign_fast.image import load_pixels
from qalign_fast.levels import Score, score_of
from qalign_fast.loading import load_engine
from qalign_fast.model.packed import PackedModel
from qalign_fast.prompt import prompt
from qalign_fast.torch_engine import TorchEngine
from qalign_kernels.linear import Weight
from qalign_kernels.ops import Ops

SEVERITIES = 18  # of the seven pictures in four families: 504
_BLOCK, _JUDGED = 512, 256  # as export's: of the Gram matrix, and rows that the bias is corrected by
_QUALITY = prompt("quality")


@dataclass
class FakeRows(Ops):
    """Rows become what the form makes of them, for the linears that are in it."""

    form: Form
    rounded: set[str] = field(default_factory=set)

    def product(self, x: Tensor, w: Weight) -> Tensor:
        return super().product(self.form.read(x) if w.name in self.rounded else x, w)


class Mini:
    """Calibrates on generated pictures, judges on held-out ones; which linears stay in float32 is as today's int4."""

    pixels: Tensor
    higher: dict[str, str]

    def __init__(self, checkpoint: Path) -> None:
        self.source: Source = open_source(checkpoint)
        self.judged = self._load(distorted(SEVERITIES))
        engine = load_engine(checkpoint)
        assert isinstance(engine, TorchEngine)
        self.exact = self._scores(engine)

    def calibrate(self, count: int) -> None:
        self.pixels = torch.from_numpy(self._load(generate_pictures(count)))
        with torch.no_grad():
            self.higher = sensitive_linears(self.source, _QUALITY, self.pixels, "int4", 128)

    @torch.no_grad()
    def measure(self, form: Form) -> Fidelity:
        ops = FakeRows(form)
        tensors, constants = self._round(form, ops)
        model = PackedModel(self.source.config, tensors, ops)
        found = self._scores(TorchEngine(model, "int4", {_QUALITY.name: constants}, (_QUALITY,)))
        return compare({"quality": found}, {"quality": self.exact}, against="mini", pictures="held out")

    def _load(self, pictures: Sequence[Image.Image]) -> npt.NDArray[np.uint8]:
        return np.stack([load_pixels(picture, self.source.config.pixels) for picture in pictures])

    def _scores(self, engine: TorchEngine) -> list[Score]:
        chunks = [self.judged[i : i + 8] for i in range(0, len(self.judged), 8)]
        logits = np.concatenate([engine.decode(engine.encode(chunk), _QUALITY) for chunk in chunks])
        return [score_of(x, "quality") for x in logits]

    def _round(self, form: Form, ops: FakeRows) -> tuple[Tensors, tuple[Tensor, Tensor]]:
        """All tensors, ŵ in the place of weights, and the prompt's prefix and suffix; block by block as export does."""
        trace = Trace(self.source.config, [_QUALITY], self.source.read(["decoder.embed"])["decoder.embed"], self.pixels)
        every: Tensors = {}
        for block in blocks(self.source.config):
            tensors = block.fold(self.source.read(block.reads))
            inputs = trace.run(block, tensors)
            for migration in block.migrations if inputs else ():
                s = _migrate(migration, tensors, inputs, form)
                if migration.of_values:
                    trace.divide_values(block.index, s)
            for name in block.linears:
                if name in inputs and name not in self.higher:
                    _round_linear(name, tensors, inputs[name], form)
                    ops.rounded.add(name)
            every |= tensors
        prefix = torch.stack(trace.prefixes[_QUALITY.prefix])
        return every, (prefix, trace.suffixes[_QUALITY.suffix])


def _migrate(migration: Migration, tensors: Tensors, inputs: Tensors, form: Form) -> Tensor:
    """Divides a common input by its s, where it comes from and in the rows seen, and multiplies what reads it."""
    readers = [f"{name}.weight" for name in migration.consumers]
    rows = torch.cat([inputs[name] for name in migration.seen or migration.consumers])
    s = form.migration([tensors[name] for name in readers], rows)
    for name in readers:
        tensors[name] = tensors[name] * s
    for name in migration.consumers:
        inputs[name] = inputs[name] / s
    for name, part, parts in migration.producers:
        divided = tensors[name].view(parts, -1, *tensors[name].shape[1:]).clone()
        divided[part] /= s if divided.ndim == 2 else s.unsqueeze(1)
        tensors[name] = divided.flatten(0, 1)
    return s


def _round_linear(name: str, tensors: Tensors, rows: Tensor, form: Form) -> None:
    """The mean error over some of the rows goes into the bias."""
    weight = tensors[f"{name}.weight"]
    rounded = tensors[f"{name}.weight"] = form.weights(weight, gram(rows, _BLOCK))
    judged = rows[:: -(-len(rows) // _JUDGED)]
    shift = (F.linear(form.read(judged), rounded) - F.linear(judged, weight)).mean(0)
    bias = tensors.get(f"{name}.bias")
    tensors[f"{name}.bias"] = -shift if bias is None else bias - shift
