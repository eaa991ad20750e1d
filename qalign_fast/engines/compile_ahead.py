"""Compiles a model's kernels for a GPU into Triton's cache, for every size of batch, before they are needed.

This runs at the first load on a machine, on all cores, in processes of their own. Otherwise kernels would be compiled
one after another, when the first batch of each size comes. The model's own steps tell which kernels there are: they run
on tensors of the true shapes that hold no data.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

import qalign_kernels
from qalign_fast import engines, families
from qalign_fast.engines.common import BUCKETS
from qalign_fast.engines.cuda_model import between_of, build_model
from qalign_fast.families.family import Constants
from qalign_fast.families.registry import find_family

if TYPE_CHECKING:
    from qalign_kernels.cuda.launch import Device

_FEWEST = 4  # with fewer cores a pool of processes saves less time than it takes to start


class Launches(NamedTuple):
    """All that decides which kernels a model launches. Of the tensors only shapes and dtypes count."""

    family: str
    config: Any
    precision: str
    tensors: Mapping[str, Tensor]  # folded, as `build_engine` takes them
    constants: Mapping[str, Constants]  # by the prompt's name

    def on_meta(self) -> Launches:
        """The same with tensors that hold no data."""
        tensors = {name: _on_meta(x) for name, x in self.tensors.items()}
        constants = {name: tuple(map(_on_meta, found)) for name, found in self.constants.items()}
        return self._replace(tensors=tensors, constants=constants)


def compile_ahead(models: Sequence[Launches], device: torch.device, processes: int | None = None) -> bool:
    """Compiles the models' kernels; returns whether all are compiled now. Nothing is compiled twice on a machine.

    With few cores nothing is compiled ahead, and if the pool of processes fails there is a warning. A kernel is then
    compiled when it is first launched.
    """
    from qalign_kernels.cores import cores
    from qalign_kernels.cuda.ahead import Pool
    from qalign_kernels.cuda.runtime import device_of, interprets, triton_cache

    facts = device_of(device)
    known = {
        triton_cache() / f"qalign-fast-{_identity(model, facts)}": model for model in (m.on_meta() for m in models)
    }
    missing = {mark: model for mark, model in known.items() if not mark.exists()}
    if not missing:
        return True
    if interprets() or (processes is None and cores() < _FEWEST):
        return False
    with Pool("qalign_fast.engines.compile_ahead:walk", facts, tuple(missing.values()), processes) as pool:
        whole = pool.wait()
        if not whole:
            why = pool.problem() or "they took too long"
            warnings.warn(f"kernels not compiled ahead ({why}); each is compiled at its first launch", stacklevel=2)
    for mark in missing if whole else ():
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    return whole


def walk(device: Device, *models: Launches, batches: Sequence[int] = BUCKETS) -> Iterator[str]:
    """Runs every step that the models' engines capture, on the meta device. Yields a name after each batch."""
    for model in models:
        for batch in batches:
            _launch(device, model, batch)
            yield f"{model.precision}, batch {batch}"


@torch.inference_mode()
def _launch(device: Device, launches: Launches, batch: int) -> None:
    family, config, precision, tensors, constants = launches
    meta, between, side = torch.device("meta"), between_of(precision), config.pixels.side
    model, there = build_model(find_family(family), config, precision, dict(tensors), constants, meta, device)
    tokens = torch.empty(batch, config.picture_tokens, config.decoder.width, dtype=between, device=meta)
    # prompts of the same lengths launch the same kernels
    for prefix, suffix in {tuple(x.shape for x in pair): pair for pair in there.values()}.values():
        model.decode(tokens, prefix, suffix)  # first the step that compiles longest
    model.encode(torch.empty(batch, side, side, 3, dtype=torch.uint8, device=meta))


def _on_meta(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device="meta")


def _identity(*facts: object) -> str:
    """A hash of all that compiled kernels depend on and that Triton's own hash does not cover."""
    found = hashlib.sha256(repr((torch.__version__, facts)).encode())
    for package in (qalign_kernels, engines, families):
        folder = Path(str(package.__file__)).parent
        for path in sorted([*folder.rglob("*.py"), *folder.rglob("*.json")]):
            found.update(path.read_bytes())
    for name in sorted(name for name in os.environ if name.startswith("TRITON_")):
        found.update(f"{name}={os.environ[name]}".encode())
    return found.hexdigest()[:16]
