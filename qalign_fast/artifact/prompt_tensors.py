"""An artifact in; its prompts' constants, and what its family computes on the host, out, checked against its sizes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file

from qalign_fast.artifact.manifest import PROMPTS, Artifact
from qalign_fast.errors import ArtifactError, one_line
from qalign_fast.families.family import Tail

Tensor: TypeAlias = npt.NDArray[np.float32]


def load_constants(artifact: Artifact) -> dict[str, tuple[Tensor, Tensor]]:
    """The prefix and suffix of each prompt and of its parts, float32, by the prompt's name.

    mPLUG-Owl2's are keys and values [L, 2, P, H, Dh] and embeddings [S, D]. Raises ArtifactError for a file that cannot
    be read, and for a tensor that is missing, of another shape or dtype, or not finite.
    """
    path, manifest = artifact.path(PROMPTS), artifact.manifest
    tensors = _read(path)
    found = {}
    for entry in manifest.prompt_entries:
        prefix, suffix = manifest.family.constants(manifest.config, entry.prompt)
        found[entry.prompt.name] = (
            _tensor(tensors, entry.prefix, prefix, path),
            _tensor(tensors, entry.suffix, suffix, path),
        )
    return found


def load_tail(artifact: Artifact) -> Tail:
    """The tensors that the family's `answer` takes, by name; none for most families. Raises as `load_constants`."""
    shapes = artifact.manifest.family.tail(artifact.manifest.config)
    if not shapes:
        return {}
    path = artifact.path(PROMPTS)
    tensors = _read(path)
    return {name: _tensor(tensors, name, shape, path) for name, shape in shapes.items()}


def _read(path: Path) -> dict[str, npt.NDArray]:
    try:
        return load_file(path)
    # safetensors raises the last four for a dtype that numpy does not have
    except (SafetensorError, OSError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path}: not readable as safetensors ({one_line(error)})") from error


def _tensor(tensors: Mapping[str, npt.NDArray], name: str, shape: tuple[int, ...], path: Path) -> Tensor:
    tensor = tensors.get(name)
    if tensor is None:
        raise ArtifactError(f"{path}: has no tensor {name!r}, which the manifest names")
    if tensor.shape != shape or tensor.dtype != np.float32:
        raise ArtifactError(
            f"{path}: {name} is {tensor.dtype} {tensor.shape}; the manifest's sizes ask for float32 {shape}"
        )
    if not np.isfinite(tensor).all():
        raise ArtifactError(f"{path}: {name} has values that are not finite")
    return tensor
