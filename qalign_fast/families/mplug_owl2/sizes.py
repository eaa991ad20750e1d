"""Every size of a model of the family, frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from qalign_fast.json_values import numbers, object_of
from qalign_fast.pixels.rule import SquareRule

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def pixel_rule(side: int, mean: tuple[float, ...] = CLIP_MEAN, std: tuple[float, ...] = CLIP_STD) -> SquareRule:
    """Upstream pads with CLIP's mean colour and normalizes as CLIP does, unless a checkpoint says otherwise."""
    return SquareRule(side, mean, std)


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
    pixels: SquareRule = field(default_factory=lambda: pixel_rule(448))

    @property
    def picture_tokens(self) -> int:
        return self.abstractor.tokens

    def vision_rows(self, height: int, width: int) -> int:
        """Every picture is as large as every other."""
        return self.vision.tokens

    def max_frames(self, prompt_tokens: int) -> int:
        """How many frames the decoder's positions hold beside a prompt of that many tokens."""
        return (self.decoder.positions - prompt_tokens) // self.abstractor.tokens


def sizes_to_json(config: ModelConfig) -> dict[str, Any]:
    """The manifest's "sizes" and "pixels"."""
    parts = {part: asdict(getattr(config, part)) for part in ("vision", "abstractor", "decoder")}
    return {"sizes": parts, "pixels": asdict(config.pixels) | {"pad": config.pixels.pad}}


def sizes_from_json(manifest: Mapping[str, Any]) -> ModelConfig:
    """Raises KeyError, TypeError or ValueError for a size that is missing, malformed or out of range."""
    sizes, pixels = manifest["sizes"], manifest["pixels"]
    return ModelConfig(
        VisionConfig(**_positive(sizes["vision"])),
        AbstractorConfig(**_positive(sizes["abstractor"])),
        DecoderConfig(**_positive(sizes["decoder"])),
        _pixel_rule(pixels, sizes["vision"]["side"]),
    )


_REAL = ("eps", "rope_theta")  # the sizes that are not whole numbers


def _positive(values: Any) -> dict[str, Any]:
    """A station's sizes, each positive."""
    for name, value in object_of(values).items():
        real = name in _REAL and type(value) is float
        if not (real or type(value) is int) or not 0 < value < 1 << 24:
            raise TypeError(f"{name} is {value!r}, expected a positive number")
    if values["width"] % values["heads"]:
        raise ValueError(f"width {values['width']} does not divide by {values['heads']} heads")
    return dict(values)


def _pixel_rule(raw: Mapping[str, Any], side: int) -> SquareRule:
    rule = SquareRule(raw["side"], numbers(raw["mean"], 3), numbers(raw["std"], 3))
    if rule.side != side or not all(0 <= m <= 1 for m in rule.mean) or list(rule.pad) != raw["pad"]:
        raise ValueError(f"pixels {raw!r}, expected side {side}, means in 0..1 and their colour as pad")
    return rule


def describe(config: ModelConfig) -> dict[str, str]:
    """What `qalign-fast info` says of the sizes."""
    vision, abstractor, decoder = config.vision, config.abstractor, config.decoder
    return {
        "pixels": f"{vision.side}x{vision.side}, patches of {vision.patch}",
        "vision": f"{vision.layers} layers, {vision.width} wide, {vision.tokens} tokens",
        "abstractor": f"{abstractor.layers} layers, {abstractor.width} wide, {abstractor.queries} queries",
        "decoder": f"{decoder.layers} layers, {decoder.width} wide, {decoder.positions} positions",
    }
