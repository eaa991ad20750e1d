"""Checkpoints like the golden ones, in every format, and every way in which one can be wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from support.goldens import Golden

Tensors = dict[str, torch.Tensor]


Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


def write(folder: Path, golden: Golden, tensors: Tensors, kind: str = "safetensors") -> Path:
    """Writes a checkpoint like the golden one with these tensors, in one of four formats."""
    folder.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(golden.checkpoint / name, folder)
    suffix, sharded = kind.removeprefix("sharded "), kind.startswith("sharded")
    stem = {"safetensors": "model", "bin": "pytorch_model"}[suffix]
    names = sorted(tensors)
    shards = [names[: len(names) // 2], names[len(names) // 2 :]] if sharded else [names]
    files = [f"{stem}-{i + 1:05}-of-00002.{suffix}" if sharded else f"{stem}.{suffix}" for i in range(len(shards))]
    for file, shard in zip(files, shards):
        part = {name: tensors[name] for name in shard}
        save_file(part, folder / file) if suffix == "safetensors" else torch.save(part, folder / file)
    if sharded:
        index = {"weight_map": {name: file for file, shard in zip(files, shards) for name in shard}}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    return folder


def without(tensors: Tensors, name: str) -> Tensors:
    return {key: value for key, value in tensors.items() if key != name}


WRONG: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "a tensor is missing": (lambda t: without(t, Q_PROJ), f"1 tensor missing: {Q_PROJ}"),
    "a tensor nobody knows": (lambda t: t | {"model.extra": torch.ones(2)}, "1 unexpected tensor: model.extra"),
    "a tensor of another shape": (
        lambda t: t | {Q_PROJ: torch.ones(32, 31)},
        f"'{Q_PROJ}' has shape [32, 31]; expected [32, 32]",
    ),
    "integers": (lambda t: t | {Q_PROJ: torch.ones(32, 32, dtype=torch.int8)}, f"'{Q_PROJ}' is I8"),
    "values that are not finite": (
        lambda t: t | {Q_PROJ: torch.full((32, 32), float("nan"))},
        f"'{Q_PROJ}' holds values that are not finite",
    ),
}
