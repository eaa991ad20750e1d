"""A GPU's rates in, the time of every stage of a batch on it out, from the launches that the engine makes there.

    python -m qalign_bench.profiling.predict [--json bench/predicted.json]

The full-size model's steps run on tensors that hold no data, and each operation is given the time that the rules below
say. This is an estimate. It stands beside a measurement until that replaces it; none of its figures is a result. The
rules are:

    arithmetic  A processor multiplies a step of 128 inputs of a tile in the longer of two times: what its matrix units
                need at `busy` of their peak, or what its share of the second cache's rate needs to bring the step's
                boxes. Its lanes spread int4's weights before that, or while another program computes.
    memory      A launch reads and writes its tensors once, at `dram`. A product takes the longest of the three times.
    ends        What no loop of a tile covers costs `end` microseconds: all of them where a processor has one program,
                a quarter where two cover each other. An incomplete last wave of programs costs a whole one, but not in
                Hopper's product, which shares it out. A shared part costs four steps.
    libraries   cuBLAS reaches `library` of the peak, attention `attention` TFLOPS.
    launches    There are `gap` microseconds between two nodes of a graph (on an H100 with programmatic dependent
                launch), and `host` for a batch's way to the device and back.

An estimate may be off by a quarter.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from qalign_bench.contestants.random_model import RandomModel, make
from qalign_bench.contestants.timed_ops import size_of
from qalign_bench.figures.report import markdown_table
from qalign_bench.profiling.model_products import BATCHES
from qalign_fast.engines.cuda_model import between_of
from qalign_fast.engines.torch_weights import to_device
from qalign_fast.families.mplug_owl2.folded_schema import schema
from qalign_fast.families.mplug_owl2.model.folded_cuda import CudaModel
from qalign_kernels.contract.linear import row_dtype
from qalign_kernels.contract.operations import Activation
from qalign_kernels.contract.ops import Ops
from qalign_kernels.contract.precisions import PRECISIONS
from qalign_kernels.contract.quantized_rows import LARGEST, QuantizedRows
from qalign_kernels.contract.weight import Modal, Weight
from qalign_kernels.cuda.launch import Device, cdiv
from qalign_kernels.cuda.linear import inputs_of, weight_type
from qalign_kernels.cuda.linear_hopper import per_processor
from qalign_kernels.cuda.ops import row_type
from qalign_kernels.cuda.quantized_rows import empty_rows
from qalign_kernels.cuda.tiles import RESERVED, SHARED_COST, Tile, tile_for, tiles_of

T = TypeVar("T", Tensor, Tensor | QuantizedRows)
MODEL = "random:one-align"
_PACKED = 0.25  # the share of attention's rate that a kernel for a prompt's rows reaches
_COVERED = 0.25  # the share of an end that remains where a processor's two programs cover each other's
_SPREAD = 2.0  # instructions for a 4-bit weight, counted in the compiled kernel
_OF_INT4 = 68 / 128  # bytes of an input's weight, with its groups
_LANES = 128  # of a processor
_SLOW = 30.0  # TFLOPS of what tensor cores do not compute: the head, in float32


class Chip(NamedTuple):
    """A GPU. Rates are for a second: TOPS and TFLOPS, TB of memory and of the second cache. Times are microseconds."""

    name: str  # part of the driver's name
    facts: Device
    clock: float  # GHz under load
    peak: Mapping[str, float]  # of the datasheet, dense; by dtype
    busy: float  # the share of the peak in a loop of ours
    cache: float
    dram: float
    library: float
    attention: float
    end: float
    gap: float
    host: float


H100 = Chip(
    "H100", Device(90, 132, 227 * 1024), 1.70, {"int8": 1979, "float8_e4m3fn": 1979, "float16": 989},
    busy=0.85, cache=9.0, dram=3.0, library=0.65, attention=420, end=2.4, gap=0.5, host=60,
)  # fmt: skip
RTX_3090 = Chip(
    "RTX 3090", Device(86, 82, 99 * 1024), 1.70, {"int8": 284, "float16": 71},
    busy=0.58, cache=2.0, dram=0.80, library=0.92, attention=51, end=2.4, gap=1.0, host=60,
)  # fmt: skip
CHIPS = (H100, RTX_3090)


def precisions_of(chip: Chip) -> list[str]:
    """The precisions whose products the chip's datasheet has a peak for, those of few bytes first."""
    return [name for name, one in reversed([*PRECISIONS.items()]) if (one.rows or one.weight) in chip.peak]


class Launch(NamedTuple):
    """One launch of the engine and its time."""

    kind: str  # as gpu_summary's KINDS name them
    microseconds: float


class Counted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what torch launches by itself: operations that compute or copy, without views."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.launches = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        views = func.is_view or "empty" in func.__name__ or func.__name__.startswith(("detach", "_reshape_alias"))
        if isinstance(result, Tensor) and not views:
            self.launches += 1
            self.bytes += 2 * result.nbytes
        return result


class Foreseen(Ops):
    """Operations that only note the time that each launch would take. Their results hold no data."""

    def __init__(self, chip: Chip, dtype: torch.dtype, launches: list[Launch]) -> None:
        """Adds to `launches`. `dtype`: of what lies between products."""
        self.chip, self.dtype, self.launches = chip, dtype, launches

    def linear(
        self, x: Tensor | QuantizedRows, w: Weight, *, activation: Activation = None, residual: Tensor | None = None
    ) -> Tensor:
        (*leading, k), n = x.shape, len(w.weight)
        rows, y = math.prod(leading), self._empty(*leading, n)
        tile = tile_for(self.chip.facts, weight_type(w), rows, k, n)
        if isinstance(x, Tensor) and row_dtype(w.weight) in LARGEST:
            self._moving(x, self._row_type(x, [w]))
        self._product(tile, (x, w.weight, w.groups, y, residual), rows, k, n, weight_type(w))
        if tile is None and (activation is not None or not self._adds(w, residual)):
            self._moving(y, y, residual)  # by a kernel after torch's product
        return y

    def _adds(self, w: Weight, residual: Tensor | None) -> bool:
        """Whether torch's product also adds the bias or the residual, as `torch_product` does it."""
        added = [one for one in (w.bias, residual) if one is not None]
        alike = all(one.dtype == self.dtype for one in added) and len(added) < 2
        if row_dtype(w.weight) in LARGEST:
            return w.weight.dtype != torch.int8 and alike and residual is None
        return alike and w.weight.dtype == self.dtype

    def modal_linear(self, x: Tensor | QuantizedRows, w: Weight, modal: Modal) -> Tensor:
        (m, k), n = x.shape, (len(w.weight) + modal.common) // 2
        y, tile = self._empty(m, n), tile_for(self.chip.facts, weight_type(w), m, k, n)
        self._product(tile, (x, w.weight, w.groups, y), m, k, n, weight_type(w), modal)
        return y

    def patches_for(self, w: Weight, pixels: Tensor, patch: int) -> Tensor | QuantizedRows:
        rows = self._empty(len(pixels), (pixels.shape[1] // patch) ** 2, inputs_of(w))
        return self._moving(pixels, self._row_type(rows, [w]))

    def layer_norm(self, x: Tensor, gain: Tensor, bias: Tensor, eps: float) -> Tensor:
        return self._moving(x, self._empty(*x.shape))

    def rms_norm(self, x: Tensor, visual_gain: Tensor, text_gain: Tensor, split: int, eps: float) -> Tensor:
        return self._moving(x, self._empty(*x.shape))

    def swiglu(self, gate_up: Tensor) -> Tensor:
        return self._moving(gate_up, self._empty(*gate_up.shape[:-1], gate_up.shape[-1] // 2))

    def layer_norm_for(
        self, readers: Sequence[Weight], x: Tensor, gain: Tensor, bias: Tensor, eps: float
    ) -> Tensor | QuantizedRows:
        return self._moving(x, self._row_type(x, readers))

    def rms_norm_for(
        self, readers: Sequence[Weight], x: Tensor, visual_gain: Tensor, text_gain: Tensor, split: int, eps: float
    ) -> Tensor | QuantizedRows:
        return self._moving(x, self._row_type(x, readers))

    def swiglu_for(self, readers: Sequence[Weight], gate_up: Tensor) -> Tensor | QuantizedRows:
        half = self._empty(*gate_up.shape[:-1], gate_up.shape[-1] // 2)
        return self._moving(gate_up, self._row_type(half, readers))

    def attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        queries, keys = (128 * cdiv(x.shape[1], 128) for x in (q, k))  # in whole tiles
        flop = 4 * len(q) * queries * keys * q.shape[2]
        self.launches.append(Launch("attention", flop / self.chip.attention / 1e6 + self.chip.end))
        return self._empty(*q.shape)

    def attention_by_modality(
        self, q: Tensor, kv_visual: Tensor, kv_text: Tensor, prefix: Tensor, turns: Tensor, batch: int
    ) -> Tensor:
        flop = 4 * q.numel() * (prefix.shape[1] + turns.shape[1])
        moving = (2 * q.nbytes + kv_visual.nbytes + kv_text.nbytes) / self.chip.dram
        computing = flop / (_PACKED * self.chip.attention)
        self.launches.append(Launch("attention", max(computing, moving) / 1e6 + self.chip.end))
        return self._empty(*q.shape)

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device="meta")

    def _row_type(self, x: Tensor, readers: Sequence[Weight]) -> Tensor | QuantizedRows:
        eight = row_type(readers)
        return self._empty(*x.shape) if eight is None else empty_rows(x.shape, eight, x.device)

    def _moving(self, x: Tensor, result: T, *more: Tensor | None) -> T:
        size = sum(size_of(one).bytes for one in (x, result, *more))
        self.launches.append(Launch("norms, quantizing", size / self.chip.dram / 1e6 + 1))
        return result

    def _product(
        self, tile: Tile | None, moved: Sequence[Tensor | QuantizedRows | None], m: int, k: int, n: int, form: str,
        modal: Modal | None = None,
    ) -> None:  # fmt: skip
        computing = self._by_library(form, m, k, n) if tile is None else self._by_tiles(tile, m, k, n, form, modal)
        moving = sum(size_of(x).bytes for x in moved) / self.chip.dram / 1e6
        self.launches.append(Launch("products", max(computing, moving)))

    def _by_library(self, form: str, m: int, k: int, n: int) -> float:
        """Microseconds of a library's product. It has tiles of 128 rows, or of 64 where there are few rows."""
        rows = 128 * cdiv(m, 128) if m > 64 else 64
        return 2e-6 * rows * k * n / (self.chip.library * self.chip.peak.get(form, _SLOW)) + self.chip.end

    def _by_tiles(self, tile: Tile, m: int, k: int, n: int, form: str, modal: Modal | None) -> float:
        """Microseconds of a product in tiles of ours."""
        chip, processors = self.chip, self.chip.facts.processors
        steps, tiles = cdiv(k, tile.inputs), tiles_of(m, n, tile, modal)
        flop, loaded = 2 * tile.rows * tile.columns * tile.inputs, _loaded(tile, min(m, tile.rows), form)
        rate = chip.busy * chip.peak.get("int8" if form == "int4" else form, _SLOW)
        step = 1e-6 * processors * max(flop / rate, loaded / chip.cache)
        held = per_processor(tile) if tile.hopper else _held(chip.facts, tile, form)
        if form == "int4":
            spread = 1e-3 * _SPREAD * tile.columns * tile.inputs / _LANES / chip.clock
            step = max(step, spread) if held > 1 else step + spread
        end, part = chip.end * (_COVERED if held > 1 else 1), SHARED_COST * step
        waves, rest = divmod(tiles * tile.splits, processors * held)
        if tile.hopper:  # it shares out the last wave's steps
            return tiles * steps * step / processors + cdiv(tiles, processors * held) * end + chip.end + part
        turns = waves * held + cdiv(rest, processors)  # of a processor, one program after another
        return turns * (cdiv(steps, tile.splits) * step + end + part * (tile.splits > 1))


def _loaded(tile: Tile, rows: int, form: str) -> float:
    """The values in a step's boxes. Of 4-bit weights it is the bytes."""
    return (rows + tile.columns * (_OF_INT4 if form == "int4" else 1)) * tile.inputs


def _held(device: Device, tile: Tile, form: str) -> int:
    """How many of Triton's programs a processor holds at once. More than two are not counted."""
    size = _loaded(tile, tile.rows, form) * (tile.stages - 1) + RESERVED
    return 2 if tile.warps == 4 and 2 * size <= device.shared + RESERVED else 1


@cache
def model_of(reference: str, precision: str) -> RandomModel:
    """The model on tensors without data."""
    return make(reference, precision, torch.device("meta"))


def foresee(chip: Chip, precision: str, batch: int, reference: str = MODEL) -> dict[str, Any]:
    """A batch's time, as `gpu_summary` reads it: by step and by kind of kernel; and the count of its launches."""
    meta, between, model = torch.device("meta"), between_of(precision), model_of(reference, precision)
    config, prompt = model.manifest.config, model.manifest.prompts[0].prompt
    seen: list[Launch] = []
    ops = Foreseen(chip, between, seen), Foreseen(chip, torch.float32, seen)
    run = CudaModel(config, to_device(schema(config), dict(model.tensors), meta, between), *ops)
    prefix, suffix = model.constants[prompt.name]
    side, visual = config.pixels.side, config.abstractor.tokens
    tokens = torch.empty(batch, visual, config.decoder.width, dtype=between, device=meta)
    pixels, turns = torch.empty(batch, side, side, 3, dtype=torch.uint8, device=meta), run.turns(visual, prefix, suffix)
    steps: dict[str, Callable[[], Tensor]] = {
        "encode": lambda: run.encode(pixels),
        "decode": lambda: run.decode(tokens, prefix.to(between), suffix.to(between), turns),
    }
    stages: dict[str, float] = defaultdict(float)
    counts = {}
    for name, step in steps.items():
        seen.clear()
        with torch.inference_mode(), Counted() as torchs:
            step()
        counts[name] = len(seen) + torchs.launches
        seen.append(Launch("copies", torchs.bytes / chip.dram / 1e6 + torchs.launches))
        for launch in seen:
            stages[launch.kind] += launch.microseconds / 1e3
        stages[name] = (sum(launch.microseconds for launch in seen) + chip.gap * counts[name]) / 1e3
    ms = stages["encode"] + stages["decode"] + chip.host / 1e3
    return {
        "gpu": chip.name,
        "precision": precision,
        "batch": batch,
        "ms": ms,
        "pictures_per_second": 1e3 * batch / ms,
        "stages": dict(stages),
        "launches": counts,
    }


_HEADER = ("GPU", "precision", "batch", "ms", "pictures/s", "launches")
_STAGES = ("encode", "decode", "products", "attention", "norms, quantizing", "copies")


def _line(found: Mapping[str, Any]) -> list[str]:
    sent, stages = found["launches"], found["stages"]
    speed = [
        f"{found['ms']:.2f}",
        f"{found['pictures_per_second']:.0f}",
        f"{sent['encode']} + {sent['decode']}",
    ]
    return [found["gpu"], found["precision"], str(found["batch"]), *speed, *(f"{stages[name]:.2f}" for name in _STAGES)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = [foresee(chip, name, batch) for chip in CHIPS for name in precisions_of(chip) for batch in BATCHES]
    print(markdown_table([*_HEADER, *_STAGES], [_line(one) for one in found]))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
