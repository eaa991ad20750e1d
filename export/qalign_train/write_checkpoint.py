"""A model in, a checkpoint directory as upstream's out: the two config files and model.safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from qalign_export.preprocessor import write_preprocessor
from qalign_fast.families.mplug_owl2.model.checkpoint import origins
from qalign_fast.families.mplug_owl2.model.reference import Model
from qalign_fast.families.mplug_owl2.prompts import LEVEL_IDS


def write_checkpoint(model: Model, config: Mapping[str, Any], directory: Path) -> None:
    """Writes what `checkpoint.load_model` reads. Weights are rounded to float16; `config` is config.json's content."""
    directory.mkdir(parents=True, exist_ok=True)
    state = model.state_dict()
    tensors = {}
    for ours, origin in origins(model.config).items():
        tensor = state[ours]
        if ours == "decoder.head":
            head = torch.zeros(origin.shape)
            head[list(LEVEL_IDS)] = tensor
            tensor = head
        tensors[origin.name] = tensor.reshape(origin.shape).to(torch.float16).contiguous()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "model.safetensors").chmod(0o644)  # safetensors made it private
    (directory / "config.json").write_text(json.dumps(dict(config), indent=2) + "\n")
    write_preprocessor(model.config.pixels, directory)
