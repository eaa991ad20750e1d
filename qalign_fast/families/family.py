"""What a model family fixes, as one frozen value: levels, prompts, sizes, pixels, names of files' tensors, the model.

A family is a folder beside this file and a line in `registry.py`. Nothing else knows a family by name. Two modules of
the folder matter: the one that holds its `Family`, which imports no runtime, and the one that `Family.model` names,
which is imported when an engine is made.
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
    from qalign_kernels.contract.ops import Ops

Constants: TypeAlias = "tuple[Tensor, ...]"  # what a prompt adds to a picture's tokens, computed once


class Sizes(Protocol):
    """Every size of one model of a family; frozen."""

    @property
    def pixels(self) -> PixelRule:
        """How a picture becomes the model's input."""
        ...

    @property
    def picture_tokens(self) -> int | None:
        """Visual tokens of a picture; None where they depend on its size."""
        ...

    def vision_rows(self, height: int, width: int) -> int:
        """Rows that the vision tower computes for a picture of that many pixels: what its memory grows with."""
        ...

    def max_frames(self, prompt_tokens: int) -> int:
        """How many frames of a clip the model takes beside a prompt of that many tokens."""
        ...


class Reference(Protocol):
    """A family's model in plain torch, float32: what every fast form is held to."""

    config: Any

    def encode(self, pixels: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] -> visual tokens [B, V, D]."""
        ...

    def constants(self, prompt: Prompt) -> Constants:
        """What `decode` takes of a prompt."""
        ...

    def decode(self, tokens: Tensor, *constants: Tensor) -> Tensor:
        """Visual tokens [B, F*V, D] of F frames each -> float32 logits [B, levels]."""
        ...

    def to(self, device: torch.device | str) -> Self: ...


class Folded(Protocol):
    """A family's model as artifacts hold it, on a set of operations."""

    config: Any
    ops: Ops

    def encode(self, pixels: Tensor) -> Tensor:
        """As the reference's."""
        ...

    def decode(self, tokens: Tensor, *constants: Tensor) -> Tensor:
        """As the reference's, with an artifact's constants."""
        ...


class Checkpoint(Protocol):
    """An upstream checkpoint's directory, its tensors read by our names when asked for."""

    config: Any
    origins: Mapping[str, Any]

    def stream(self, names: Any) -> Iterator[tuple[str, Tensor]]:
        """Float32 copies of these parameters, one after another."""
        ...


class Models(Protocol):
    """A family's module of models. All but the first two may be missing; see `Family.engines`."""

    def load_model(self, directory: Path) -> Reference:
        """The reference of an upstream checkpoint's directory, on the CPU. Raises CheckpointError."""
        ...

    def FoldedModel(self, config: Any, tensors: Mapping[str, Tensor], ops: Ops) -> Folded:  # noqa: N802 (a class)
        ...

    def CudaModel(self, config: Any, tensors: Mapping[str, Tensor], ops: Ops, exact: Ops) -> Any:  # noqa: N802
        """The folded model on an NVIDIA GPU's operations; results of `exact` are float32."""
        ...

    def Checkpoint(self, directory: Path) -> Checkpoint:  # noqa: N802
        """Raises CheckpointError."""
        ...

    def Model(self, config: Any) -> nn.Module:  # noqa: N802
        """The reference with parameters that are not set."""
        ...


@dataclass(frozen=True)
class Family:
    """What mPLUG-Owl2, or another family, fixes."""

    name: str  # the manifest's "family"
    scale: Scale  # the level words and what they are worth
    level_ids: tuple[int, ...]  # their tokens
    prompts: tuple[Prompt, ...]  # every task in every medium; an artifact may have others beside
    engines: tuple[str, ...]  # kinds of engine that run it: see `qalign_fast.engines.candidates`
    recognizes: Callable[[Mapping[str, Any]], bool]  # a checkpoint by the content of its config.json
    read_config: Callable[[Path], Sizes]  # a checkpoint's sizes, from its directory; raises CheckpointError
    sizes_to_json: Callable[[Any], dict[str, Any]]  # the manifest's "sizes" and "pixels"
    sizes_from_json: Callable[[Mapping[str, Any]], Sizes]  # its inverse; raises KeyError, TypeError, ValueError
    describe: Callable[[Any], dict[str, str]]  # the sizes in words, for `qalign-fast info`
    constants: Callable[[Any, Prompt], tuple[Shape, ...]]  # the shapes of a prompt's prefix and suffix in an artifact
    schema: Callable[[Any], Iterator[FoldedTensor]]  # the folded tensors of an artifact
    interface: Callable[[Any], Interface]  # of an artifact's graphs
    model: str  # the module of its models (`Models`), imported when an engine is made

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(prompt.task for prompt in self.prompts))

    def models(self) -> Models:
        """Imports torch."""
        return cast(Models, import_module(self.model))
