"""The model in plain torch and float32: the reference for every fast form, and the model that training trains."""

from __future__ import annotations

from torch import Tensor, nn

from qalign_fast.families.mplug_owl2.model.abstractor import Abstractor
from qalign_fast.families.mplug_owl2.model.decoder import Decoder
from qalign_fast.families.mplug_owl2.model.vision import VisionEncoder
from qalign_fast.families.mplug_owl2.sizes import ModelConfig
from qalign_fast.families.prompt import Prompt


class Model(nn.Module):
    """Vision, abstractor and decoder. Parameters are not initialized until they are loaded or trained."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = VisionEncoder(config.vision, config.pixels)
        self.abstractor = Abstractor(config.abstractor, config.vision.tokens, config.decoder.width)
        self.decoder = Decoder(config.decoder)

    def encode(self, pixels: Tensor) -> Tensor:
        """uint8 [B, S, S, 3] -> visual tokens [B, Q+1, D]."""
        tokens: Tensor = self.abstractor(self.vision(pixels))
        return tokens

    def constants(self, prompt: Prompt) -> tuple[Tensor, Tensor]:
        """A prompt's prefix keys and values [L, 2, P, H, Dh] and suffix embeddings [S, D]."""
        return self.decoder.prefix(prompt.prefix), self.decoder.suffix(prompt.suffix)

    def decode(self, tokens: Tensor, prefix: Tensor, suffix: Tensor) -> Tensor:
        """Visual tokens [B, F*(Q+1), D] of F frames each, and a prompt's constants -> float32 logits [B, 5]."""
        logits: Tensor = self.decoder(tokens, prefix, suffix)
        return logits
