"""CUDA engines on any device, and the golden pictures that they score."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qalign_fast.artifact.manifest import open_artifact
from qalign_fast.artifact.prompt_tensors import load_tail
from qalign_fast.engines.cuda_graphs import Direct, Runner, Step
from qalign_fast.engines.torch_cuda import CudaEngine
from qalign_fast.engines.torch_weights import read_folded
from qalign_fast.families.mplug_owl2.model.folded_cuda import CudaModel
from qalign_fast.families.mplug_owl2.prompts import prompt
from qalign_kernels.contract.ops import PLAIN, Ops

QUALITY = prompt("quality")


class Watched(Direct):
    """Runs steps directly, and keeps their keys and inputs."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.runs: list[tuple[Hashable, Tensor]] = []

    def run(self, key: Hashable, step: Step, x: Tensor) -> Tensor:
        self.runs.append((key, x))
        return super().run(key, step, x)


def engine_of(path: Path, runner: Runner, ops: Ops = PLAIN, exact: Ops = PLAIN, device: str = "cpu") -> CudaEngine:
    """The engine of an artifact's folded tensors, as they are in the file. `exact`: operations with float32 results."""
    artifact = open_artifact(path)
    tensors, constants = read_folded(artifact)
    tensors = {name: t.to(device) for name, t in tensors.items()}
    constants = {name: (prefix.to(device), suffix.to(device)) for name, (prefix, suffix) in constants.items()}
    manifest = artifact.manifest
    prompts = tuple(entry.prompt for entry in manifest.prompts)
    model = CudaModel(manifest.config, tensors, ops, exact)
    tail = load_tail(artifact)
    return CudaEngine(manifest.family, model, manifest.precision, constants, prompts, device, runner, tail)


def some(expected: dict[str, np.ndarray], count: int, first: int = 0) -> np.ndarray:
    """The numbers of `count` golden pictures, in order, from `first` on. After the last comes the first again."""
    return np.arange(first, first + count) % len(expected["resized_uint8"])
