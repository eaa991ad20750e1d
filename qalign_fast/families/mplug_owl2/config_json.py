"""An upstream checkpoint's config.json in, frozen sizes out. A setting that we do not implement is an error."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qalign_fast.errors import CheckpointError
from qalign_fast.families.mplug_owl2.sizes import (
    CLIP_MEAN,
    CLIP_STD,
    AbstractorConfig,
    DecoderConfig,
    ModelConfig,
    VisionConfig,
    pixel_rule,
)
from qalign_fast.pixels.rule import SquareRule

_FILES = ("config.json", "preprocessor_config.json")


def read_config(directory: Path, base: Path | None = None) -> ModelConfig:
    """The sizes of the checkpoint in a directory: config.json and, where present, preprocessor_config.json.

    Of an adapter's folder, `base` is the checkpoint that it is for: a file that the folder lacks is the base's.
    Raises CheckpointError for a missing or unreadable file, a missing size, or a setting we do not implement, and for
    an adapter that was trained with other sizes than the base has.
    """
    config = parse_config(*read_files(directory, base))
    if base is not None:
        check_same(directory, config, base, read_config(base))
    return config


def read_files(directory: Path, base: Path | None = None) -> tuple[Any, Any]:
    """The contents of both files; {} for a preprocessor_config.json that is not there.

    Of an adapter's folder, a file that it lacks is that of `base`. Raises CheckpointError.
    """
    folders = [directory, *([base] if base is not None else [])]
    raw, preprocessor = (
        next((folder / name for folder in folders if (folder / name).is_file()), folders[-1] / name) for name in _FILES
    )
    return _read_json(raw), _read_json(preprocessor) if preprocessor.is_file() else {}


def tuned_abstractor(directory: Path) -> bool:
    """Whether an adapter's config.json says that the whole abstractor was trained beside the adapter."""
    file = directory / "config.json"
    return file.is_file() and bool(_Section("config.json", _read_json(file)).values.get("tune_visual_abstractor"))


def check_same(directory: Path, config: ModelConfig, base: Path, other: ModelConfig) -> None:
    """Raises CheckpointError where an adapter's sizes are not its base's.

    The pixels may differ, and the vocabulary, to which an adapter may add words.
    """
    for part in ("vision", "abstractor", "decoder"):
        ours, theirs = asdict(getattr(config, part)), asdict(getattr(other, part))
        for key, value in ours.items():
            if value != theirs[key] and key != "vocab":
                raise CheckpointError(
                    f"{directory}: was trained with {part} {key} {value}; its base {base} has {theirs[key]}"
                )


def parse_config(raw: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> ModelConfig:
    """The sizes from the contents of both files. Raises CheckpointError as `read_config` does."""
    visual = _Section("config.json", raw).section("visual_config")
    vision, abstractor = visual.section("visual_model"), visual.section("visual_abstractor")
    decoder = _Section("config.json", raw)
    config = ModelConfig(
        vision=_vision(vision),
        abstractor=_abstractor(abstractor),
        decoder=_decoder(decoder),
        pixels=_pixels(_Section("preprocessor_config.json", preprocessor), vision.size("image_size")),
    )
    _cross_check(config, abstractor)
    for section in (vision, abstractor, decoder):
        section.refuse_unknown()
    return config


def _vision(raw: _Section) -> VisionConfig:
    raw.must_be("hidden_act", "quick_gelu")
    raw.must_be("num_channels", 3)
    return VisionConfig(
        width=raw.size("hidden_size"),
        layers=raw.size("num_hidden_layers"),
        heads=raw.size("num_attention_heads"),
        mlp=raw.size("intermediate_size"),
        side=raw.size("image_size"),
        patch=raw.size("patch_size"),
        eps=raw.positive("layer_norm_eps", 1e-6),
    )


def _abstractor(raw: _Section) -> AbstractorConfig:
    return AbstractorConfig(
        queries=raw.size("num_learnable_queries"),
        width=raw.size("hidden_size"),
        layers=raw.size("num_hidden_layers"),
        heads=raw.size("num_attention_heads"),
        mlp=raw.size("intermediate_size"),
        eps=raw.positive("layer_norm_eps", 1e-6),
    )


def _decoder(raw: _Section) -> DecoderConfig:
    heads = raw.size("num_attention_heads")
    raw.must_be("hidden_act", "silu")
    raw.must_be("num_key_value_heads", heads, None)
    raw.must_be("rope_scaling", None)
    raw.must_be("attention_bias", False)
    raw.must_be("tie_word_embeddings", False)
    return DecoderConfig(
        width=raw.size("hidden_size"),
        layers=raw.size("num_hidden_layers"),
        heads=heads,
        mlp=raw.size("intermediate_size"),
        vocab=raw.size("vocab_size"),
        eps=raw.positive("rms_norm_eps", 1e-6),
        rope_theta=raw.positive("rope_theta", 10000.0),
        positions=raw.size("max_position_embeddings", 2048),
    )


def _pixels(raw: _Section, side: int) -> SquareRule:
    raw.must_be("resample", 3)  # Pillow's BICUBIC
    for key in ("size", "crop_size"):
        found = raw.values.get(key, side)
        if isinstance(found, Mapping):
            found = found.get("shortest_edge", found.get("height"))
        if found != side:
            raise CheckpointError(f"preprocessor_config.json: {key} is {found}; config.json's image_size is {side}")
    return pixel_rule(side, raw.three("image_mean", CLIP_MEAN), raw.three("image_std", CLIP_STD))


def _cross_check(config: ModelConfig, abstractor: _Section) -> None:
    vision = config.vision
    abstractor.must_be("encoder_hidden_size", vision.width)
    # one linear makes the keys of queries and of features, and one their values, so both have one width
    abstractor.must_be("hidden_size", vision.width)
    if vision.side % vision.patch:
        raise CheckpointError(f"config.json: image_size {vision.side} is not a multiple of patch_size {vision.patch}")
    abstractor.must_be("grid_size", vision.side // vision.patch)
    for name, part in (("visual_model", vision), ("visual_abstractor", config.abstractor), ("decoder", config.decoder)):
        if part.width % part.heads:
            raise CheckpointError(
                f"config.json: {name}: hidden_size {part.width} does not divide by {part.heads} heads"
            )
    if config.decoder.width // config.decoder.heads % 2:
        raise CheckpointError("config.json: the decoder's head width is odd; rotary positions need an even one")


# Keys that do not change the result of a forward pass. They say how the model was trained, generates text or is stored.
_HARMLESS = frozenset(
    "attention_dropout attention_probs_dropout_prob initializer_factor initializer_range projection_dim use_flash_attn "
    "_flash_attn_2_enabled _attn_implementation attn_implementation output_attentions output_hidden_states "
    "chunk_size_feed_forward cross_attention_hidden_size add_cross_attention encoder_no_repeat_ngram_size "
    "no_repeat_ngram_size num_beams num_beam_groups num_return_sequences pretraining_tp use_cls_token hidden_dropout "
    "hidden_dropout_prob mm_vision_select_feature mm_hidden_size tie_encoder_decoder".split()
)


# A key that is neither read nor harmless, and whose name speaks of the architecture, may change the result.
_ARCHITECTURE = re.compile(
    r"rope|rotary|attn|attention|act(_|$)|activation|norm|bias|scal|window|head|layer|hidden|quant|moe|expert|position"
    r"|_size$|_dim$|^num_"
)


class _Section:
    """One object of a config file that remembers which of its keys were read."""

    def __init__(self, where: str, values: Any) -> None:
        if not isinstance(values, Mapping):
            raise CheckpointError(f"{where}: expected an object, found {type(values).__name__}")
        self.where = where
        self.values: Mapping[str, Any] = values
        self.read: set[str] = set()

    def section(self, key: str) -> _Section:
        if key not in self.values:
            raise CheckpointError(f"{self.where}: '{key}' is missing; this is not a checkpoint of the Q-Align family")
        return _Section(f"{self.where}: {key}", self.values[key])

    def _get(self, key: str, default: Any) -> Any:
        self.read.add(key)
        value = self.values.get(key, default)
        if value is None:
            raise CheckpointError(f"{self.where}: '{key}' is missing")
        return value

    def size(self, key: str, default: int | None = None) -> int:
        value = self._get(key, default)
        if type(value) is not int or not 0 < value < 1 << 24:
            raise CheckpointError(f"{self.where}: '{key}' is {value!r}; expected a positive whole number")
        return value

    def positive(self, key: str, default: float) -> float:
        value = self._get(key, default)
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            raise CheckpointError(f"{self.where}: '{key}' is {value!r}; expected a positive number")
        return float(value)

    def three(self, key: str, default: tuple[float, ...]) -> tuple[float, ...]:
        value = self._get(key, default)
        if not isinstance(value, list | tuple) or len(value) != 3 or not all(type(v) in (int, float) for v in value):
            raise CheckpointError(f"{self.where}: '{key}' is {value!r}; expected three numbers")
        return tuple(float(v) for v in value)

    def must_be(self, key: str, *allowed: Any) -> None:
        """Raises CheckpointError for another value. An absent key means the first of `allowed`, the family's own."""
        self.read.add(key)
        value = self.values.get(key, allowed[0])
        if value not in allowed:
            raise CheckpointError(f"{self.where}: '{key}' is {value!r}; only {allowed[0]!r} is implemented")

    def refuse_unknown(self) -> None:
        for key, value in self.values.items():
            known = key in self.read or key in _HARMLESS or key == "visual_config"
            if not known and value and _ARCHITECTURE.search(key):
                raise CheckpointError(f"{self.where}: '{key}' ({value!r}) is not a setting this version knows")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})") from error
