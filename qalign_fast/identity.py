"""A reference to a model in, what tells it from others out: its name and a hash of the files that describe it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from qalign_fast.artifact.manifest import MANIFEST, hash_file, is_artifact, read_manifest
from qalign_fast.errors import ArtifactError
from qalign_fast.families.adapters import ADAPTER, find_base, is_adapter
from qalign_fast.families.anchors import anchor_files
from qalign_fast.families.registry import family_of_checkpoint
from qalign_fast.references import find_model, name_of

_DESCRIBING = ("config.json", "model.safetensors.index.json", "pytorch_model.bin.index.json")
_WEIGHTS = ("*.safetensors", "*.bin")


def identify_model(
    reference: str | Path | None, precision: str | None = None, base: str | Path | None = None
) -> dict[str, str]:
    """The name, sha256, precision and family of a model, without loading it. Scores of equal ones can be compared.

    A checkpoint's hash covers its description and its weights' names and sizes, not their content, which is gigabytes.
    An adapter's covers the content of its files, since adapters often have files of one size, and the hash of its base.
    `base` is as `find_base` takes it. Raises ArtifactError as `find_model` does, and for a folder without a model.
    """
    directory = find_model(reference)
    if is_artifact(directory):
        manifest = read_manifest(directory / MANIFEST)
        name, precision, family = manifest.name, manifest.precision, manifest.family
    elif is_adapter(directory) or (directory / "config.json").is_file():
        family = family_of_checkpoint(directory, find_base(directory, base))
        name, precision = directory.resolve().name, precision or "fp32"
    else:
        raise ArtifactError(f"{directory}: neither an artifact ({MANIFEST}) nor a checkpoint (config.json)")
    return {"name": name, "sha256": hash_model(directory, base), "precision": precision, "family": family.name}


def tasks_of(
    reference: str | Path | None, base: str | Path | None = None, medium: Literal["image", "video"] = "image"
) -> tuple[str, ...]:
    """The tasks that a model has for pictures, or for clips, without loading it.

    Raises ArtifactError as `find_model` does, and what `find_base` raises.
    """
    directory = find_model(reference)
    if is_artifact(directory):
        prompts = [entry.prompt for entry in read_manifest(directory / MANIFEST).prompts]
    else:
        prompts = list(family_of_checkpoint(directory, find_base(directory, base)).prompts)
    return tuple(dict.fromkeys(prompt.task for prompt in prompts if prompt.medium == medium))


def trained_name(reference: str | Path | None) -> str:
    """The name of the checkpoint that a model is, or that an artifact was made from; for `published`."""
    directory = find_model(reference)
    if is_artifact(directory):
        return str(read_manifest(directory / MANIFEST).source.get("name", ""))
    return name_of(directory)


def hash_model(directory: Path, base: str | Path | None = None) -> str:
    """SHA-256 of the files that describe a model, a checkpoint's anchors among them.

    Of a checkpoint's weights it has the names and sizes; of an adapter's files the content, and its base's hash.
    """
    if is_artifact(directory):  # its manifest has the hashes of all its other files in it
        return hashlib.sha256((directory / MANIFEST).read_bytes()).hexdigest()
    digest = hashlib.sha256()
    for name in _DESCRIBING:
        if (directory / name).is_file():
            digest.update((directory / name).read_bytes())
    on = find_base(directory, base)
    for file in sorted(path for pattern in _WEIGHTS for path in directory.glob(pattern)):
        content = file.stat().st_size if on is None else hash_file(file).sha256
        digest.update(f"{file.name} {content}\n".encode())
    for file in anchor_files(directory):  # small, and scores depend on them
        digest.update(f"{file.name} {hash_file(file).sha256}\n".encode())
    if on is not None:
        digest.update((directory / ADAPTER).read_bytes() + hash_model(on).encode())
    return digest.hexdigest()
