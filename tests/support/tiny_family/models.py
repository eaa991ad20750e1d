"""The tiny family's models: patches are embedded, averaged, scaled by a gain and by a prompt, and read by a head."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from qalign_fast.families.prompt import Prompt
from qalign_kernels.contract.ops import PLAIN, Ops
from qalign_kernels.contract.weight import Weight
from support.tiny_family.sizes import TinySizes, read_config

TOKENS = 16  # in the vocabulary
NAMES = {"embed.weight": "trunk.patches", "gain": "trunk.gain", "head.weight": "readout", "words": "vocabulary"}


class FoldedModel:
    def __init__(self, config: TinySizes, tensors: Mapping[str, Tensor], ops: Ops = PLAIN) -> None:
        self.config, self.tensors, self.ops = config, tensors, ops

    def encode(self, pixels: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] -> [B, V, D], V patches."""
        patch = self.config.patch
        grid = pixels.unflatten(2, (-1, patch)).unflatten(1, (-1, patch))  # [B, h, p, w, p, 3]
        rows = grid.transpose(2, 3).flatten(3).flatten(1, 2).float() / 255  # [B, V, p*p*3]
        return self.ops.linear(rows, self.weight("embed"))

    def decode(self, tokens: Tensor, prefix: Tensor, suffix: Tensor) -> Tensor:
        """[B, F*V, D] -> [B, 3]."""
        asked = torch.tanh(prefix.mean(0) + suffix.mean(0))
        mean = torch.tanh(tokens).mean(1) * self.tensors["gain"] * (1 + asked)
        return self.ops.linear(mean, self.weight("head"))

    def weight(self, name: str) -> Weight:
        return Weight(
            name,
            self.tensors[f"{name}.weight"],
            *(self.tensors.get(f"{name}.{p}") for p in ("scale", "groups", "bias")),
        )


class Model(FoldedModel):
    """The reference, which has the vocabulary as well."""

    def constants(self, prompt: Prompt) -> tuple[Tensor, Tensor]:
        words = self.tensors["words"]
        return words[list(prompt.prefix)], words[list(prompt.suffix)]

    def to(self, device: torch.device | str) -> Model:
        return self


def load_model(directory: Path, base: Path | None = None) -> Model:
    theirs = load_file(directory / "model.safetensors")
    return Model(read_config(directory), {ours: theirs[name] for ours, name in NAMES.items()})


def random_checkpoint(sizes: TinySizes) -> dict[str, Tensor]:
    """By upstream's names."""
    dice = torch.Generator().manual_seed(0)
    shapes = {
        "trunk.patches": (sizes.width, 3 * sizes.patch**2),
        "trunk.gain": (sizes.width,),
        "readout": (3, sizes.width),
        "vocabulary": (TOKENS, sizes.width),
    }
    return {name: torch.randn(shape, generator=dice) for name, shape in shapes.items()}
