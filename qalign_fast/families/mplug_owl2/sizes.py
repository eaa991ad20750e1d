"""Every size of a model of the family, and how the manifest writes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from qalign_fast.json_values import count, numbers, object_of
from qalign_fast.levels import LEVELS
from qalign_fast.pixels.rule import SquareRule

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
NORM_EPS = 1e-5  # of the abstractor's norm1, normk and norm2, which keep upstream's default; ffn_ln takes the config's


def pixel_rule(side: int, mean: tuple[float, ...] = CLIP_MEAN, std: tuple[float, ...] = CLIP_STD) -> SquareRule:
    """Upstream pads with CLIP's mean colour and normalizes as CLIP does, unless a checkpoint says otherwise."""
    return SquareRule(side, mean, std)


@dataclass(frozen=True)
class VisionConfig:
    """The sizes of the vision tower, a CLIP-like transformer over the patches of a picture."""

    width: int  # D of its rows; divides by `heads`
    layers: int
    heads: int
    mlp: int  # width inside the MLP
    side: int  # pixels of a picture's side
    patch: int  # pixels of a patch's side
    eps: float  # of its layer norms

    @property
    def tokens(self) -> int:
        """T, the rows of a picture."""
        return (self.side // self.patch) ** 2 + 1  # the patches and the class token


@dataclass(frozen=True)
class AbstractorConfig:
    """The sizes of the abstractor, whose learned queries read the features of the vision tower."""

    queries: int
    width: int  # of its rows, the same as the vision tower's
    layers: int
    heads: int
    mlp: int  # width inside the gated MLP
    eps: float  # of the norm inside the MLP; the other norms have upstream's fixed 1e-5

    @property
    def tokens(self) -> int:
        """The visual tokens of a picture."""
        return self.queries + 1  # the queries and the learned end token


@dataclass(frozen=True)
class DecoderConfig:
    """The sizes of the language model, a LLaMA with norms, keys and values for each modality."""

    width: int  # D of its rows and of visual tokens; divides by `heads`
    layers: int
    heads: int  # of queries, and as many of keys and values
    mlp: int  # width inside the gated MLP
    vocab: int  # tokens
    eps: float  # of its RMS norms
    rope_theta: float  # base of the rotary positions
    positions: int  # the most tokens of a sequence, the prompt included


@dataclass(frozen=True)
class ModelConfig:
    """Every size of a model of the family. It is the family's `qalign_fast.families.family.Sizes`."""

    vision: VisionConfig
    abstractor: AbstractorConfig
    decoder: DecoderConfig
    pixels: SquareRule = field(default_factory=lambda: pixel_rule(448))
    # hidden widths of an MLP that reads the last row beside the level words; none in OneAlign
    mlp: tuple[int, ...] = ()

    @property
    def outputs(self) -> int:
        """The numbers that `decode` gives of a picture: the levels' logits, then the MLP's first layer before ReLU."""
        return len(LEVELS) + sum(self.mlp[:1])

    @property
    def picture_tokens(self) -> int:
        """The visual tokens of a picture."""
        return self.abstractor.tokens

    def vision_rows(self, height: int, width: int) -> int:
        """The rows of a picture in the vision tower. They are the same for all, because all are resized to one side."""
        return self.vision.tokens

    def max_frames(self, prompt_tokens: int) -> int:
        """The most frames that the decoder has positions for, beside a prompt of so many tokens."""
        return (self.decoder.positions - prompt_tokens) // self.abstractor.tokens


def sizes_to_json(config: ModelConfig) -> dict[str, Any]:
    """The manifest's "sizes" and "pixels"."""
    parts = {part: asdict(getattr(config, part)) for part in ("vision", "abstractor", "decoder")}
    return {"sizes": parts, "pixels": asdict(config.pixels) | {"pad": config.pixels.pad}}


def sizes_from_json(manifest: Mapping[str, Any]) -> ModelConfig:
    """The sizes from a manifest's JSON; the inverse of `sizes_to_json`.

    Raises KeyError, TypeError or ValueError for a size that is missing, malformed or out of range.
    """
    sizes, pixels = manifest["sizes"], manifest["pixels"]
    vision = VisionConfig(**_positive(sizes["vision"]))
    if vision.side % vision.patch:
        raise ValueError(f"side {vision.side} is not a multiple of patch {vision.patch}")
    return ModelConfig(
        vision,
        AbstractorConfig(**_positive(sizes["abstractor"])),
        DecoderConfig(**_positive(sizes["decoder"])),
        _pixel_rule(pixels, vision.side),
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
    rule = SquareRule(count(raw["side"]), numbers(raw["mean"], 3), numbers(raw["std"], 3))
    if rule.side != side or not all(0 <= m <= 1 for m in rule.mean) or list(rule.pad) != raw["pad"]:
        raise ValueError(f"pixels {raw!r}, expected side {side}, means in 0..1 and their colour as pad")
    if min(rule.std) <= 0:
        raise ValueError(f"std is {raw['std']}, expected positive numbers")
    return rule


def describe(config: ModelConfig) -> dict[str, str]:
    """The sizes in words, for `qalign-fast info`."""
    vision, abstractor, decoder = config.vision, config.abstractor, config.decoder
    return {
        "pixels": f"{vision.side}x{vision.side}, patches of {vision.patch}",
        "vision": f"{vision.layers} layers, {vision.width} wide, {vision.tokens} tokens",
        "abstractor": f"{abstractor.layers} layers, {abstractor.width} wide, {abstractor.queries} queries",
        "decoder": f"{decoder.layers} layers, {decoder.width} wide, {decoder.positions} positions",
    }
