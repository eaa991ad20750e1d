"""An upstream checkpoint's directory in, the weights of all stations out. A missing or an unknown tensor is an error.

`tensor_names.table` says which checkpoint tensor becomes which parameter. Files are `.safetensors` or `.bin`, single
or sharded with an index. They are mapped, and tensors are read one at a time. The peak of memory is what is asked for
plus one tensor. A LoRA adapter's folder is read as the checkpoint that merging it into its base would make.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from qalign_fast.errors import CheckpointError
from qalign_fast.families.adapters import find_base
from qalign_fast.families.family import Family
from qalign_fast.families.lora import CONSTANT, TRAINED_WHOLE, Adapter, Place
from qalign_fast.families.mplug_owl2.config_json import tuned_abstractor
from qalign_fast.families.mplug_owl2.family import FAMILY
from qalign_fast.families.mplug_owl2.model.reference import Model
from qalign_fast.families.mplug_owl2.prompts import LEVEL_IDS
from qalign_fast.families.mplug_owl2.sizes import ModelConfig
from qalign_fast.families.mplug_owl2.tensor_names import HEAD, table
from qalign_fast.families.shards import FLOATS, Shard, open_shard, weight_files

_EMBEDDINGS = "model.embed_tokens.weight"
_ABSTRACTOR = "model.visual_abstractor."


@dataclass(frozen=True)
class TensorOrigin:
    """Where one of our parameters comes from: the tensor's name and shape in an upstream checkpoint."""

    name: str
    shape: tuple[int, ...]
    parameter_shape: tuple[int, ...]
    level_ids: tuple[int, ...] = LEVEL_IDS  # the tokens whose rows of the head are read

    def take(self, tensor: Tensor) -> Tensor:
        """A float32 copy in our parameter's shape, without leading ones. Of the head it takes the five level rows."""
        return self.rows(tensor).reshape(self.parameter_shape).to(torch.float32, copy=True)

    def rows(self, tensor: Tensor) -> Tensor:
        """The rows that our parameter has: all, but of the head's the five level rows."""
        return tensor[list(self.level_ids)] if self.name == HEAD else tensor


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


def load_model(directory: str | Path, base: str | Path | None = None, family: Family = FAMILY) -> Model:
    """The model of an upstream checkpoint's or an adapter's directory, float32, on the CPU, in eval mode.

    `base` is as `find_base` takes it. `family` is one whose trunk is mPLUG-Owl2's. Raises CheckpointError, which names
    what is missing, unexpected, wrongly shaped, not finite or unreadable; and what `find_base` raises.
    """
    checkpoint = Checkpoint(Path(directory), base, family)
    with torch.device("meta"):
        model = Model(checkpoint.config, checkpoint.anchors)
    model.load_state_dict(checkpoint.read(checkpoint.origins), assign=True)
    return model.requires_grad_(False).eval()


class Checkpoint:
    """The directory of an upstream checkpoint. Its tensors have our names, and are read when they are asked for.

    An adapter's directory is one, too: its tensors are those of its base, merged with the adapter's.
    """

    def __init__(self, directory: Path, base: str | Path | None = None, family: Family = FAMILY) -> None:
        """Looks at names, shapes and dtypes only. Raises CheckpointError for one that is not as expected.

        `base` is as `find_base` takes it, which raises for one that is not there.
        """
        self.directory, self.base = directory, find_base(directory, base)
        self.config = cast(ModelConfig, family.read_config(directory, self.base))
        self.origins = origins(self.config, family.level_ids)
        self.anchors = family.anchors(directory, self.config)
        self._adapter = self._open_adapter() if self.base else None
        self._place = self._find(self.base or directory, self._adapter.replaced if self._adapter else {})

    def _find(self, directory: Path, replaced: Mapping[str, Place]) -> dict[str, Place]:
        """Our name -> where its tensor is: one that is replaced, or else in the files of a whole checkpoint."""
        ours = {origin.name: name for name, origin in self.origins.items()}
        places = {ours[theirs]: place for theirs, place in replaced.items()}
        unexpected = []
        for file in weight_files(directory):
            with open_shard(file) as shard:
                for theirs in shard.names():
                    if theirs in replaced or theirs.endswith(CONSTANT):
                        continue
                    if theirs in ours:
                        self._add(ours[theirs], shard, file, places)
                    else:
                        unexpected.append(theirs)
        missing = sorted(origin.name for name, origin in self.origins.items() if name not in places)
        if missing:
            raise CheckpointError(f"{directory}: {_count('tensor', missing)} missing: {_some(missing)}")
        if unexpected:
            raise CheckpointError(f"{directory}: {_count('unexpected tensor', unexpected)}: {_some(unexpected)}")
        return places

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Float32 copies of these parameters, in the reference model's shapes. The head has the five level rows.

        Files are mapped only while they are read. Raises CheckpointError for values that are not finite.
        """
        return dict(self.stream(names))

    def stream(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """The same as `read`, one parameter after another, file by file."""
        with nullcontext(lambda _: None) if self._adapter is None else self._adapter.open() as added_to:
            for file, group in _by_file(names, self._place):
                with open_shard(file) as shard:
                    for name in group:
                        origin, theirs = self.origins[name], self._place[name].name
                        tensor = shard.tensor(theirs)
                        _check_finite(theirs, tensor, file)
                        parameter = origin.take(tensor)
                        if added := added_to(origin.name):
                            added.add_to(parameter, origin.rows)
                        yield name, parameter

    def _open_adapter(self) -> Adapter:
        shapes = {origin.name: origin.shape for origin in self.origins.values()}
        linears = {name: shape for name, shape in shapes.items() if _is_linear(name, shape)}
        adapter = Adapter(self.directory, shapes, linears)
        if tuned_abstractor(self.directory) and not any(_ABSTRACTOR in name for name in adapter.replaced):
            raise CheckpointError(
                f"{self.directory}: was trained with its abstractor (tune_visual_abstractor in config.json), "
                f"whose weights are missing; {TRAINED_WHOLE} should have them"
            )
        return adapter

    def _add(self, name: str, shard: Shard, file: Path, places: dict[str, Place]) -> None:
        origin = self.origins[name]
        if name in places:
            raise CheckpointError(f"{file}: tensor '{origin.name}' is there a second time")
        shape, dtype = shard.form(origin.name)
        if shape != origin.shape:
            raise CheckpointError(
                f"{file}: tensor '{origin.name}' has shape {list(shape)}; expected {list(origin.shape)}"
            )
        if dtype not in FLOATS:
            raise CheckpointError(f"{file}: tensor '{origin.name}' is {dtype}; expected float32, float16 or bfloat16")
        places[name] = Place(file, origin.name)


def _is_linear(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and name.endswith(".weight") and name != _EMBEDDINGS


def _by_file(names: Iterable[str], places: Mapping[str, Place]) -> Iterator[tuple[Path, list[str]]]:
    groups: dict[Path, list[str]] = {}
    for name in names:
        groups.setdefault(places[name].file, []).append(name)
    yield from groups.items()


def _check_finite(name: str, tensor: Tensor, file: Path) -> None:
    # looks at the smallest and largest value; isfinite on the whole tensor would need temporaries of its size
    if tensor.numel() and not torch.stack(torch.aminmax(tensor)).isfinite().all():
        raise CheckpointError(f"{file}: tensor '{name}' holds values that are not finite")


def _count(what: str, names: list[str]) -> str:
    return f"{len(names)} {what}{'' if len(names) == 1 else 's'}"


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
