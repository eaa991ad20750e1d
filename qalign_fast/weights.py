"""An upstream checkpoint directory in, the stations' weights out; every tensor accounted for.

`table` says which checkpoint tensor becomes which parameter. Files are `.safetensors` or `.bin`, single or sharded with
an index; they are mapped, and tensors read one at a time: the peak is what is asked for plus one tensor.
"""

from __future__ import annotations

import contextlib
import json
import pickle
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from qalign_fast.config import ModelConfig, read_config
from qalign_fast.errors import CheckpointError, one_line
from qalign_fast.levels import LEVEL_IDS
from qalign_fast.model import Model

_VISION_LAYER = {
    "attention_norm": "input_layernorm",
    "qkv": "self_attn.query_key_value",
    "out": "self_attn.dense",
    "mlp_norm": "post_attention_layernorm",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}
_ABSTRACTOR_LAYER = {
    "query_norm": "norm1",
    "feature_norm": "normk",
    "q": "attention.query",
    "k": "attention.key",
    "v": "attention.value",
    "out": "output.out_proj",
    "mlp_norm": "output.norm2",
    "gate": "output.mlp.w1",
    "up": "output.mlp.w3",
    "inner_norm": "output.mlp.ffn_ln",
    "down": "output.mlp.w2",
}
_DECODER_LAYER = {
    "attention_norm_text": "input_layernorm.multiway.0.weight",
    "attention_norm_visual": "input_layernorm.multiway.1.weight",
    "q.weight": "self_attn.q_proj.weight",
    "k_text.weight": "self_attn.k_proj.multiway.0.weight",
    "k_visual.weight": "self_attn.k_proj.multiway.1.weight",
    "v_text.weight": "self_attn.v_proj.multiway.0.weight",
    "v_visual.weight": "self_attn.v_proj.multiway.1.weight",
    "o.weight": "self_attn.o_proj.weight",
    "mlp_norm_text": "post_attention_layernorm.multiway.0.weight",
    "mlp_norm_visual": "post_attention_layernorm.multiway.1.weight",
    "gate.weight": "mlp.gate_proj.weight",
    "up.weight": "mlp.up_proj.weight",
    "down.weight": "mlp.down_proj.weight",
}
_HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Source:
    """Where one of our parameters comes from: the tensor's name and shape in an upstream checkpoint."""

    name: str
    shape: tuple[int, ...]
    parameter_shape: tuple[int, ...]

    def take(self, tensor: Tensor) -> Tensor:
        """A float32 copy as our parameter: of the head the five level rows, else the same without leading ones."""
        rows = tensor[list(LEVEL_IDS)] if self.name == _HEAD else tensor
        return rows.reshape(self.parameter_shape).to(torch.float32, copy=True)


def table(config: ModelConfig) -> dict[str, str]:
    """Our parameter's name -> the upstream tensor's name, for a model of this size."""
    vision, abstractor = "model.vision_model", "model.visual_abstractor"
    names = {
        "vision.patch": f"{vision}.embeddings.patch_embed.weight",
        "vision.class_token": f"{vision}.embeddings.cls_token",
        "vision.positions": f"{vision}.embeddings.position_embedding",
        "abstractor.queries": f"{abstractor}.query_embeds",
        "abstractor.end_token": f"{abstractor}.vit_eos",
        "decoder.embed": "model.embed_tokens.weight",
        "decoder.norm": "model.norm.weight",
        "decoder.head": _HEAD,
    }
    modules = {
        "vision.pre_norm": f"{vision}.embeddings.pre_layernorm",
        "vision.post_norm": f"{vision}.post_layernorm",
        "abstractor.project": f"{abstractor}.visual_fc",
    }
    for i in range(config.vision.layers):
        modules |= {f"vision.layers.{i}.{k}": f"{vision}.encoder.layers.{i}.{v}" for k, v in _VISION_LAYER.items()}
    for i in range(config.abstractor.layers):
        ours, theirs = f"abstractor.layers.{i}", f"{abstractor}.encoder.layers.{i}.crossattention"
        modules |= {f"{ours}.{k}": f"{theirs}.{v}" for k, v in _ABSTRACTOR_LAYER.items()}
        names[f"{ours}.query_positions"] = f"{theirs}.attention.q_pos_embed"
        names[f"{ours}.key_positions"] = f"{theirs}.attention.k_pos_embed"
    for i in range(config.decoder.layers):
        names |= {f"decoder.layers.{i}.{k}": f"model.layers.{i}.{v}" for k, v in _DECODER_LAYER.items()}
    for ours, theirs in modules.items():
        names |= {f"{ours}.{part}": f"{theirs}.{part}" for part in ("weight", "bias")}
    return names


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Our parameter's name -> its shape in the reference model."""
    with torch.device("meta"):
        return {name: tuple(p.shape) for name, p in Model(config).state_dict().items()}


def sources(config: ModelConfig) -> dict[str, Source]:
    """Our parameter's name -> where it comes from and the shape expected there."""
    shapes = parameter_shapes(config)
    lead = {"vision.class_token": 2, "vision.positions": 1, "abstractor.queries": 1, "abstractor.end_token": 2}
    result = {
        ours: Source(name, (1,) * lead.get(ours, 0) + shapes[ours], shapes[ours])
        for ours, name in table(config).items()
    }
    result["decoder.head"] = Source(_HEAD, (config.decoder.vocab, config.decoder.width), shapes["decoder.head"])
    assert result.keys() == shapes.keys()
    return result


def load_model(directory: str | Path) -> Model:
    """The model of an upstream checkpoint directory, float32, on the CPU, in eval mode.

    Raises CheckpointError that names what is missing, unexpected, wrongly shaped, not finite or unreadable.
    """
    checkpoint = Checkpoint(Path(directory))
    with torch.device("meta"):
        model = Model(checkpoint.config)
    model.load_state_dict(checkpoint.read(checkpoint.sources), assign=True)
    return model.requires_grad_(False).eval()


class Checkpoint:
    """An upstream checkpoint directory, its tensors read by our names when asked for."""

    def __init__(self, directory: Path) -> None:
        """Looks at names, shapes and dtypes only. Raises CheckpointError for any that is not as expected."""
        self.directory = directory
        self.config = read_config(directory)
        self.sources = sources(self.config)
        self._file: dict[str, Path] = {}  # our name -> where its tensor is
        ours = {source.name: name for name, source in self.sources.items()}
        unexpected = []
        for file in weight_files(directory):
            with _open(file) as shard:
                for theirs in shard.names():
                    if theirs in ours:
                        self._add(ours[theirs], shard, file)
                    elif not theirs.endswith("rotary_emb.inv_freq"):  # a constant that old checkpoints store
                        unexpected.append(theirs)
        missing = sorted(source.name for name, source in self.sources.items() if name not in self._file)
        if missing:
            raise CheckpointError(f"{directory}: {_count('tensor', missing)} missing: {_some(missing)}")
        if unexpected:
            raise CheckpointError(f"{directory}: {_count('unexpected tensor', unexpected)}: {_some(unexpected)}")

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Float32 copies of these parameters, in their stations' shapes; of the head the five level rows.

        Files are mapped only while they are read. Raises CheckpointError for values that are not finite.
        """
        return dict(self.stream(names))

    def stream(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """The same one after another, file by file."""
        for file, group in _by_file(names, self._file):
            with _open(file) as shard:
                for name in group:
                    source = self.sources[name]
                    tensor = shard.tensor(source.name)
                    _check_finite(source.name, tensor, file)
                    yield name, source.take(tensor)

    def _add(self, name: str, shard: _Shard, file: Path) -> None:
        source = self.sources[name]
        if name in self._file:
            raise CheckpointError(f"{file}: tensor '{source.name}' is there a second time")
        shape, dtype = shard.form(source.name)
        if shape != source.shape:
            raise CheckpointError(
                f"{file}: tensor '{source.name}' has shape {list(shape)}; expected {list(source.shape)}"
            )
        if dtype not in _FLOATS:
            raise CheckpointError(f"{file}: tensor '{source.name}' is {dtype}; expected float32, float16 or bfloat16")
        self._file[name] = file


def _by_file(names: Iterable[str], places: Mapping[str, Path]) -> Iterator[tuple[Path, list[str]]]:
    groups: dict[Path, list[str]] = {}
    for name in names:
        groups.setdefault(places[name], []).append(name)
    yield from groups.items()


def weight_files(directory: Path) -> list[Path]:
    """The files that hold a checkpoint's weights: safetensors before .bin, a single file before shards."""
    for stem in ("model.safetensors", "pytorch_model.bin"):
        if (directory / stem).is_file():
            return [directory / stem]
        if (directory / f"{stem}.index.json").is_file():
            return _shards(directory / f"{stem}.index.json")
    raise CheckpointError(
        f"{directory}: no weights; expected model.safetensors or pytorch_model.bin, or shards with their .index.json"
    )


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index}: not a readable shard index ({error!r})") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(f"{index}: shard {name!r} is not a file name inside this directory")
        if not (index.parent / name).is_file():
            raise CheckpointError(f"{index.parent / name}: this shard is missing; {index.name} lists it")
    return [index.parent / name for name in names]


class _Shard(Protocol):
    """One open weight file."""

    def names(self) -> Iterable[str]: ...
    def form(self, name: str) -> tuple[tuple[int, ...], Any]: ...
    def tensor(self, name: str) -> Tensor: ...


class _SafetensorsShard:
    def __init__(self, shard: Any) -> None:
        self._shard = shard

    def names(self) -> Iterable[str]:
        names: list[str] = self._shard.keys()
        return names

    def form(self, name: str) -> tuple[tuple[int, ...], Any]:
        view = self._shard.get_slice(name)
        kind = view.get_dtype()
        return tuple(view.get_shape()), _SAFETENSORS_DTYPES.get(kind, kind)

    def tensor(self, name: str) -> Tensor:
        tensor: Tensor = self._shard.get_tensor(name)
        return tensor


class _BinShard:
    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors

    def names(self) -> Iterable[str]:
        return self._tensors

    def form(self, name: str) -> tuple[tuple[int, ...], Any]:
        return tuple(self._tensors[name].shape), self._tensors[name].dtype

    def tensor(self, name: str) -> Tensor:
        return self._tensors[name]


_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_SAFETENSORS_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@contextlib.contextmanager
def _open(file: Path) -> Iterator[_Shard]:
    """A weight file, mapped while it is open. Raises CheckpointError for one that is not readable."""
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as shard:
                yield _SafetensorsShard(shard)
        else:
            yield _BinShard(_load_bin(file))
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError) as error:
        raise CheckpointError(f"{file}: not a readable weight file ({one_line(error)})") from error


def _load_bin(file: Path) -> dict[str, Tensor]:
    # weights_only keeps pickle from running code; files from before torch's zip format (1.6) cannot be mapped
    with file.open("rb") as start:
        mapped = start.read(4) == b"PK\x03\x04"
    shard = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    if not isinstance(shard, dict):
        raise CheckpointError(f"{file}: holds a {type(shard).__name__}; expected named tensors")
    for name, tensor in shard.items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"{file}: '{name}' is a {type(tensor).__name__}; expected a tensor")
    return shard


def _check_finite(name: str, tensor: Tensor, file: Path) -> None:
    # both ends at once: isfinite on the whole tensor would take temporaries of its size
    if tensor.numel() and not torch.stack(torch.aminmax(tensor)).isfinite().all():
        raise CheckpointError(f"{file}: tensor '{name}' holds values that are not finite")


def _count(what: str, names: list[str]) -> str:
    return f"{len(names)} {what}{'' if len(names) == 1 else 's'}"


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
