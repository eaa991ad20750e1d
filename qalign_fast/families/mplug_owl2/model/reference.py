"""The model in plain torch and float32: the reference for every fast form, and the model that training trains."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qalign_fast.families.mplug_owl2.model.abstractor import Abstractor
from qalign_fast.families.mplug_owl2.model.decoder import Decoder
from qalign_fast.families.mplug_owl2.model.vision import VisionEncoder
from qalign_fast.families.mplug_owl2.sizes import ModelConfig
from qalign_fast.families.prompt import Prompt


class Model(nn.Module):
    """Vision, abstractor and decoder. Parameters are not initialized until they are loaded or trained."""

    def __init__(self, config: ModelConfig, anchors: npt.NDArray[np.uint8] | None = None) -> None:
        """`anchors`: pixels [A, S, S, 3] of the pictures that prompts show; None without such prompts."""
        super().__init__()
        self.config, self._anchors = config, anchors
        self.vision = VisionEncoder(config.vision, config.pixels)
        self.abstractor = Abstractor(config.abstractor, config.vision.tokens, config.decoder.width)
        self.decoder = Decoder(config.decoder)
        widths = (config.decoder.width, *config.mlp, 1)
        self.mlp = nn.ModuleList(Affine(*pair) for pair in pairwise(widths) if config.mlp)

    @property
    def tail(self) -> dict[str, npt.NDArray[np.float32]]:
        """The MLP's layers after the first, on the host."""
        return {f"mlp.{name}": x.numpy(force=True) for name, x in self.mlp.state_dict().items() if name[:2] != "0."}

    def encode(self, pixels: Tensor) -> Tensor:
        """uint8 [B, S, S, 3] -> visual tokens [B, Q+1, D]."""
        tokens: Tensor = self.abstractor(self.vision(pixels))
        return tokens

    def constants(self, prompt: Prompt) -> tuple[Tensor, Tensor]:
        """A prompt's prefix keys and values [L, 2, P, H, Dh] and suffix embeddings [S, D]."""
        prefix, suffix = self.decoder.prefix(prompt.prefix), self.decoder.suffix(prompt.suffix)
        if prompt.anchor:
            assert self._anchors is not None
            number, after = prompt.anchor.number, self.decoder.suffix(prompt.anchor.after)
            shown = self.encode(torch.from_numpy(self._anchors[number : number + 1]).to(suffix.device))
            prefix = self.decoder.extend(prefix, shown, after)
        return prefix, suffix

    def decode(self, tokens: Tensor, prefix: Tensor, suffix: Tensor) -> Tensor:
        """Visual tokens [B, F*(Q+1), D] of F frames each, and a prompt's constants -> float32 [B, N].

        N is `config.outputs`: the levels' five logits and, of a model with an MLP, its first layer before ReLU.
        """
        last = self.decoder.last_rows(tokens, prefix, suffix)[-1]
        logits: Tensor = self.decoder.logits(last)
        first = [layer(self.decoder.normed(last)) for layer in self.mlp[:1]]
        return torch.cat((logits, *first), dim=1)


class Affine(nn.Module):
    """x · weight + bias. It is no nn.Linear, so that bitsandbytes leaves it in float32."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(outputs, inputs)), nn.Parameter(torch.empty(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[B, K] -> float32 [B, N]."""
        return F.linear(x, self.weight, self.bias).float()
