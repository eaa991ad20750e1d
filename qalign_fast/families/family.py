"""All that a model family fixes, as one frozen value: levels, prompts, sizes, pixels, names of tensors, the model.

A family is a folder beside this file and a line in `registry.py`. No other file knows a family by name. Two modules of
the folder matter: one holds its `Family` and imports no runtime; `Family.model` names the other, which is imported when
an engine is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeAlias, cast

from qalign_fast.families.prompt import Prompt
from qalign_fast.families.schema import FoldedTensor, Interface, Shape
from qalign_fast.levels import Scale

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from qalign_fast.pixels.rule import PixelRule
    from qalign_kernels.contract.operations import Operations
    from qalign_kernels.contract.ops import Ops
    from qalign_kernels.contract.weight import Array

Constants: TypeAlias = "tuple[Tensor, ...]"  # what `decode` needs of a prompt, computed once


class Sizes(Protocol):
    """Every size of one model of a family. The value is frozen."""

    @property
    def pixels(self) -> PixelRule:
        """How a picture becomes the model's input."""
        ...

    @property
    def picture_tokens(self) -> int | None:
        """The number of visual tokens of a picture; None if it depends on the picture's size."""
        ...

    def vision_rows(self, height: int, width: int) -> int:
        """The rows that the vision tower computes for a picture of this size in pixels; its memory grows with them."""
        ...

    def max_frames(self, prompt_tokens: int) -> int:
        """The largest number of frames in a clip, beside a prompt of so many tokens."""
        ...


class Reference(Protocol):
    """A family's model in plain torch and float32. Every fast form is tested against it."""

    config: Any

    def encode(self, pixels: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] -> visual tokens [B, V, D]."""
        ...

    def constants(self, prompt: Prompt) -> Constants:
        """The tensors that `decode` takes of a prompt."""
        ...

    def decode(self, tokens: Tensor, *constants: Tensor) -> Tensor:
        """Visual tokens [B, F*V, D] of F frames each -> float32 logits [B, levels]."""
        ...

    def to(self, device: torch.device | str) -> Self:
        """Moves its parameters to a device. Raises RuntimeError if they do not fit."""
        ...


class Folded(Protocol):
    """A family's model on folded tensors, run by a set of operations, on the kind of array that those take."""

    config: Any
    ops: Operations

    def encode(self, pixels: Array) -> Array:
        """Takes and returns what the reference's does."""
        ...

    def decode(self, tokens: Array, *constants: Array) -> Array:
        """Takes and returns what the reference's does, with an artifact's constants."""
        ...


class Checkpoint(Protocol):
    """The directory of an upstream checkpoint. Its tensors have our names, and are read when they are asked for."""

    config: Any
    origins: Mapping[str, Any]

    def stream(self, names: Any) -> Iterator[tuple[str, Tensor]]:
        """Float32 copies of these parameters, one after another. Raises CheckpointError for values not finite."""
        ...


class Models(Protocol):
    """A family's module of models. All but the first two may be missing; `Family.engines` says which engines work."""

    def load_model(self, directory: Path) -> Reference:
        """The reference of an upstream checkpoint's directory, on the CPU. Raises CheckpointError."""
        ...

    def FoldedModel(self, config: Any, tensors: Mapping[str, Tensor], ops: Operations) -> Folded:  # noqa: N802 (a class)
        """The model on folded tensors, by the names of `Family.schema`."""
        ...

    def CudaModel(self, config: Any, tensors: Mapping[str, Tensor], ops: Ops, exact: Ops) -> Any:  # noqa: N802
        """The folded model on the operations of an NVIDIA GPU; results of `exact` are float32."""
        ...

    def Checkpoint(self, directory: Path) -> Checkpoint:  # noqa: N802
        """Opens an upstream checkpoint. Raises CheckpointError for one that is not as the family has it."""
        ...

    def Model(self, config: Any) -> nn.Module:  # noqa: N802
        """The reference before its parameters are set."""
        ...


@dataclass(frozen=True)
class Family:
    """All that mPLUG-Owl2, or another family, fixes. The functions take and return the family's own `Sizes`."""

    name: str  # the manifest's "family"
    scale: Scale  # the level words and their values
    level_ids: tuple[int, ...]  # their tokens
    prompts: tuple[Prompt, ...]  # every task in every medium; an artifact may have more
    clip_frames: int  # of a clip at most, where a caller does not say
    engines: tuple[str, ...]  # the kinds of engine that can run it: see `qalign_fast.engines.candidates`
    recognizes: Callable[[Mapping[str, Any]], bool]  # whether a config.json with this content is its own
    read_config: Callable[[Path], Sizes]  # a checkpoint's sizes, from its directory; raises CheckpointError
    sizes_to_json: Callable[[Any], dict[str, Any]]  # the manifest's "sizes" and "pixels"
    sizes_from_json: Callable[[Mapping[str, Any]], Sizes]  # the inverse; raises KeyError, TypeError, ValueError
    describe: Callable[[Any], dict[str, str]]  # the sizes in words, for `qalign-fast info`
    constants: Callable[[Any, Prompt], tuple[Shape, ...]]  # the shapes of a prompt's prefix and suffix in an artifact
    schema: Callable[[Any], Iterator[FoldedTensor]]  # the folded tensors of an artifact
    interface: Callable[[Any], Interface]  # the inputs and outputs of an artifact's graphs
    model: str  # the module of its models (`Models`), imported when an engine is made
    folded: str | None = None  # the module of a `FoldedModel` that needs no torch; None: it has none

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the family's tasks, each once."""
        return tuple(dict.fromkeys(prompt.task for prompt in self.prompts))

    def folded_model(self) -> Callable[[Any, Mapping[str, Array], Operations], Folded]:
        """The class of the folded model that needs no torch; a family with the engine "native" has one."""
        assert self.folded, self.name
        return cast("Callable[[Any, Mapping[str, Array], Operations], Folded]", import_module(self.folded).FoldedModel)

    def models(self) -> Models:
        """The family's module of models. Importing it imports torch."""
        return cast(Models, import_module(self.model))
