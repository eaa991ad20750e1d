"""A GPU's rates in, the time of every stage of a batch on it out, from the launches that the engine makes there.

    python -m qalign_bench.predict [--json bench/results/predicted.json]

The full-size model's steps run on tensors that hold no data; each operation is given the time that the model below
says. It is an estimate, made to be put beside a measurement and replaced by it: no figure of it is a result. It assumes

    arithmetic  a processor multiplies a step of 128 inputs of a tile in the cycles that its matrix units need at
                `busy` of their peak, or in which its share of the second cache's rate brings the step's boxes
    memory      a launch reads and writes what it has to once, at `dram`; a product takes the longest of the three
    ends        what no loop covers of a tile costs `end` microseconds: all of it for one program a processor, a
                quarter where two cover each other. Where a device's programs do not come out even the last wave costs
                a whole one, but for Hopper's product, which shares it; a shared part costs four steps
    libraries   cuBLAS reaches `library` of the peak, attention `attention` TFLOPS
    launches    `gap` microseconds between two nodes of a graph, and `host` for a batch's way there and back

within a quarter, where a look at similar kernels is no guide.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from qalign_bench.random_model import make
from qalign_bench.report import markdown_table
from qalign_bench.timed_ops import size_of
from qalign_fast.config import ModelConfig
from qalign_fast.cuda_engine import CudaModel, between_of, build_model
from qalign_kernels.ahead import Idle
from qalign_kernels.linear import Modal, Weight
from qalign_kernels.linear_hopper import per_processor
from qalign_kernels.linear_triton import form_of
from qalign_kernels.ops import Activation, Ops
from qalign_kernels.rows import Rows
from qalign_kernels.tiles import SHARED_COST, Tile, tile_for, tiles_of
from qalign_kernels.triton_runtime import Device, cdiv, set_driver

MODEL = "random:one-align"
BATCHES = (1, 8, 64)


class Chip(NamedTuple):
    """Rates are a second's: TOPS and TFLOPS by precision, TB of memory and of the second cache; times in microseconds."""

    name: str  # part of what the driver calls it
    facts: Device
    clock: float  # GHz under load
    peak: Mapping[str, float]  # of the datasheet, dense
    busy: float  # share of it in a loop of ours
    cache: float
    dram: float
    library: float
    attention: float
    end: float
    gap: float
    host: float


H100 = Chip(
    "H100", Device(90, 132, 227 * 1024), 1.70, {"int8": 1979, "float8_e4m3fn": 1979, "float16": 989},
    busy=0.85, cache=9.0, dram=3.0, library=0.65, attention=420, end=2.4, gap=1.0, host=60,
)  # fmt: skip
RTX_3090 = Chip(
    "RTX 3090", Device(86, 82, 99 * 1024), 1.70, {"int8": 284, "float16": 71},
    busy=0.58, cache=2.0, dram=0.80, library=0.92, attention=51, end=2.4, gap=1.0, host=60,
)  # fmt: skip
CHIPS = ((H100, ("int8", "fp8", "fp16")), (RTX_3090, ("int8", "fp16")))


class Launch(NamedTuple):
    kind: str  # as gpu_summary's KINDS name them
    microseconds: float


class Counted(TorchDispatchMode):
    """What torch launches of its own: operations that compute or copy, and are no views."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = Counter[str]()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        views = func.is_view or "empty" in func.__name__ or func.__name__.startswith(("detach", "_reshape_alias"))
        if isinstance(result, Tensor) and not views:
            self.launches[func.__name__] += 1
            self.bytes += 2 * result.nbytes
        return result


class Foreseen(Ops):
    """Operations with the time that each is given; attention is torch's, whatever it is made of."""

    def __init__(self, ops: Ops, chip: Chip) -> None:
        self.name, self.inner, self.chip = ops.name, ops, chip
        self.launches: list[Launch] = []

    def linear(
        self, x: Tensor | Rows, w: Weight, *, activation: Activation = None, residual: Tensor | None = None
    ) -> Tensor:
        if isinstance(x, Tensor) and w.scale is not None:
            self._moved("norms, quantizing", size_of(x).bytes + size_of(x).elements)
        y = self.inner.linear(x, w, activation=activation, residual=residual)
        rows = math.prod(y.shape[:-1])
        self._product(x, w, rows, y, residual, None)
        if tile_for(self.chip.facts, form_of(w), rows, x.shape[-1], len(w.weight)) is None and (activation or residual is not None):
            self._moved("norms, quantizing", 2 * size_of(y).bytes + size_of(residual).bytes)
        return y

    def modal_linear(self, x: Tensor | Rows, w: Weight, modal: Modal) -> Tensor:
        y = self.inner.modal_linear(x, w, modal)
        self._product(x, w, len(y), y, None, modal)
        return y

    def patches_for(self, w: Weight, pixels: Tensor, patch: int) -> Tensor | Rows:
        return self._rows(self.inner.patches_for(w, pixels, patch), pixels)

    def layer_norm(self, x: Tensor, gain: Tensor, bias: Tensor, eps: float) -> Tensor:
        y = self.inner.layer_norm(x, gain, bias, eps)
        self._rows(y, x)
        return y

    def rms_norm(self, x: Tensor, visual_gain: Tensor, text_gain: Tensor, split: int, eps: float) -> Tensor:
        y = self.inner.rms_norm(x, visual_gain, text_gain, split, eps)
        self._rows(y, x)
        return y

    def layer_norm_for(
        self, readers: Sequence[Weight], x: Tensor, gain: Tensor, bias: Tensor, eps: float
    ) -> Tensor | Rows:
        return self._rows(self.inner.layer_norm_for(readers, x, gain, bias, eps), x)

    def rms_norm_for(
        self, readers: Sequence[Weight], x: Tensor, visual_gain: Tensor, text_gain: Tensor, split: int, eps: float
    ) -> Tensor | Rows:
        return self._rows(self.inner.rms_norm_for(readers, x, visual_gain, text_gain, split, eps), x)

    def swiglu_for(self, readers: Sequence[Weight], gate_up: Tensor) -> Tensor | Rows:
        return self._rows(self.inner.swiglu_for(readers, gate_up), gate_up)

    def swiglu(self, gate_up: Tensor) -> Tensor:
        y = self.inner.swiglu(gate_up)
        self._rows(y, gate_up)
        return y

    def attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        queries, keys = (128 * cdiv(x.shape[1], 128) for x in (q, k))  # as tiles have them
        flop = 4 * len(q) * queries * keys * q.shape[2]
        self.launches.append(Launch("attention", flop / self.chip.attention / 1e6 + 2))
        return torch.empty_like(q, dtype=torch.float16, memory_format=torch.contiguous_format)

    def packed_attention(
        self, q: Tensor, kv_visual: Tensor, kv_text: Tensor, prefix: Tensor, turns: Tensor, batch: int
    ) -> Tensor:
        context = self.inner.packed_attention(q, kv_visual, kv_text, prefix, turns, batch)
        flop = 4 * q.numel() * (prefix.shape[1] + turns.shape[1])
        computing = flop / (0.25 * self.chip.attention) / 1e6
        moving = (sum(x.nbytes for x in (q, kv_visual, kv_text)) + context.nbytes) / self.chip.dram / 1e6
        self.launches.append(Launch("attention", max(computing, moving) + 2))
        return context

    def _rows(self, found: Tensor | Rows, read: Tensor) -> Any:
        self._moved("norms, quantizing", read.nbytes + size_of(found).bytes)
        return found

    def _moved(self, kind: str, size: float) -> None:
        self.launches.append(Launch(kind, size / self.chip.dram / 1e6 + 1))

    def _product(
        self, x: Tensor | Rows, w: Weight, rows: int, y: Tensor, residual: Tensor | None, modal: Modal | None
    ) -> None:
        k, n = w.weight.shape[1], y.shape[-1]
        moved = sum(size_of(t).bytes for t in (x, w.weight, y, residual))
        tile = tile_for(self.chip.facts, form_of(w), rows, k, n)
        computing = self._by_library(form_of(w), rows, k, len(w.weight)) if tile is None else self._by_tiles(tile, rows, k, n, modal)
        self.launches.append(Launch("products", max(computing, moved / self.chip.dram / 1e6)))

    def _by_library(self, form: str, m: int, k: int, n: int) -> float:
        rows = 128 * cdiv(m, 128) if m > 64 else 64
        return 2 * rows * k * n / (self.chip.library * self.chip.peak.get(form, self.chip.peak["float16"] / 8)) / 1e6 + self.chip.end

    def _by_tiles(self, tile: Tile, m: int, k: int, n: int, modal: Modal | None) -> float:
        chip, facts = self.chip, self.chip.facts
        steps, tiles, inputs = cdiv(k, tile.inputs), tiles_of(m, n, tile, modal), tile.inputs
        peak = chip.peak["int8"] / facts.processors * 1e6  # operations of a processor a microsecond
        arithmetic = 2 * tile.rows * tile.columns * inputs / (chip.busy * peak)
        loaded = (min(m, tile.rows) + tile.columns) * inputs
        step = max(arithmetic, loaded / (chip.cache / facts.processors * 1e6))
        if not tile.hopper:
            parts = tiles * tile.splits
            waves = cdiv(parts, facts.processors) if tiles < 4 * facts.processors else parts / facts.processors
            return waves * (cdiv(steps, tile.splits) * step + chip.end + (tile.splits > 1) * SHARED_COST * step)
        held = per_processor(tile)
        share = tiles * steps / facts.processors  # steps of a processor
        shared = tiles % (facts.processors * held) > 0
        exposed = chip.end * (1 if held == 1 else 0.25)
        return share * step + exposed * cdiv(tiles, facts.processors * held) + chip.end + shared * SHARED_COST * step


def foresee(chip: Chip, precision: str, batch: int) -> dict[str, Any]:
    """A batch's time by step and by kind of kernel, and its launches."""
    set_driver(Idle(chip.facts))
    model = make(MODEL, precision, torch.device("meta"))
    config, name = model.manifest.config, model.manifest.prompts[0].prompt.name
    watched: list[Foreseen] = []

    def watch(ops: Ops) -> Ops:
        watched.append(Foreseen(ops, chip))
        return watched[0]

    run, constants = build_model(config, precision, model.tensors, model.constants, torch.device("meta"), chip.facts, watch)
    stages: dict[str, float] = defaultdict(float)
    count = {}
    for step in ("encode", "decode"):
        watched[0].launches.clear()
        with torch.inference_mode(), Counted() as torchs:
            run_step(run, config, step, batch, precision, constants[name])
        launches = watched[0].launches
        others = sum(torchs.launches.values())
        for launch in launches:
            stages[launch.kind] += launch.microseconds / 1e3
        stages["copies"] += (torchs.bytes / chip.dram / 1e6 + others) / 1e3
        count[step] = len(launches) + others
        stages[step] = sum(launch.microseconds for launch in launches) / 1e3 + (torchs.bytes / chip.dram / 1e6 + others + chip.gap * count[step]) / 1e3
    ms = stages["encode"] + stages["decode"] + chip.host / 1e3
    return {
        "gpu": chip.name,
        "precision": precision,
        "batch": batch,
        "ms": ms,
        "pictures_per_second": 1e3 * batch / ms,
        "stages": dict(stages),
        "launches": count,
    }


def run_step(model: CudaModel, config: ModelConfig, step: str, batch: int, precision: str, constants: tuple[Tensor, Tensor]) -> None:
    side, decoder = config.pixels.side, config.decoder
    if step == "encode":
        model.encode(torch.empty(batch, side, side, 3, dtype=torch.uint8, device="meta"))
    else:
        tokens = torch.empty(batch, config.abstractor.tokens, decoder.width, dtype=between_of(precision), device="meta")
        model.decode(tokens, *constants, model.turns(tokens.shape[1], *constants))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = [foresee(chip, precision, batch) for chip, forms in CHIPS for precision in forms for batch in BATCHES]
    header = ["GPU", "precision", "batch", "ms", "pictures/s", "launches", "encode", "decode", "products", "attention", "norms, quantizing", "copies"]
    print(markdown_table(header, [
        [f["gpu"], f["precision"], str(f["batch"]), f"{f['ms']:.2f}", f"{f['pictures_per_second']:.0f}",
         f"{f['launches']['encode']} + {f['launches']['decode']}", *(f"{f['stages'][name]:.2f}" for name in header[6:])]
        for f in found
    ]))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
