"""A geometry, a precision and a device in, a model of random numbers out. It is made on the device and is in no file.

At full size a GPU needs some seconds for that. Making, writing, hashing and reading 8 GB takes a minute. The numbers
are those of `random_numbers.counted`, the same on every device. Nothing is calibrated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from qalign_bench.cli.options import DEFAULT_PRECISION, TASKS
from qalign_export import random_numbers
from qalign_export.parameters import RANDOM, RandomParameters
from qalign_export.rounding.blockwise import RoundingResult, fold_and_round
from qalign_fast.artifact.manifest import Manifest, PromptEntry
from qalign_fast.engines import torch_cpu
from qalign_fast.engines.compile_ahead import Launches, compile_ahead
from qalign_fast.engines.contract import Engine
from qalign_fast.engines.cuda_graphs import Runner
from qalign_fast.engines.load import load_engine
from qalign_fast.engines.options import LoadOptions
from qalign_fast.errors import DeviceError
from qalign_fast.families.family import Constants
from qalign_fast.families.mplug_owl2.family import FAMILY
from qalign_fast.families.mplug_owl2.model.checkpoint import TensorOrigin
from qalign_fast.families.mplug_owl2.prompts import LEVEL_IDS, prompt
from qalign_fast.families.prompt import MEDIA, Prompt
from qalign_fast.levels import LEVELS
from qalign_fast.version import __version__


class DeviceParameters(RandomParameters):
    """Random parameters with the spread of RandomParameters', made on the device."""

    def __init__(self, reference: str, device: torch.device | str = "cpu") -> None:
        super().__init__(reference)
        self.device = torch.device(device)

    def sha256(self) -> str:
        """The hash of the name and of a sample of the numbers, for other numbers are another model."""
        sample = random_numbers.counted("model.norm.weight", (64,), torch.device("cpu")).numpy().tobytes()
        return hashlib.sha256(self.name.encode() + sample).hexdigest()

    def _make(self, origin: TensorOrigin) -> Tensor:
        return origin.take(random_numbers.counted(origin.name, origin.shape, self.device))


@dataclass(frozen=True)
class RandomModel:
    """What an artifact holds, on the device. The manifest names no file."""

    manifest: Manifest
    tensors: dict[str, Tensor]
    constants: dict[str, Constants]

    @property
    def bytes(self) -> int:
        """Of the weights."""
        return sum(x.nbytes for x in self.tensors.values())


def make(reference: str, precision: str, device: torch.device) -> RandomModel:
    """Makes the model of "random:" and a geometry. Raises CheckpointError for a geometry that is not known."""
    source, tensors = DeviceParameters(reference, device), dict[str, Tensor]()
    manifest = manifest_of(source, precision)
    prompts = [entry.prompt for entry in manifest.prompts]
    rounded = round_on_device(source, precision, prompts, tensors.__setitem__)
    if device.type == "cuda":  # what rounding took is no part of what the model takes
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    return RandomModel(
        manifest, tensors, {p.name: (rounded.prefixes[p.prefix], rounded.suffixes[p.suffix]) for p in prompts}
    )


def load(model: RandomModel, device: str, runner: Runner | None = None) -> Engine:
    """The engine that would run an artifact of this model on a device: "cuda:N", or "cpu" in plain torch.

    It takes the tensors out of the model. `runner` is a CUDA engine's; None is `Graphs`.
    """
    manifest, place = model.manifest, torch.device(device)
    if place.type == "cuda":
        from qalign_fast.engines.torch_cuda import build_engine

        compile_ahead([launches(model)], place)
        return build_engine(manifest, device, model.tensors, model.constants, runner)
    return torch_cpu.build_engine(manifest, model.tensors, model.constants, device=device)


def launches(model: RandomModel) -> Launches:
    """What `compile_ahead` must know of the model."""
    manifest = model.manifest
    return Launches(manifest.family.name, manifest.config, manifest.precision, model.tensors, model.constants)


def open_engine(reference: str, precision: str | None, device: str, runner: Runner | None = None) -> Engine:
    """The engine of a model in random numbers, which are made on the device, or of an artifact.

    It is for programs that look into one engine. `runner`: as in `load`, for random numbers only. Raises what
    `load_engine` raises.
    """
    place = "cuda:0" if device == "cuda" else device
    if reference.startswith(RANDOM):
        return load(make(reference, precision or DEFAULT_PRECISION, torch.device(place)), place, runner)
    if runner is None or not place.startswith("cuda"):
        return load_engine(Path(reference), LoadOptions(device=device, precision=precision, engine="torch"))
    raise DeviceError(f"{reference}: only {RANDOM}... models take another runner")


def manifest_of(source: RandomParameters, precision: str) -> Manifest:
    """The manifest of an artifact of these numbers that is in no file."""
    prompts = [prompt(task, medium) for task in TASKS for medium in MEDIA]
    return Manifest(
        name=source.name,
        source={"name": source.name, "sha256": source.sha256()},
        license="none: random numbers",
        family=FAMILY,
        config=source.config,
        levels=tuple(zip(LEVELS, LEVEL_IDS, strict=True)),
        prompts=tuple(PromptEntry(p, f"{p.name}.prefix", f"{p.name}.suffix") for p in prompts),
        precision=precision,
        quantization=None if precision == "fp32" else {"calibration_pictures": 0, "higher": {}},
        engines={"torch": {}},
        files={},
        fidelity=None,
        made_with={"qalign-fast": __version__, "torch": str(torch.__version__)},
    )


def round_on_device(
    source: DeviceParameters, precision: str, prompts: list[Prompt], write: Callable[[str, Tensor], None]
) -> RoundingResult:
    """`fold_and_round`, whose own tensors are made where the parameters are."""
    side = source.config.pixels.side
    with torch.device(source.device):
        pixels = torch.empty(0, side, side, 3, dtype=torch.uint8)
        return fold_and_round(source, precision, prompts, pixels, write)
