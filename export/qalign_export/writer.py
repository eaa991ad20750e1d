"""A model's parameters in, an artifact directory out: weights for the engines, the prompts' constants, the manifest.

Folded tensors are written block by block as they are made; the ONNX graphs are then built from that file, mapped. All
is written into a folder beside the target, the manifest last, and the folder is renamed at the end: an interrupted
export leaves nothing that loads.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from qalign_export.atomic import unfinished
from qalign_export.onnx_graphs.graph_files import GRAPHS, write_graphs
from qalign_export.options import FLOAT32, ExportOptions
from qalign_export.parameters import ParameterSource, open_parameters, weight_count
from qalign_export.preprocessor import write_preprocessor
from qalign_export.rounding.blockwise import RoundingResult, fold_and_round
from qalign_export.tensor_file import TensorFile
from qalign_fast.artifact.manifest import MANIFEST, PROMPTS, FileEntry, Manifest, PromptEntry, hash_file
from qalign_fast.errors import ArtifactError
from qalign_fast.families.mplug_owl2.model.checkpoint import parameter_shapes
from qalign_fast.families.mplug_owl2.sizes import ModelConfig
from qalign_fast.families.prompt import Before, Prompt, with_parts
from qalign_fast.pixels.picture import Picture, load_pixels
from qalign_kernels.contract.precisions import PRECISIONS


def export_artifact(
    reference: str | Path,
    out: str | Path,
    options: ExportOptions = FLOAT32,
    *,
    done: Callable[[int, int], None] = lambda _, __: None,
) -> Path:
    """Writes an artifact of a model (what `open_parameters` takes); returns its path.

    `done` hears how many blocks are written, and of how many. Without calibration pictures 8 and 4 bits lose more.

    Gives a ModelWarning as loading the source would. Raises CheckpointError for a checkpoint that is not whole,
    ImageError for a calibration picture that cannot be read, ArtifactError if `out` exists already or the disk has no
    room.
    """
    out, source = Path(out), open_parameters(reference, options.base)
    family, prompts = source.family, options.prompts_of(source.family)
    _check_place(source, out, options)
    pixels = _load(options.calibration, source.config)
    with unfinished(out) as partial:
        suffix = "" if options.precision == "fp32" else f"_{options.precision}"
        weights = partial / f"torch/model{suffix}.safetensors"
        weights.parent.mkdir()
        with TensorFile(weights, most=8 * len(parameter_shapes(source.config))) as file:
            result = fold_and_round(source, options.precision, prompts, pixels, file.write, done)
        engines = _write_engines(options, weights, source.config, partial, suffix)
        tail = source.read(family.tail(source.config))
        entries = _write_prompts(result, partial / PROMPTS, prompts, tail)
        write_preprocessor(source.config.pixels, partial)
        manifest = Manifest(
            name=options.name or source.name,
            source=source.described(),
            license=options.license,
            family=family,
            config=source.config,
            levels=tuple(zip(family.scale.words, family.level_ids, strict=True)),
            prompts=entries,
            precision=options.precision,
            quantization=_describe(options.precision, result, len(pixels)),
            engines=engines,
            files=_hash_all(partial),
            fidelity=None,
            made_with={package: version(package) for package in ("qalign-fast", "torch", "onnx", "numpy")},
        )
        (partial / MANIFEST).write_text(manifest.to_json(), "utf-8")
    return out


def _check_place(source: ParameterSource, out: Path, options: ExportOptions) -> None:
    if out.exists():
        raise ArtifactError(f"{out}: exists already; choose another name or delete it")
    copies = 1 + len(GRAPHS.keys() & set(options.engines))  # graphs are made from torch's weights
    needed = int(weight_count(source.config) * PRECISIONS[options.precision].bytes * copies)
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


def _write_engines(
    options: ExportOptions, weights: Path, config: ModelConfig, partial: Path, suffix: str
) -> dict[str, dict[str, str]]:
    """Each engine -> its parts' paths in the artifact. torch's weights go if no engine reads them."""
    written: dict[str, dict[str, str]] = {}
    for engine in (engine for engine in GRAPHS if engine in options.engines):
        written[engine] = write_graphs(engine, weights, config, partial, suffix, options.external_from)
    if "torch" in options.engines:
        written["torch"] = {"weights": weights.relative_to(partial).as_posix()}
    else:
        shutil.rmtree(weights.parent)
    return written


def _write_prompts(
    result: RoundingResult, path: Path, prompts: Sequence[Prompt], tail: Mapping[str, torch.Tensor]
) -> tuple[PromptEntry, ...]:
    """The constants of every prompt and part, and the family's `tail`.

    Prompts with the same text before or after the picture share its tensor.
    """
    tensors: dict[str, torch.Tensor] = dict(tail)
    prefixes: dict[Before, str] = {}
    suffixes: dict[tuple[int, ...], str] = {}
    entries = {}
    for p in with_parts(prompts):
        prefix = prefixes.setdefault(p.before, f"{p.name}.prefix")
        suffix = suffixes.setdefault(p.suffix, f"{p.name}.suffix")
        tensors[prefix] = result.prefixes[p.before].contiguous()
        tensors[suffix] = result.suffixes[p.suffix].contiguous()
        entries[p.name] = PromptEntry(p, prefix, suffix)
    save_file(tensors, path)
    path.chmod(0o644)  # safetensors made it private
    return tuple(replace(entries[p.name], parts=tuple(entries[part.name] for part in p.parts)) for p in prompts)


def _describe(precision: str, result: RoundingResult, calibration: int) -> dict[str, Any] | None:
    """How the weights were rounded, for the manifest; None if they were not."""
    if precision == "fp32":
        return None
    described: dict[str, Any] = {"calibration_pictures": calibration, "higher": result.higher}
    if result.errors:
        worst = max(result.errors, key=result.errors.__getitem__)
        described["largest_relative_error"] = {worst: result.errors[worst]}
    return described


def _hash_all(directory: Path) -> dict[str, FileEntry]:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): hash_file(path) for path in files}
