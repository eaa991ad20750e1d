"""A model's sizes and a GPU's facts in, the kernels of every batch that it launches there in Triton's cache out.

At the first load on a machine all cores compile, in processes of their own, what would else be compiled one kernel
after another when a batch of each size first comes. Which kernels those are the model's own steps say, on tensors of
the true shapes that hold no data.
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
from qalign_fast import families
from qalign_fast.engines.common import BUCKETS
from qalign_fast.engines.cuda_model import between_of, build_model
from qalign_fast.families.family import Constants
from qalign_fast.families.registry import find_family

if TYPE_CHECKING:
    from qalign_kernels.cuda.launch import Device

_FEWEST = 4  # cores with which a pool takes less time than it costs to start


class Launches(NamedTuple):
    """What says which kernels a model launches: folded tensors as `build_engine` takes them, of which shapes count."""

    family: str
    config: Any
    precision: str
    tensors: Mapping[str, Tensor]
    constants: Mapping[str, Constants]  # by prompt

    def on_meta(self) -> Launches:
        tensors = {name: _on_meta(x) for name, x in self.tensors.items()}
        constants = {name: tuple(map(_on_meta, found)) for name, found in self.constants.items()}
        return self._replace(tensors=tensors, constants=constants)


def compile_ahead(models: Sequence[Launches], device: torch.device, processes: int | None = None) -> bool:
    """Whether all is compiled now. Nothing is compiled twice on a machine.

    Nothing waits for it either where there are few cores, or where the pool fails: a kernel is then compiled when it is
    first launched.
    """
    from qalign_kernels.cores import cores
    from qalign_kernels.cuda.ahead import Pool
    from qalign_kernels.cuda.runtime import cache_folder, device_of, interprets

    facts = device_of(device)
    known = {
        cache_folder() / f"qalign-fast-{_identity(model, facts)}": model for model in (m.on_meta() for m in models)
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
            warnings.warn(f"kernels not compiled ahead ({why}): each is when it is first launched", stacklevel=2)
    for mark in missing if whole else ():
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    return whole


def walk(device: Device, *models: Launches, batches: Sequence[int] = BUCKETS) -> Iterator[str]:
    """Every step that their engines capture, on the meta device."""
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
        model.decode(tokens, prefix, suffix)  # first what takes the compiler longest
    model.encode(torch.empty(batch, side, side, 3, dtype=torch.uint8, device=meta))


def _on_meta(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device="meta")


def _identity(*facts: object) -> str:
    """A hash of what compiled kernels depend on, as far as Triton's own does not say."""
    found = hashlib.sha256(repr((torch.__version__, facts)).encode())
    for package in (qalign_kernels, families):
        folder = Path(str(package.__file__)).parent
        for path in sorted([*folder.rglob("*.py"), *folder.rglob("*.json")]):
            found.update(path.read_bytes())
    for name in sorted(name for name in os.environ if name.startswith("TRITON_")):
        found.update(f"{name}={os.environ[name]}".encode())
    return found.hexdigest()[:16]
