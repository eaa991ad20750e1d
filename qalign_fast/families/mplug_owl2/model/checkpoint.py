"""An upstream checkpoint's directory in, the weights of all stations out. A missing or an unknown tensor is an error.

`tensor_names.table` says which checkpoint tensor becomes which parameter. Files are `.safetensors` or `.bin`, single
or sharded with an index. They are mapped, and tensors are read one at a time. The peak of memory is what is asked for
plus one tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from qalign_fast.errors import CheckpointError
from qalign_fast.families.family import Family
from qalign_fast.families.mplug_owl2.family import FAMILY
from qalign_fast.families.mplug_owl2.model.reference import Model
from qalign_fast.families.mplug_owl2.prompts import LEVEL_IDS
from qalign_fast.families.mplug_owl2.sizes import ModelConfig
from qalign_fast.families.mplug_owl2.tensor_names import HEAD, table
from qalign_fast.families.shards import FLOATS, Shard, open_shard, weight_files


@dataclass(frozen=True)
class TensorOrigin:
    """Where one of our parameters comes from: the tensor's name and shape in an upstream checkpoint."""

    name: str
    shape: tuple[int, ...]
    parameter_shape: tuple[int, ...]
    level_ids: tuple[int, ...] = LEVEL_IDS  # the tokens whose rows of the head are read

    def take(self, tensor: Tensor) -> Tensor:
        """A float32 copy in our parameter's shape, without leading ones. Of the head it takes the five level rows."""
        rows = tensor[list(self.level_ids)] if self.name == HEAD else tensor
        return rows.reshape(self.parameter_shape).to(torch.float32, copy=True)


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Our parameter's name -> its shape in the reference model."""
    with torch.device("meta"):
        return {name: tuple(p.shape) for name, p in Model(config).state_dict().items()}


def origins(config: ModelConfig, level_ids: tuple[int, ...] = LEVEL_IDS) -> dict[str, TensorOrigin]:
    """Our parameter's name -> the tensor that it comes from and the shape expected of that tensor."""
    shapes = parameter_shapes(config)
    lead = {"vision.class_token": 2, "vision.positions": 1, "abstractor.queries": 1, "abstractor.end_token": 2}
    result = {
        ours: TensorOrigin(name, (1,) * lead.get(ours, 0) + shapes[ours], shapes[ours])
        for ours, name in table(config).items()
    }
    vocabulary = (config.decoder.vocab, config.decoder.width)
    result["decoder.head"] = TensorOrigin(HEAD, vocabulary, shapes["decoder.head"], level_ids)
    assert result.keys() == shapes.keys()
    return result


def load_model(directory: str | Path, family: Family = FAMILY) -> Model:
    """The model of an upstream checkpoint's directory, float32, on the CPU, in eval mode.

    `family` is one whose trunk is mPLUG-Owl2's.

    Raises CheckpointError, which names what is missing, unexpected, wrongly shaped, not finite or unreadable.
    """
    checkpoint = Checkpoint(Path(directory), family)
    with torch.device("meta"):
        model = Model(checkpoint.config, checkpoint.anchors)
    model.load_state_dict(checkpoint.read(checkpoint.origins), assign=True)
    return model.requires_grad_(False).eval()


class Checkpoint:
    """The directory of an upstream checkpoint. Its tensors have our names, and are read when they are asked for."""

    def __init__(self, directory: Path, family: Family = FAMILY) -> None:
        """Looks at names, shapes and dtypes only. Raises CheckpointError for one that is not as expected."""
        self.directory = directory
        self.config = cast(ModelConfig, family.read_config(directory))
        self.origins = origins(self.config, family.level_ids)
        self.anchors = family.anchors(directory, self.config)
        self._file: dict[str, Path] = {}  # our name -> where its tensor is
        ours = {origin.name: name for name, origin in self.origins.items()}
        unexpected = []
        for file in weight_files(directory):
            with open_shard(file) as shard:
                for theirs in shard.names():
                    if theirs in ours:
                        self._add(ours[theirs], shard, file)
                    elif not theirs.endswith("rotary_emb.inv_freq"):  # a constant that old checkpoints store
                        unexpected.append(theirs)
        missing = sorted(origin.name for name, origin in self.origins.items() if name not in self._file)
        if missing:
            raise CheckpointError(f"{directory}: {_count('tensor', missing)} missing: {_some(missing)}")
        if unexpected:
            raise CheckpointError(f"{directory}: {_count('unexpected tensor', unexpected)}: {_some(unexpected)}")

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Float32 copies of these parameters, in the reference model's shapes. The head has the five level rows.

        Files are mapped only while they are read. Raises CheckpointError for values that are not finite.
        """
        return dict(self.stream(names))

    def stream(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """The same as `read`, one parameter after another, file by file."""
        for file, group in _by_file(names, self._file):
            with open_shard(file) as shard:
                for name in group:
                    origin = self.origins[name]
                    tensor = shard.tensor(origin.name)
                    _check_finite(origin.name, tensor, file)
                    yield name, origin.take(tensor)

    def _add(self, name: str, shard: Shard, file: Path) -> None:
        origin = self.origins[name]
        if name in self._file:
            raise CheckpointError(f"{file}: tensor '{origin.name}' is there a second time")
        shape, dtype = shard.form(origin.name)
        if shape != origin.shape:
            raise CheckpointError(
                f"{file}: tensor '{origin.name}' has shape {list(shape)}; expected {list(origin.shape)}"
            )
        if dtype not in FLOATS:
            raise CheckpointError(f"{file}: tensor '{origin.name}' is {dtype}; expected float32, float16 or bfloat16")
        self._file[name] = file


def _by_file(names: Iterable[str], places: Mapping[str, Path]) -> Iterator[tuple[Path, list[str]]]:
    groups: dict[Path, list[str]] = {}
    for name in names:
        groups.setdefault(places[name], []).append(name)
    yield from groups.items()


def _check_finite(name: str, tensor: Tensor, file: Path) -> None:
    # looks at the smallest and largest value; isfinite on the whole tensor would need temporaries of its size
    if tensor.numel() and not torch.stack(torch.aminmax(tensor)).isfinite().all():
        raise CheckpointError(f"{file}: tensor '{name}' holds values that are not finite")


def _count(what: str, names: list[str]) -> str:
    return f"{len(names)} {what}{'' if len(names) == 1 else 's'}"


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
