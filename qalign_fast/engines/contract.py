"""The contract every engine keeps: `encode` pixels to visual tokens, `decode` tokens and a prompt to logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from qalign_fast.families.family import Family
from qalign_fast.families.prompt import Prompt


class Tokens(Protocol):
    """Visual tokens [B, V, D] on the engine's own device: a numpy array, a torch tensor, or what behaves like one.

    They go back into `decode` of the engine that made them, whole, sliced by picture, or reshaped into clips.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    @property
    def reshape(self) -> Callable[..., Any]: ...

    def __getitem__(self, some: Any, /) -> Any: ...


class Engine(Protocol):
    """A model that is loaded, on a device, ready to run. Several threads may call it at a time."""

    name: str  # "torch", "onnx", "onnx-cuda"
    device: str  # "cpu", "mps", "cuda:N"
    precision: str  # a name of `qalign_kernels.contract.precisions`, or of bitsandbytes'
    kernels: str  # what computes: "plain torch", "native" and an instruction set, "Triton" and whose attention, ...
    in_flight: int  # batches that several threads may have under way with profit
    family: Family
    config: Any  # the family's sizes, which are `qalign_fast.families.family.Sizes`
    prompts: tuple[Prompt, ...]  # what it can answer

    def encode(self, pixels: npt.NDArray[np.uint8]) -> Tokens:
        """uint8 [B, H, W, 3] as `config.pixels` makes them -> visual tokens [B, V, D]. Raises DeviceError."""
        ...

    def decode(self, tokens: Tokens, prompt: Prompt) -> npt.NDArray[np.float32]:
        """Visual tokens [B, F*V, D] of F frames each -> logits [B, levels], the best first. Raises DeviceError."""
        ...
