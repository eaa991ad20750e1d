"""An upstream checkpoint directory in, the stations with its weights out; every tensor accounted for.

`table` says which checkpoint tensor becomes which parameter. Files are `.safetensors` or `.bin`, single or sharded with
an index. Tensors are read one at a time: the peak is the model plus one tensor (a `.bin` shard is mapped).
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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

    def take(self, tensor: Tensor, shape: torch.Size) -> Tensor:
        """Our float32 form of it: of the head the five level rows, else the same values without leading ones."""
        rows = tensor[list(LEVEL_IDS)] if self.name == _HEAD else tensor
        return rows.reshape(shape).to(torch.float32, copy=False).contiguous()


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


def sources(config: ModelConfig) -> dict[str, Source]:
    """Our parameter's name -> where it comes from and the shape expected there."""
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in Model(config).state_dict().items()}
    lead = {"vision.class_token": 2, "vision.positions": 1, "abstractor.queries": 1, "abstractor.end_token": 2}
    result = {ours: Source(name, (1,) * lead.get(ours, 0) + shapes[ours]) for ours, name in table(config).items()}
    result["decoder.head"] = Source(_HEAD, (config.decoder.vocab, config.decoder.width))
    assert result.keys() == shapes.keys()
    return result


def load_model(directory: str | Path) -> Model:
    """The model of an upstream checkpoint directory, float32, on the CPU, in eval mode.

    Raises CheckpointError that names what is missing, unexpected, wrongly shaped, not finite or unreadable.
    """
    directory = Path(directory)
    config = read_config(directory)
    with torch.device("meta"):
        model = Model(config)
    shapes = {name: p.shape for name, p in model.state_dict().items()}
    state = {}
    for ours, source, tensor in read_parameters(directory, config):
        state[ours] = source.take(tensor, shapes[ours])
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False).eval()


def read_parameters(directory: Path, config: ModelConfig) -> Iterator[tuple[str, Source, Tensor]]:
    """Each parameter's name, source and checked upstream tensor, in the files' order, one in memory at a time.

    Raises CheckpointError as `load_model`; what is missing is known only after the last one.
    """
    wanted = {source.name: (ours, source) for ours, source in sources(config).items()}
    seen: set[str] = set()
    unexpected = []
    for name, tensor, file in read_tensors(directory):
        if name.endswith("rotary_emb.inv_freq"):  # a constant that old checkpoints store
            continue
        if name not in wanted:
            unexpected.append(name)
            continue
        if name in seen:
            raise CheckpointError(f"{file}: tensor '{name}' is there a second time")
        seen.add(name)
        ours, source = wanted[name]
        _check(name, tensor, source, file)
        yield ours, source, tensor
    missing = sorted(wanted.keys() - seen)
    if missing:
        raise CheckpointError(f"{directory}: {_count('tensor', missing)} missing: {_some(missing)}")
    if unexpected:
        raise CheckpointError(f"{directory}: {_count('unexpected tensor', unexpected)}: {_some(unexpected)}")


def read_tensors(directory: Path) -> Iterator[tuple[str, Tensor, Path]]:
    """Every tensor of a checkpoint directory with its name and file, as stored."""
    for file in weight_files(directory):
        try:
            yield from _read_safetensors(file) if file.suffix == ".safetensors" else _read_bin(file)
        except (SafetensorError, pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError) as error:
            raise CheckpointError(f"{file}: not a readable weight file ({one_line(error)})") from error


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


def _read_safetensors(file: Path) -> Iterator[tuple[str, Tensor, Path]]:
    with safe_open(file, "pt") as shard:
        for name in shard.keys():  # noqa: SIM118 (not a mapping)
            yield name, shard.get_tensor(name), file


def _read_bin(file: Path) -> Iterator[tuple[str, Tensor, Path]]:
    # weights_only keeps pickle from running code; files from before torch's zip format cannot be mapped
    with file.open("rb") as start:
        mapped = start.read(4) == b"PK\x03\x04"
    shard = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    if not isinstance(shard, dict):
        raise CheckpointError(f"{file}: holds a {type(shard).__name__}; expected named tensors")
    while shard:
        name, tensor = shard.popitem()
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"{file}: '{name}' is a {type(tensor).__name__}; expected a tensor")
        yield name, tensor, file


def _check(name: str, tensor: Tensor, source: Source, file: Path) -> None:
    if tuple(tensor.shape) != source.shape:
        raise CheckpointError(f"{file}: tensor '{name}' has shape {list(tensor.shape)}; expected {list(source.shape)}")
    if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise CheckpointError(f"{file}: tensor '{name}' is {tensor.dtype}; expected float32, float16 or bfloat16")
    # both ends at once: isfinite on the whole tensor would take temporaries of its size
    if tensor.numel() and not torch.stack(torch.aminmax(tensor)).isfinite().all():
        raise CheckpointError(f"{file}: tensor '{name}' holds values that are not finite")


def _count(what: str, names: list[str]) -> str:
    return f"{len(names)} {what}{'' if len(names) == 1 else 's'}"


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
