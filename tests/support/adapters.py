"""LoRA adapters for the golden checkpoints, in PEFT's form, with random numbers on any linears."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from qalign_fast.families.mplug_owl2.model.checkpoint import origins
from qalign_fast.families.mplug_owl2.sizes import ModelConfig

Parts = dict[str, tuple[Tensor, Tensor]]  # a module's name in a checkpoint -> A [r, K], B [N, r]

# an adapter_config.json as peft 0.8.2 writes it
WRITTEN = {
    "alpha_pattern": {},
    "auto_mapping": None,
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "layers_pattern": None,
    "layers_to_transform": None,
    "loftq_config": {},
    "lora_dropout": 0.05,
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "modules_to_save": None,
    "peft_type": "LORA",
    "rank_pattern": {},
    "revision": None,
    "task_type": "CAUSAL_LM",
    "use_rslora": False,
}


def linears(config: ModelConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Every linear that an adapter may be on: its module's name in a checkpoint -> our parameter's name, and [N, K]."""
    return {
        origin.name.removesuffix(".weight"): (ours, origin.shape)
        for ours, origin in origins(config).items()
        if ours.endswith(".weight") and len(origin.shape) == 2
    }


def random_parts(config: ModelConfig, modules: Iterable[str], rank: int = 2, seed: int = 0) -> Parts:
    """A and B of which B is not zero, so that scores move."""
    numbers = torch.Generator().manual_seed(seed)
    shapes = {name: shape for name, (_, shape) in linears(config).items()}
    return {
        name: (
            torch.randn(rank, shapes[name][1], generator=numbers) / shapes[name][1] ** 0.5,
            torch.randn(shapes[name][0], rank, generator=numbers) * 0.1,
        )
        for name in modules
    }


def named(parts: Parts, default: str = "") -> dict[str, Tensor]:
    """The tensors as PEFT names them in a file."""
    return {
        f"base_model.model.{module}.lora_{letter}{default}.weight": tensor.contiguous()
        for module, pair in parts.items()
        for letter, tensor in zip("AB", pair, strict=True)
    }


def write_adapter(
    folder: Path,
    tensors: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    *,
    whole: Mapping[str, Tensor] | None = None,
    pickled: bool = False,
) -> Path:
    """An adapter's folder. `settings` are those of adapter_config.json beside WRITTEN, and need target_modules."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(WRITTEN | {"r": 2, "lora_alpha": 4} | dict(settings)))
    if pickled:
        torch.save(dict(tensors), folder / "adapter_model.bin")
    else:
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    if whole is not None:
        torch.save(dict(whole), folder / "non_lora_trainables.bin")
    return folder
