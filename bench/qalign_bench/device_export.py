"""A geometry and a precision in, an artifact of random weights out, made on a GPU in seconds instead of minutes.

    python -m qalign_bench.device_export random:one-align OUT --precision int8 --device cuda

What `export_artifact` writes of that geometry, uncalibrated, but that the random numbers are of the device's generator:
the same sizes and the same speed, and other scores, which mean nothing in either.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from qalign_export.pack import PRECISIONS, Packed, Recipe, pack
from qalign_export.random_numbers import deviation, is_gain
from qalign_export.source import RandomSource
from qalign_export.tensor_file import TensorFile
from qalign_export.unfinished import unfinished
from qalign_export.writer import ENGINES, write_graphs
from qalign_fast import __version__
from qalign_fast.artifact import MANIFEST, PROMPTS, Manifest, PromptEntry, hash_file
from qalign_fast.levels import LEVEL_IDS, LEVELS
from qalign_fast.prompt import MEDIA, Prompt, prompt
from qalign_fast.weights import Source, parameter_shapes

TASKS = ("quality", "aesthetics")


class DeviceSource(RandomSource):
    """Random parameters of the same spread, made on the device."""

    def __init__(self, reference: str, device: torch.device) -> None:
        super().__init__(reference)
        self.device = device

    def sha256(self) -> str:
        return hashlib.sha256(f"{self.name} on {self.device.type}".encode()).hexdigest()

    def _make(self, source: Source) -> Tensor:
        noise = torch.empty(source.shape, device=self.device).normal_(0, deviation(source.name, source.shape))
        return source.take(noise + 1 if is_gain(source.name, source.shape) else noise)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="random:one-align, random:mini or random:FOLDER")
    parser.add_argument("out", type=Path)
    parser.add_argument("--precision", choices=PRECISIONS, default="int8")
    parser.add_argument("--engine", choices=ENGINES, default="torch", help="graphs take minutes: a CPU writes them")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    export(DeviceSource(options.model, torch.device(options.device)), options.out, options.precision, options.engine)


def export(source: DeviceSource, out: Path, precision: str, engine: str = "torch") -> None:
    """Raises ArtifactError where `out` cannot be written."""
    prompts = [prompt(task, medium) for task in TASKS for medium in MEDIA]
    with unfinished(out) as partial:
        weights = partial / f"torch/model_{precision}.safetensors"
        weights.parent.mkdir()
        with TensorFile(weights, most=8 * len(parameter_shapes(source.config))) as file:
            packed = pack_on_device(source, precision, prompts, lambda name, x: file.write(name, x.cpu()))
        parts = {"weights": weights.relative_to(partial).as_posix()}
        if engine != "torch":
            parts = write_graphs(engine, weights, source.config, partial, f"_{precision}")
            shutil.rmtree(weights.parent)
        entries = _write_prompts(packed, partial / PROMPTS, prompts)
        paths = [path for path in partial.rglob("*") if path.is_file()]
        manifest = Manifest(
            name=source.name,
            source={"name": source.name, "sha256": source.sha256()},
            license="none: random numbers",
            config=source.config,
            levels=tuple(zip(LEVELS, LEVEL_IDS, strict=True)),
            prompts=entries,
            precision=precision,
            quantization=None if precision == "fp32" else {"calibration_pictures": 0, "higher": {}},
            engines={engine: parts},
            files={path.relative_to(partial).as_posix(): hash_file(path) for path in paths},
            fidelity=None,
            made_with={"qalign-fast": __version__, "torch": str(torch.__version__)},
        )
        (partial / MANIFEST).write_text(manifest.to_json(), "utf-8")


def pack_on_device(
    source: DeviceSource, precision: str, prompts: list[Prompt], write: Callable[[str, Tensor], None]
) -> Packed:
    """`pack`, whose own tensors are made where the parameters are."""
    torch.manual_seed(0)
    side = source.config.pixels.side
    with torch.device(source.device):
        return pack(source, Recipe(precision), prompts, torch.empty(0, side, side, 3, dtype=torch.uint8), write)


def _write_prompts(packed: Packed, path: Path, prompts: list[Prompt]) -> tuple[PromptEntry, ...]:
    tensors = {}
    for p in prompts:
        tensors[f"{p.name}.prefix"] = packed.prefixes[p.prefix].cpu().clone(memory_format=torch.contiguous_format)
        tensors[f"{p.name}.suffix"] = packed.suffixes[p.suffix].cpu().clone(memory_format=torch.contiguous_format)
    save_file(tensors, path)
    return tuple(PromptEntry(p, f"{p.name}.prefix", f"{p.name}.suffix") for p in prompts)


if __name__ == "__main__":
    main()
