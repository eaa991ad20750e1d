"""A model's sizes and a GPU's facts in, the kernels of every batch that it launches there in Triton's cache out.

At the first load on a machine all cores compile, in processes of their own, what would else be compiled one kernel
after another when a batch of each size first comes. Which kernels those are the model's own steps say, on tensors of
the true shapes that hold no data.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

import qalign_kernels
from qalign_fast import model as stations
from qalign_fast.buckets import BUCKETS
from qalign_fast.config import ModelConfig

if TYPE_CHECKING:
    from qalign_kernels.triton_runtime import Device  # Triton is for Linux

Constants: TypeAlias = tuple[Tensor, Tensor]  # a prompt's prefix [L, 2, P, H, Dh] and suffix [S, D]
_FEWEST = 4  # cores with which a pool takes less time than it costs to start


def compile_ahead(
    config: ModelConfig,
    precision: str,
    tensors: Mapping[str, Tensor],
    constants: Mapping[str, Constants],
    device: torch.device,
    processes: int | None = None,
) -> bool:
    """Of packed tensors as `build_engine` takes them; whether all is compiled now. Nothing is done twice.

    Nobody needs to wait for it on a machine of few cores: there, and where the pool fails, a kernel is compiled when it
    is first launched.
    """
    from qalign_kernels.ahead import Pool, cores
    from qalign_kernels.triton_runtime import Device, cache_folder

    facts = Device.of(device)
    shapes = {name: _shape_of(x) for name, x in tensors.items()}
    of_prompts = {name: (_shape_of(prefix), _shape_of(suffix)) for name, (prefix, suffix) in constants.items()}
    mark = cache_folder() / f"qalign-fast-{_identity(config, precision, shapes, of_prompts, facts)}"
    if mark.exists():
        return True
    if processes is None and cores() < _FEWEST:
        return False
    with Pool("qalign_fast.compile_ahead:walk", facts, (config, precision, shapes, of_prompts), processes) as pool:
        whole = pool.wait()
    if whole:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    return whole


def walk(
    device: Device,
    config: ModelConfig,
    precision: str,
    tensors: Mapping[str, Tensor],
    constants: Mapping[str, Constants],
    batches: Sequence[int] = BUCKETS,
) -> Iterator[str]:
    """Every step that the engine captures, of its own model; all tensors are on the meta device."""
    from qalign_fast.cuda_engine import between_of, build_model

    meta, between = torch.device("meta"), between_of(precision)
    model, there = build_model(config, precision, dict(tensors), constants, meta, device)
    side = config.pixels.side
    # prompts of the same lengths launch the same kernels
    prompts = {tuple(x.shape for x in pair): pair for pair in there.values()}
    with torch.inference_mode():
        for batch in batches:
            tokens = torch.empty(batch, config.abstractor.tokens, config.decoder.width, dtype=between, device=meta)
            for prefix, suffix in prompts.values():  # first what takes longest
                model.decode(tokens, prefix, suffix)
            model.encode(torch.empty(batch, side, side, 3, dtype=torch.uint8, device=meta))
            yield f"batch {batch}"


def _shape_of(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device="meta")


def _identity(*facts: object) -> str:
    """A hash of what compiled kernels depend on, as far as Triton's own does not say."""
    found = hashlib.sha256(repr((torch.__version__, facts)).encode())
    for package in (qalign_kernels, stations):
        folder = Path(str(package.__file__)).parent
        for path in sorted([*folder.glob("*.py"), *folder.glob("*.json")]):
            found.update(path.read_bytes())
    for name in sorted(name for name in os.environ if name.startswith("TRITON_")):
        found.update(f"{name}={os.environ[name]}".encode())
    return found.hexdigest()[:16]
