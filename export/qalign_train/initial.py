"""Sizes in, a mini model with its first weights out: filters of every frequency, and a layer that reads a spectrum.

Blur, noise and compression change a picture's spectrum. If the first weights show the spectrum, a model this small
learns in minutes what it does not find in hours from random weights.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from qalign_fast.families.mplug_owl2.model.reference import Model
from qalign_fast.families.mplug_owl2.model.vision import fold_normalization
from qalign_fast.families.mplug_owl2.prompts import prompt
from qalign_fast.families.mplug_owl2.sizes import ModelConfig
from qalign_kernels.contract.patches import split_patches

REFERENCES = 8  # channels that see nothing


def initialize(config: ModelConfig, generator: torch.Generator) -> Model:
    """A model with small normal weights, whose patch filters are local waves of every frequency and see fine detail."""
    model = Model(config)
    residual = 1 / math.sqrt(2 * (config.vision.layers + config.decoder.layers))
    for name, p in model.named_parameters():
        with torch.no_grad():
            if "norm" in name:
                p.fill_(0.0 if name.endswith("bias") else 1.0)
            elif name.endswith("bias"):
                p.zero_()
            else:
                fan_in = p.shape[-1] if p.ndim > 1 else 1
                scale = 0.02 if p.ndim == 1 or "positions" in name or "embed" in name else fan_in**-0.5
                if name.endswith(("out.weight", "fc2.weight", "o.weight", "down.weight")):
                    scale *= residual
                p.normal_(0, scale, generator=generator)
    with torch.no_grad():
        model.vision.patch.copy_(wave_filters(config.vision.width, config.vision.patch, generator))
        # a few channels see nothing and are constant: through them the first norm keeps the strength of the others
        model.vision.patch[:REFERENCES] = 0
        signs = torch.tensor([1.0, -1.0]).repeat(REFERENCES // 2)
        model.vision.positions[:, :REFERENCES] = signs * 0.4 * math.sqrt(config.vision.width / REFERENCES)
        model.abstractor.queries.normal_(0, 1, generator=generator)
        model.decoder.embed.normal_(0, 1, generator=generator)
        for layer in model.abstractor.layers:
            layer.query_positions.normal_(0, 0.5, generator=generator)
            layer.key_positions.normal_(0, 0.5, generator=generator)
    compress_responses(model)
    keep_used_rows(model)
    return model


@torch.no_grad()
def compress_responses(model: Model) -> None:
    """The first MLP becomes min(|x|, t) of each filter's response x: two ramps minus two ramps that start at t.

    Its mean over a picture alone nearly tells blur, noise and compression apart; random weights would first have to
    find that.
    """
    first, width = model.vision.layers[0], model.config.vision.width
    eye, slope, t = torch.eye(width), 6.0, 0.3
    assert first.fc1.weight.shape == (4 * width, width)
    first.fc1.weight.copy_(slope * torch.cat((eye, -eye, eye, -eye)))
    first.fc1.bias[2 * width :] = -slope * t
    first.fc2.weight.copy_(0.5 * torch.cat((eye, eye, -eye, -eye), dim=1))


def keep_used_rows(model: Model) -> None:
    """Zeroes the embeddings of all tokens that the prompts do not use, so that the checkpoint compresses well."""
    used = {i for medium in ("image", "video") for p in [prompt("quality", medium)] for i in p.prefix + p.suffix}
    unused = torch.ones(len(model.decoder.embed), dtype=torch.bool)
    unused[list(used)] = False
    with torch.no_grad():
        model.decoder.embed[unused] = 0


def wave_filters(count: int, patch: int, generator: torch.Generator) -> Tensor:
    """Gabor filters [count, 3, patch, patch] with random places, directions, phases and frequencies up to Nyquist's."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, generator=generator)

    y, x = torch.meshgrid(torch.arange(patch).float(), torch.arange(patch).float(), indexing="ij")
    frequency = torch.exp(uniform(math.log(0.03), math.log(0.5)))
    direction, phase = uniform(0, math.pi), uniform(0, 2 * math.pi)
    size = torch.exp(uniform(0, math.log(10)))  # small ones see the edges of JPEG's blocks
    along = (x - patch / 2) * torch.cos(direction) + (y - patch / 2) * torch.sin(direction)
    distance = (x - uniform(0, patch)) ** 2 + (y - uniform(0, patch)) ** 2
    waves = torch.cos(2 * math.pi * frequency * along + phase) * torch.exp(-distance / (2 * size**2))
    waves = waves - waves.mean(dim=(1, 2), keepdim=True)
    colour = torch.ones(count, 3) + 0.5 * torch.randn(count, 3, generator=generator)
    filters = waves.unsqueeze(1) * colour[:, :, None, None]
    return filters / filters.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


@torch.no_grad()
def whiten_filters(model: Model, pixels: np.ndarray) -> None:
    """Scales all patch filters to equally strong responses to pixels uint8 [B, S, S, 3].

    The spectrum of pictures falls as 1/f: without this, coarse structure would drown fine detail in the first norm.
    """
    weight, bias = fold_normalization(model.vision.patch, model.config.pixels)
    patches = split_patches(torch.from_numpy(pixels), model.config.vision.patch).to(weight)
    spread = F.linear(patches, weight, bias).flatten(0, 1).std(0)
    model.vision.patch.div_(spread.clamp(min=1e-6).view(-1, 1, 1, 1))
