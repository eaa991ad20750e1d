"""The weight files of a LoRA adapter's folder in; what they add to a base's tensors, and what they replace, out.

A linear's weight becomes W + scaling * B @ A in float32, when the weight is read: that takes the memory of A and B. An
adapter_model file has A and B. A non_lora_trainables.bin, which the training programs of Q-Align, DeQA-Score and
Q-Scorer write beside it, has whole tensors that were trained as well. They take the place of the base's. Due to a fault
in one of the programs it may have all of the model's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from qalign_fast.errors import CheckpointError
from qalign_fast.families.adapters import ADAPTER, AdapterConfig, read_adapter_config
from qalign_fast.families.schema import Shape
from qalign_fast.families.shards import FLOATS, Shard, open_shard

if TYPE_CHECKING:
    from torch import Tensor

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
TRAINED_WHOLE = "non_lora_trainables.bin"
CONSTANT = "rotary_emb.inv_freq"  # how the name of a constant ends that old checkpoints store

_PREFIXES = ("base_model.model.", "base_model.", "model.")  # what PEFT's and other wrappers put before a module's name
_PART = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")


@dataclass(frozen=True)
class LowRank:
    """What is added to a weight [N, K]: scaling * up @ down, of up (B) [N, r] and down (A) [r, K], both float32."""

    up: Tensor
    down: Tensor
    scaling: float

    def add_to(self, weight: Tensor, rows: Callable[[Tensor], Tensor] = lambda up: up) -> None:
        """Changes a float32 weight in place. `rows` picks the rows of `up` that the weight has, if it lacks some."""
        weight.addmm_(rows(self.up), self.down, alpha=self.scaling)


class Place(NamedTuple):
    """A tensor of a weight file."""

    file: Path
    name: str  # as the file has it


Reader: TypeAlias = "Callable[[str], LowRank | None]"


class Adapter:
    """The tensors of an adapter's folder. They have the names of the base's tensors, "model...q_proj.weight"."""

    def __init__(self, directory: Path, shapes: Mapping[str, Shape], linears: Mapping[str, Shape]) -> None:
        """Looks at names, shapes and dtypes only; `shapes` are those of the base's tensors, `linears` of its weights.

        Raises CheckpointError for a tensor that is missing, unknown, or not as expected.
        """
        self.directory = directory
        self.config: AdapterConfig = read_adapter_config(directory)
        self._file = adapter_file(directory)
        self._parts: dict[str, dict[str, str]] = {}  # a weight's name -> "A" and "B" -> the file's name for it
        with open_shard(self._file) as shard:
            for theirs in shard.names():
                self._add(theirs, shard, linears)
        self._check_whole()
        self.replaced: dict[str, Place] = {}  # a base's tensor -> the one that takes its place
        if (directory / TRAINED_WHOLE).is_file():
            with open_shard(directory / TRAINED_WHOLE) as shard:
                for theirs in shard.names():
                    self._replace(theirs, shard, shapes)

    @contextmanager
    def open(self) -> Iterator[Reader]:
        """A function from a base tensor's name to what is added to it, or None. The file is mapped until the end.

        The function raises CheckpointError for values that are not finite.
        """
        with open_shard(self._file) as shard:
            yield lambda name: self._read(shard, name) if name in self._parts else None

    def _read(self, shard: Shard, name: str) -> LowRank:
        found = {part: shard.tensor(theirs).float() for part, theirs in self._parts[name].items()}
        for part, tensor in found.items():
            if not tensor.isfinite().all():
                raise CheckpointError(f"{self._file}: '{self._parts[name][part]}' holds values that are not finite")
        return LowRank(found["B"], found["A"], self.config.scaling(_module(name)))

    def _add(self, theirs: str, shard: Shard, linears: Mapping[str, Shape]) -> None:
        matched = _PART.fullmatch(theirs)
        name = f"{matched[1]}.weight" if matched else ""
        if not matched or name not in linears:
            raise CheckpointError(f"{self._file}: '{theirs}' is no A or B of a linear that the base has")
        if not self.config.targets_module(matched[1]):
            raise CheckpointError(f"{self._file}: '{theirs}' is there, but target_modules does not name its module")
        if self.config.is_ambiguous(matched[1]):
            raise CheckpointError(
                f"{self.directory / ADAPTER}: rank_pattern and alpha_pattern name '{matched[1]}' by different patterns,"
                " which versions of PEFT read differently; give both the same key"
            )
        (outputs, inputs), rank = linears[name], self.config.rank_of(matched[1])
        _check_form(self._file, theirs, shard, (rank, inputs) if matched[2] == "A" else (outputs, rank))
        parts = self._parts.setdefault(name, {})
        if matched[2] in parts:
            raise CheckpointError(f"{self._file}: '{theirs}' is there a second time, as '{parts[matched[2]]}'")
        parts[matched[2]] = theirs

    def _check_whole(self) -> None:
        for name, parts in self._parts.items():
            if len(parts) < 2:
                [found] = parts
                missing = "B" if found == "A" else "A"
                raise CheckpointError(f"{self._file}: '{_module(name)}' has no lora_{missing}, only lora_{found}")
        if unmet := self.config.unmet(map(_module, self._parts)):
            raise CheckpointError(
                f"{self._file}: has nothing for {len(unmet)} of target_modules: {', '.join(sorted(unmet)[:5])}"
            )

    def _replace(self, theirs: str, shard: Shard, shapes: Mapping[str, Shape]) -> None:
        file = self.directory / TRAINED_WHOLE
        tails = [theirs, *(theirs.removeprefix(each) for each in _PREFIXES if theirs.startswith(each))]
        name = next((tail for tail in tails if tail in shapes), None)
        if name is None:
            if theirs.endswith(CONSTANT) or self._is_frozen(tails):
                return
            raise CheckpointError(f"{file}: '{theirs}' is no tensor that the base has")
        _check_form(file, theirs, shard, shapes[name])
        if name in self.replaced:
            raise CheckpointError(f"{file}: '{theirs}' is there a second time, as '{self.replaced[name].name}'")
        self.replaced[name] = Place(file, theirs)

    def _is_frozen(self, tails: list[str]) -> bool:
        """Whether it is the weight under an adapter. That was not trained, and upstream reads it from the base."""
        return any(".base_layer." in tail and tail.replace(".base_layer.", ".") in self._parts for tail in tails)


def adapter_file(directory: Path) -> Path:
    """The file of A and B. Raises CheckpointError if there is none, or if the folder has a whole model beside it."""
    for stem in ("model.safetensors", "pytorch_model.bin"):
        if any((directory / f"{stem}{suffix}").is_file() for suffix in ("", ".index.json")):
            raise CheckpointError(f"{directory}: holds an adapter and a whole model ({stem}); remove one of them")
    for name in ADAPTER_FILES:
        if (directory / name).is_file():
            return directory / name
    raise CheckpointError(f"{directory}: no weights of the adapter; expected {' or '.join(ADAPTER_FILES)}")


def _module(name: str) -> str:
    return name.removesuffix(".weight")


def _check_form(file: Path, name: str, shard: Shard, expected: Shape) -> None:
    shape, dtype = shard.form(name)
    if shape != expected:
        raise CheckpointError(f"{file}: tensor '{name}' has shape {list(shape)}; expected {list(expected)}")
    if dtype not in FLOATS:
        raise CheckpointError(f"{file}: tensor '{name}' is {dtype}; expected float32, float16 or bfloat16")
