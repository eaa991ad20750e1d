"""Every size of a model of the family, frozen."""

from __future__ import annotations

from dataclasses import dataclass, field

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class PixelRule:
    """How a picture becomes the model's input: padded to a square, resized to `side`, normalized with mean and std."""

    side: int
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    @property
    def pad(self) -> tuple[int, int, int]:
        """The padding's colour, as upstream computes it: the mean, rounded down."""
        r, g, b = (int(255 * m) for m in self.mean)
        return r, g, b


@dataclass(frozen=True)
class VisionConfig:
    width: int
    layers: int
    heads: int
    mlp: int
    side: int
    patch: int
    eps: float

    @property
    def tokens(self) -> int:
        return (self.side // self.patch) ** 2 + 1  # the patches and the class token


@dataclass(frozen=True)
class AbstractorConfig:
    queries: int
    width: int
    layers: int
    heads: int
    mlp: int
    eps: float

    @property
    def tokens(self) -> int:
        return self.queries + 1  # the queries and the learned end token


@dataclass(frozen=True)
class DecoderConfig:
    width: int
    layers: int
    heads: int
    mlp: int
    vocab: int
    eps: float
    rope_theta: float
    positions: int


@dataclass(frozen=True)
class ModelConfig:
    """Every size of a model of the family."""

    vision: VisionConfig
    abstractor: AbstractorConfig
    decoder: DecoderConfig
    pixels: PixelRule = field(default_factory=lambda: PixelRule(448))

    def max_frames(self, prompt_tokens: int) -> int:
        """How many frames the decoder's positions hold beside a prompt of that many tokens."""
        return (self.decoder.positions - prompt_tokens) // self.abstractor.tokens
