"""A geometry and a precision in, an artifact of random weights out, made on a GPU in seconds instead of minutes.

    python bench/studies/device_export.py random:one-align OUT --precision int8 --device cuda

The artifact is what `export_artifact` writes without calibration, but its random numbers are those of `random_model`.
Sizes and speed are the same. The scores differ, but mean nothing in either.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from qalign_bench.contestants.random_model import DeviceParameters, manifest_of, round_on_device
from qalign_export.atomic import unfinished
from qalign_export.onnx_graphs.graph_files import write_graphs
from qalign_export.options import ENGINES
from qalign_export.rounding.blockwise import RoundingResult
from qalign_export.tensor_file import TensorFile
from qalign_fast.artifact.manifest import MANIFEST, PROMPTS, PromptEntry, hash_file
from qalign_fast.families.mplug_owl2.model.checkpoint import parameter_shapes
from qalign_kernels.contract.precisions import PRECISIONS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="random:one-align, random:mini or random:FOLDER")
    parser.add_argument("out", type=Path)
    parser.add_argument("--precision", choices=PRECISIONS, default="int8")
    parser.add_argument("--engine", choices=ENGINES, default="torch", help="a CPU writes graphs, which takes minutes")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    export(
        DeviceParameters(options.model, torch.device(options.device)), options.out, options.precision, options.engine
    )


def export(source: DeviceParameters, out: Path, precision: str, engine: str = "torch") -> None:
    """Writes the artifact into the folder `out`. Raises ArtifactError where it cannot be written."""
    manifest = manifest_of(source, precision)
    prompts = [entry.prompt for entry in manifest.prompts]
    with unfinished(out) as partial:
        weights = partial / f"torch/model_{precision}.safetensors"
        weights.parent.mkdir()
        with TensorFile(weights, most=8 * len(parameter_shapes(source.config))) as file:
            rounded = round_on_device(source, precision, prompts, lambda name, x: file.write(name, x.cpu()))
        parts = {"weights": weights.relative_to(partial).as_posix()}
        if engine != "torch":
            parts = write_graphs(engine, weights, source.config, partial, f"_{precision}")
            shutil.rmtree(weights.parent)
        _write_prompts(rounded, partial / PROMPTS, manifest.prompts)
        paths = [path for path in partial.rglob("*") if path.is_file()]
        files = {path.relative_to(partial).as_posix(): hash_file(path) for path in paths}
        written = replace(manifest, engines={engine: parts}, files=files)
        (partial / MANIFEST).write_text(written.to_json(), "utf-8")


def _write_prompts(rounded: RoundingResult, path: Path, entries: Sequence[PromptEntry]) -> None:
    tensors = {}
    for entry in entries:
        prefix, suffix = rounded.prefixes[entry.prompt.prefix], rounded.suffixes[entry.prompt.suffix]
        tensors[entry.prefix] = prefix.cpu().clone(memory_format=torch.contiguous_format)
        tensors[entry.suffix] = suffix.cpu().clone(memory_format=torch.contiguous_format)
    save_file(tensors, path)


if __name__ == "__main__":
    main()
