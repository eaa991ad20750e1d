"""The keywords of transformers' `from_pretrained` in; where a model's files are, and how it is loaded, out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qalign_fast.errors import OptionError

_HUB = ("revision", "cache_dir", "token", "local_files_only", "force_download")
_LOAD = ("device", "precision", "engine", "threads", "verify", "limits", "api_key", "base")  # of `Scorer.load`

# They say how transformers computes, or how it reads weights. Our engines have a precision and an attention of their
# own, which `info` names, so none of these changes a score.
_OF_TRANSFORMERS = frozenset(
    """
    trust_remote_code code_revision config attn_implementation torch_dtype dtype low_cpu_mem_usage use_safetensors
    weights_only use_cache use_flash_attention_2 max_memory offload_folder offload_buffers offload_state_dict
    """.split()
)
_SPREAD = ("auto", "balanced", "balanced_low_0", "sequential")
_BITS = {"load_in_8bit": "bnb-int8", "load_in_4bit": "bnb-nf4"}


@dataclass(frozen=True)
class PretrainedOptions:
    """What `from_pretrained` was asked for.

    hub: for `qalign_fast.hub.fetch`: the revision, the cache's folder, the token.
    load: for `Scorer.load`.
    """

    hub: Mapping[str, Any] = field(default_factory=dict)
    load: Mapping[str, Any] = field(default_factory=dict)


def read_options(given: Mapping[str, Any]) -> PretrainedOptions:
    """Sorts the keywords. What only transformers' own code would heed is dropped, and None is as not given.

    Raises OptionError for a keyword that would change the model or its scores and is not implemented.
    """
    asked = {name: value for name, value in given.items() if value is not None and not name.startswith("_")}
    asked = {name: value for name, value in asked.items() if name not in _OF_TRANSFORMERS}
    hub = {name: asked.pop(name) for name in _HUB if name in asked}
    load = {name: asked.pop(name) for name in _LOAD if name in asked}
    found = {"device": _device(asked.pop("device_map", None)), "precision": _precision(asked)}
    for name, value in found.items():
        if value is None:
            continue
        if load.setdefault(name, value) != value:
            raise OptionError(f"{name} is {load[name]!r}, and device_map or quantization asks for {value!r}; give one")
    if unknown := [name for name, value in asked.items() if value not in (False, "", {})]:
        raise OptionError(f"{', '.join(unknown)}: not implemented; of our own there are: {', '.join(_LOAD)}")
    return PretrainedOptions(hub, load)


def fetched(model: str | Path, hub: Mapping[str, Any]) -> str | Path:
    """The model's directory, where the Hub's files were asked for in a way of the caller's; else the model as given.

    Raises ArtifactError and MissingExtraError as `qalign_fast.hub.fetch`.
    """
    if not hub or Path(model).exists() or "://" in str(model):
        return model
    from qalign_fast.hub import fetch

    return fetch(str(model), **hub)


def device_name(device: Any) -> str:
    """A device as `Scorer.load` takes it: of torch's, of accelerate's number of a GPU, or of a name."""
    return f"cuda:{device}" if isinstance(device, int) else str(device)


def _device(device_map: Any) -> str | None:
    """Raises OptionError for a map that spreads the model over several devices."""
    if isinstance(device_map, Mapping):
        places = {device_name(place) for place in device_map.values()}
        if len(places) != 1:
            raise OptionError(
                f"device_map names {', '.join(sorted(places)) or 'nothing'}; the model runs on one device"
            )
        return places.pop()
    if device_map is None or device_map in _SPREAD:
        return None
    return device_name(device_map)


def _precision(asked: dict[str, Any]) -> str | None:
    """What bitsandbytes' settings ask for. Takes them out of `asked`. Raises OptionError for others than ours."""
    settings = {name: asked.pop(name, False) for name in _BITS}
    if (config := asked.pop("quantization_config", None)) is not None:
        settings = dict(config) if isinstance(config, Mapping) else vars(config)
    # transformers' object has its two switches behind properties, and in its dictionary with an underscore
    wanted = [name for name in _BITS if settings.get(name) or settings.get(f"_{name}")]
    if config is not None and not wanted:
        raise OptionError("quantization_config: expected bitsandbytes' load_in_8bit or load_in_4bit")
    if not wanted:
        return None
    if wanted == ["load_in_4bit"] and (kind := settings.get("bnb_4bit_quant_type", "fp4")) != "nf4":
        raise OptionError(f"bnb_4bit_quant_type is {kind!r}; expected 'nf4'")
    if (threshold := settings.get("llm_int8_threshold", 6.0)) != 6.0:
        raise OptionError(f"llm_int8_threshold is {threshold}; expected 6.0")
    return _BITS[wanted[0]]
