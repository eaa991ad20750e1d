"""A model's parameters in, an artifact directory out: weights for the engines, the prompts' constants, the manifest.

Folded tensors are written block by block as they are made; the ONNX graphs are then built from that file, mapped. All
is written into a folder beside the target, the manifest last, and renamed at the end: an interrupted export leaves
nothing that loads.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from qalign_export.atomic import unfinished
from qalign_export.onnx_graphs.decoder import build_decoder
from qalign_export.onnx_graphs.fused import FusedGraph
from qalign_export.onnx_graphs.model import ModelGraph
from qalign_export.onnx_graphs.vision import build_vision
from qalign_export.parameters import ParameterSource, open_parameters, weight_count
from qalign_export.rounding.pack import FLOAT, PRECISIONS, Packed, Recipe, pack
from qalign_export.tensor_file import TensorFile
from qalign_fast.artifact.manifest import MANIFEST, PROMPTS, FileEntry, Manifest, PromptEntry, hash_file
from qalign_fast.errors import ArtifactError, DeviceError, TaskError
from qalign_fast.families.mplug_owl2.family import FAMILY
from qalign_fast.families.mplug_owl2.model.checkpoint import parameter_shapes
from qalign_fast.families.mplug_owl2.prompts import LEVEL_IDS, TASKS, prompt
from qalign_fast.families.mplug_owl2.sizes import ModelConfig
from qalign_fast.families.prompt import MEDIA, Prompt
from qalign_fast.levels import LEVELS
from qalign_fast.pixels.picture import Picture, load_pixels

_EXTERNAL_FROM = 1 << 30  # bytes of a graph's weights; a model file itself may hold 2 GiB
# of a weight, its share of scales included; int4's are .54 in torch's form and .65 in a graph's, so of both 1.2
_BYTES = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "fp8": 1.0, "int8": 1.0, "int4": 0.6}
_TORCH_ALONE = {"bf16": "fp16", "fp8": "int8"}  # precisions that onnxruntime lacks, and the nearest it has
_GRAPHS = {"onnx": ModelGraph, "onnx-cuda": FusedGraph}
ENGINES = (*_GRAPHS, "torch")
UNKNOWN_LICENSE = "unknown; see the source checkpoint"


def export_artifact(
    reference: str | Path,
    out: str | Path,
    *,
    recipe: Recipe = FLOAT,
    engines: Sequence[str] = ("onnx",),
    tasks: Sequence[str] = TASKS,
    prompts: Sequence[Prompt] = (),
    calibration: Sequence[Picture] = (),
    name: str | None = None,
    license: str = UNKNOWN_LICENSE,
    external_from: int = _EXTERNAL_FROM,
    done: Callable[[int, int], None] = lambda _, __: None,
) -> Path:
    """Writes an artifact of a model (what `open_parameters` takes); returns its path.

    `prompts` are more than the known `tasks` (`tokenize_prompt` makes them). `calibration`: pictures whose activations
    decide what is moved and what stays in a higher precision; without, 8 and 4 bits lose more. Models of external_from
    bytes or more keep their graphs' weights in `.onnx_data` files. `done` hears how many blocks are written of all.

    Raises CheckpointError for a checkpoint that is not whole, TaskError for an unknown task, ImageError for a
    calibration picture that cannot be read, DeviceError for a precision that an engine does not have, ArtifactError
    where `out` exists already or the disk has no room.
    """
    out = Path(out)
    prompts = (*_known(tasks), *prompts)
    source = open_parameters(reference)
    _check(source, out, recipe, engines)
    pixels = _load(calibration, source.config)
    with unfinished(out) as partial:
        suffix = "" if recipe.precision == "fp32" else f"_{recipe.precision}"
        weights = partial / f"torch/model{suffix}.safetensors"
        weights.parent.mkdir()
        with TensorFile(weights, most=8 * len(parameter_shapes(source.config))) as file:
            packed = pack(source, recipe, prompts, pixels, file.write, done)
        written: dict[str, dict[str, str]] = {}
        for engine in (engine for engine in _GRAPHS if engine in engines):
            written[engine] = write_graphs(engine, weights, source.config, partial, suffix, external_from)
        if "torch" in engines:
            written["torch"] = {"weights": weights.relative_to(partial).as_posix()}
        else:
            shutil.rmtree(weights.parent)
        entries = _write_prompts(packed, partial / PROMPTS, prompts)
        _write_preprocessor(source.config, partial / "preprocessor_config.json")
        manifest = Manifest(
            name=name or source.name,
            source={"name": source.name, "sha256": source.sha256()},
            license=license,
            family=FAMILY,
            config=source.config,
            levels=tuple(zip(LEVELS, LEVEL_IDS, strict=True)),
            prompts=entries,
            precision=recipe.precision,
            quantization=_describe(recipe, packed, len(pixels)),
            engines=written,
            files=_hash_all(partial),
            fidelity=None,
            made_with={package: version(package) for package in ("qalign-fast", "torch", "onnx", "numpy")},
        )
        (partial / MANIFEST).write_text(manifest.to_json(), "utf-8")
    return out


def _known(tasks: Sequence[str]) -> tuple[Prompt, ...]:
    for task in tasks:
        if task not in TASKS:
            raise TaskError(f"task {task!r} is not known; the family has: {', '.join(TASKS)}")
    return tuple(prompt(task, medium) for task in dict.fromkeys(tasks) for medium in MEDIA)


def _check(source: ParameterSource, out: Path, recipe: Recipe, engines: Sequence[str]) -> None:
    if recipe.precision not in PRECISIONS:
        raise DeviceError(f"precision {recipe.precision!r} is not known; available: {', '.join(PRECISIONS)}")
    if "onnx-cuda" in engines and recipe.precision != "fp16":
        raise DeviceError(f"onnxruntime's CUDA kernels do not compute in {recipe.precision}; available: fp16")
    if "onnx" in engines and (instead := _TORCH_ALONE.get(recipe.precision)):
        raise DeviceError(
            f"onnxruntime does not compute in {recipe.precision} on a CPU; available: --engine torch, or {instead}"
        )
    if out.exists():
        raise ArtifactError(f"{out}: exists already; choose another name or delete it")
    copies = 1 + len(_GRAPHS.keys() & set(engines))  # the torch form is what graphs are made from
    needed = int(weight_count(source.config) * _BYTES[recipe.precision] * copies)
    place = next(p for p in (out.absolute(), *out.absolute().parents) if p.is_dir())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise ArtifactError(f"{out}: about {needed / 1e9:.1f} GB are written; {place} has {free / 1e9:.1f} GB free")


def _load(pictures: Sequence[Picture], config: ModelConfig) -> torch.Tensor:
    """uint8 [B, S, S, 3]; B = 0 without pictures."""
    side = config.pixels.side
    pixels = np.empty((len(pictures), side, side, 3), np.uint8)
    for i, picture in enumerate(pictures):
        pixels[i] = load_pixels(picture, config.pixels)
    return torch.from_numpy(pixels)


class _Mapped(Mapping[str, np.ndarray]):
    """A safetensors file's tensors as arrays, each read when it is asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with safe_open(path, "np") as file:
            self._names = frozenset(file.keys())

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        with safe_open(self._path, "np") as file:  # opened anew, so that pages once read do not stay mapped
            array: np.ndarray = file.get_tensor(name)
        return array

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def write_graphs(
    engine: str,
    weights: Path,
    config: ModelConfig,
    directory: Path,
    suffix: str,
    external_from: int = _EXTERNAL_FROM,
) -> dict[str, str]:
    """Writes an engine's graphs into an artifact's directory, from the file of its folded tensors.

    Returns the engine's parts: {"encode": path, "decode": path}.
    """
    suffix += engine.removeprefix("onnx").replace("-", "_")
    parts = {"encode": f"onnx/vision_encoder{suffix}.onnx", "decode": f"onnx/decoder_model{suffix}.onnx"}
    builders = {"encode": build_vision, "decode": build_decoder}
    (directory / "onnx").mkdir(exist_ok=True)
    external = weights.stat().st_size >= external_from
    for part, path in parts.items():
        file = directory / path
        graph = _GRAPHS[engine](file.stem, _Mapped(weights), file.with_suffix(".onnx_data") if external else None)
        builders[part](graph, config)
        graph.save(file)
    return parts


def _write_prompts(packed: Packed, path: Path, prompts: Sequence[Prompt]) -> tuple[PromptEntry, ...]:
    """The constants of every prompt; prompts with the same text before or after the picture share its tensor."""
    tensors: dict[str, torch.Tensor] = {}
    prefixes: dict[tuple[int, ...], str] = {}
    suffixes: dict[tuple[int, ...], str] = {}
    entries = []
    for p in prompts:
        prefix = prefixes.setdefault(p.prefix, f"{p.name}.prefix")
        suffix = suffixes.setdefault(p.suffix, f"{p.name}.suffix")
        tensors[prefix] = packed.prefixes[p.prefix].contiguous()
        tensors[suffix] = packed.suffixes[p.suffix].contiguous()
        entries.append(PromptEntry(p, prefix, suffix))
    save_file(tensors, path)
    path.chmod(0o644)  # safetensors made it private
    return tuple(entries)


def _describe(recipe: Recipe, packed: Packed, calibration: int) -> dict[str, Any] | None:
    """How the weights were rounded, for the manifest; none where they were not."""
    if recipe.precision == "fp32":
        return None
    described: dict[str, Any] = {"calibration_pictures": calibration, "higher": packed.higher}
    if packed.errors:
        worst = max(packed.errors, key=packed.errors.__getitem__)
        described["largest_relative_error"] = {worst: packed.errors[worst]}
    return described


def _write_preprocessor(config: ModelConfig, path: Path) -> None:
    """The pixel rule as others' tools read it."""
    rule = config.pixels
    content = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": rule.side},
        "crop_size": {"height": rule.side, "width": rule.side},
        "resample": 3,
        "image_mean": rule.mean,
        "image_std": rule.std,
    }
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def _hash_all(directory: Path) -> dict[str, FileEntry]:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): hash_file(path) for path in files}
