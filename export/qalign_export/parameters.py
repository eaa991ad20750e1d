"""A model reference in, its parameters by name out: a checkpoint directory, a Hub id, or `random:` and a geometry."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qalign_export import random_numbers
from qalign_fast.artifact.manifest import MANIFEST, hash_file, read_manifest
from qalign_fast.errors import CheckpointError, OptionError
from qalign_fast.families.adapters import ADAPTER, base_remark, find_base
from qalign_fast.families.anchors import anchor_files
from qalign_fast.families.family import Family
from qalign_fast.families.lora import TRAINED_WHOLE, adapter_file
from qalign_fast.families.mplug_owl2.family import FAMILY
from qalign_fast.families.mplug_owl2.model.checkpoint import Checkpoint, TensorOrigin, origins, parameter_shapes
from qalign_fast.families.mplug_owl2.sizes import AbstractorConfig, DecoderConfig, ModelConfig, VisionConfig
from qalign_fast.families.published import inverted_remark, tell
from qalign_fast.families.registry import family_of_checkpoint
from qalign_fast.families.shards import weight_files
from qalign_fast.references import EMBEDDED, find_model, name_of

RANDOM = "random:"
ONE_ALIGN = ModelConfig(
    VisionConfig(width=1024, layers=24, heads=16, mlp=4096, side=448, patch=14, eps=1e-6),
    AbstractorConfig(queries=64, width=1024, layers=6, heads=16, mlp=2816, eps=1e-6),
    DecoderConfig(
        width=4096, layers=32, heads=32, mlp=11008, vocab=32000, eps=1e-6, rope_theta=10000.0, positions=2048
    ),
)


class ParameterSource(Protocol):
    """A model's parameters, by the reference model's names, read when they are asked for."""

    name: str
    family: Family
    config: ModelConfig
    anchors: npt.NDArray[np.uint8]  # pixels [A, S, S, 3] of the pictures that its prompts show; A is 0 for most

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Float32 copies of these parameters."""
        ...

    def sha256(self) -> str:
        """Identifies the parameters in the manifest, 64 hexadecimal digits."""
        ...

    def described(self) -> dict[str, Any]:
        """The manifest's `source`: name and sha256, and of an adapter the same of its base."""
        ...


def open_parameters(reference: str | Path, base: str | Path | None = None) -> ParameterSource:
    """The parameters of a checkpoint directory, of a Hub id, or random ones of a known geometry.

    Of a LoRA adapter they are those that merging it into its base makes; `base` is as `find_base` takes it.
    A Hub id is downloaded; a download that was interrupted goes on. Geometries are `random:one-align`, `random:mini`,
    or `random:` and a directory with a config.json. Raises OptionError for a base of no adapter, CheckpointError,
    ArtifactError or MissingExtraError.
    """
    if str(reference).startswith(RANDOM):
        if base is not None:
            raise OptionError(f"base {base}: {reference} has none")
        return RandomParameters(str(reference))
    directory = find_model(reference)
    return CheckpointParameters(directory, base, _family_of(directory, base))


def weight_count(config: ModelConfig) -> int:
    """The number of parameters that an artifact holds: all but the vocabulary's embeddings."""
    return sum(math.prod(shape) for name, shape in parameter_shapes(config).items() if name != "decoder.embed")


class CheckpointParameters(Checkpoint):
    """The parameters of a checkpoint directory, named after the directory. An adapter's are merged with its base's."""

    def __init__(self, directory: Path, base: str | Path | None = None, family: Family = FAMILY) -> None:
        super().__init__(directory, base, family)
        self.family, self.name = family, name_of(directory)
        if self.base is not None:
            tell(inverted_remark(self.name), base_remark(directory, base))

    def sha256(self) -> str:
        """One SHA-256 over the config, the weight files and the anchors, in name order; of an adapter, over its own."""
        if self.base is None:
            return _hash([self.directory / "config.json", *weight_files(self.directory), *anchor_files(self.directory)])
        own = ("config.json", ADAPTER, adapter_file(self.directory).name, TRAINED_WHOLE)
        return _hash([self.directory / name for name in own if (self.directory / name).is_file()])

    def described(self) -> dict[str, Any]:
        about: dict[str, Any] = {"name": self.name, "sha256": self.sha256()}
        if self.base is not None:
            files = [self.base / "config.json", *weight_files(self.base)]
            about["base"] = {"name": name_of(self.base), "sha256": _hash(files)}
        return about


def _hash(files: list[Path]) -> str:
    whole = hashlib.sha256()
    for file in sorted(files):
        whole.update(f"{file.name} {hash_file(file).sha256}\n".encode())
    return whole.hexdigest()


class RandomParameters:
    """Random parameters of a known geometry, each made when it is read: true sizes without a download.

    `random_numbers` makes each tensor by its name in a checkpoint. A peer of the bench makes the same ones.
    """

    def __init__(self, reference: str) -> None:
        self.name = reference
        name = reference.removeprefix(RANDOM)
        self.family, self.config = _geometry(name)
        self.anchors = self.family.anchors(Path(name), self.config)
        self._origins = origins(self.config, self.family.level_ids)

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        return {name: self._make(self._origins[name]) for name in names}

    def sha256(self) -> str:
        """The hash of the name and of a sample, because other numbers are another model."""
        sample = random_numbers.parameter("model.norm.weight", (64,)).tobytes()
        return hashlib.sha256(self.name.encode() + sample).hexdigest()

    def described(self) -> dict[str, Any]:
        return {"name": self.name, "sha256": self.sha256()}

    def _make(self, origin: TensorOrigin) -> Tensor:
        return origin.take(torch.from_numpy(random_numbers.parameter(origin.name, origin.shape)))


def _family_of(directory: Path, base: str | Path | None = None) -> Family:
    """Raises CheckpointError for a family that is not of mPLUG-Owl2's trunk, and what `find_base` raises."""
    family = family_of_checkpoint(directory, find_base(directory, base))
    if family.schema is not FAMILY.schema:
        raise CheckpointError(f"{directory}: a checkpoint of {family.name}; export is written for mPLUG-Owl2's trunk")
    return family


def _geometry(name: str) -> tuple[Family, ModelConfig]:
    if name == "one-align":
        return FAMILY, ONE_ALIGN
    if name == "mini":
        return FAMILY, read_manifest(EMBEDDED / MANIFEST).config
    if Path(name).is_dir():
        family = _family_of(Path(name))
        return family, cast(ModelConfig, family.read_config(Path(name), None))
    raise CheckpointError(
        f"{RANDOM}{name}: no such geometry; known: one-align, mini, or a directory that has a config.json"
    )
