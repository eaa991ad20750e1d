"""All that a model family fixes, as one frozen value: levels, prompts, sizes, pixels, names of tensors, the model.

A family is a folder beside this file and a line in `registry.py`. No other file knows a family by name. Two modules of
the folder matter: one holds its `Family` and imports no runtime; `Family.model` names the other, which is imported when
an engine is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeAlias, cast

from qalign_fast.families.anchors import no_anchors
from qalign_fast.families.prompt import Prompt
from qalign_fast.families.schema import FoldedTensor, Interface, Shape
from qalign_fast.levels import Answer, Scale, answer_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from torch import Tensor, nn

    from qalign_fast.pixels.rule import PixelRule
    from qalign_kernels.contract.operations import Operations
    from qalign_kernels.contract.ops import Ops
    from qalign_kernels.contract.weight import Array

Constants: TypeAlias = "tuple[Tensor, ...]"  # what `decode` needs of a prompt, computed once
Tail: TypeAlias = "Mapping[str, npt.NDArray[np.float32]]"  # what a family's `answer` computes with on the host


class Decode(Protocol):
    """An engine's `decode` on the pictures that are asked about, whose visual tokens it keeps."""

    def __call__(self, prompt: Prompt, rows: Sequence[int] | None = None) -> npt.NDArray[np.float32]:
        """Outputs float32 [b, outputs] of these rows of the batch, or of all."""
        ...


# The answers of a batch: from the prompt's own outputs [B, outputs], the prompt, and what else it takes.
Answering: TypeAlias = "Callable[[npt.NDArray[np.float32], Prompt, Decode, Tail], list[Answer]]"


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
        """Visual tokens [B, F*V, D] of F frames each -> float32 outputs [B, N], the levels' logits unless said."""
        ...

    @property
    def tail(self) -> Tail:
        """The tensors of `Family.tail`, on the host. A family without any need not have it."""
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
    anchors: npt.NDArray[np.uint8]  # the family's `anchors`; empty for most

    def stream(self, names: Any) -> Iterator[tuple[str, Tensor]]:
        """Float32 copies of these parameters, one after another. Raises CheckpointError for values not finite."""
        ...


class Models(Protocol):
    """A family's module of models. All but the first two may be missing; `Family.engines` says which engines work."""

    def load_model(self, directory: Path, base: Path | None = None) -> Reference:
        """The reference of an upstream checkpoint's directory, on the CPU; of an adapter's, merged into its base.

        Raises CheckpointError.
        """
        ...

    def FoldedModel(self, config: Any, tensors: Mapping[str, Tensor], ops: Operations) -> Folded:  # noqa: N802 (a class)
        """The model on folded tensors, by the names of `Family.schema`."""
        ...

    def CudaModel(self, config: Any, tensors: Mapping[str, Tensor], ops: Ops, exact: Ops) -> Any:  # noqa: N802
        """The folded model on the operations of an NVIDIA GPU; results of `exact` are float32."""
        ...

    def Checkpoint(self, directory: Path, base: Path | None = None) -> Checkpoint:  # noqa: N802
        """Opens an upstream checkpoint, or an adapter and its base.

        Raises CheckpointError for one that is not as the family has it.
        """
        ...

    def Model(self, config: Any, anchors: npt.NDArray[np.uint8]) -> nn.Module:  # noqa: N802
        """The reference before its parameters are set. `anchors`: the checkpoint's."""
        ...


def _no_tail(_: Any) -> Mapping[str, Shape]:
    return {}


@dataclass(frozen=True)
class Family:
    """All that mPLUG-Owl2, or another family, fixes. The functions take and return the family's own `Sizes`."""

    name: str  # the manifest's "family"
    scale: Scale  # the level words and their values
    level_ids: tuple[int, ...]  # their tokens
    prompts: tuple[Prompt, ...]  # every task in every medium; an artifact may have more
    clip_frames: int  # of a clip at most, where a caller does not say
    engines: tuple[str, ...]  # the kinds of engine that can run it: see `qalign_fast.engines.candidates`
    recognizes: Callable[[Mapping[str, Any], Path], bool]  # whether a config.json's content and directory are its own
    read_config: Callable[[Path, Path | None], Sizes]  # of a checkpoint's directory and, if it is an adapter, its base
    sizes_to_json: Callable[[Any], dict[str, Any]]  # the manifest's "sizes" and "pixels"
    sizes_from_json: Callable[[Mapping[str, Any]], Sizes]  # the inverse; raises KeyError, TypeError, ValueError
    describe: Callable[[Any], dict[str, str]]  # the sizes in words, for `qalign-fast info`
    constants: Callable[[Any, Prompt], tuple[Shape, ...]]  # the shapes of a prompt's prefix and suffix in an artifact
    schema: Callable[[Any], Iterator[FoldedTensor]]  # the folded tensors of an artifact
    interface: Callable[[Any], Interface]  # the inputs and outputs of an artifact's graphs
    model: str  # the module of its models (`Models`), imported when an engine is made
    folded: str | None = None  # the module of a `FoldedModel` that needs no torch; None: it has none
    answer: Answering | None = None  # how outputs become answers; None: they are the levels' logits, see levels.py
    tail: Callable[[Any], Mapping[str, Shape]] = _no_tail  # the tensors that `answer` takes, by name
    anchors: Callable[[Path, Any], npt.NDArray[np.uint8]] = no_anchors  # a checkpoint's, as pixels [A, S, S, 3]

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the family's tasks, each once."""
        return tuple(dict.fromkeys(prompt.task for prompt in self.prompts))

    def answers(self, outputs: npt.NDArray[np.float32], prompt: Prompt, decode: Decode, tail: Tail) -> list[Answer]:
        """The answer of each picture to a prompt, whose outputs [B, N] are given; `decode` gives those of its parts."""
        if self.answer is None:
            return [answer_of(row, self.scale) for row in outputs]
        return self.answer(outputs, prompt, decode, tail)

    def folded_model(self) -> Callable[[Any, Mapping[str, Array], Operations], Folded]:
        """The class of the folded model that needs no torch; a family with the engine "native" has one."""
        assert self.folded, self.name
        return cast("Callable[[Any, Mapping[str, Array], Operations], Folded]", import_module(self.folded).FoldedModel)

    def models(self) -> Models:
        """The family's module of models. Importing it imports torch."""
        return cast(Models, import_module(self.model))
