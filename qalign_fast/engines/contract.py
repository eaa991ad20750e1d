"""The contract of every engine: `encode` turns pixels into visual tokens, `decode` tokens and a prompt into logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from qalign_fast.families.family import Family, Tail
from qalign_fast.families.prompt import Prompt


class Tokens(Protocol):
    """Visual tokens [B, V, D] on the engine's own device: a numpy array, a torch tensor, or what behaves like one.

    They are for `decode` of the engine that made them: whole, sliced by picture, or reshaped into clips.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    @property
    def reshape(self) -> Callable[..., Any]: ...

    def __getitem__(self, some: Any, /) -> Any: ...


class Engine(Protocol):
    """A loaded model on a device, ready to run. Several threads may call it at the same time."""

    name: str  # "native", "torch", "onnx", "onnx-cuda", "openvino"
    device: str  # "cpu", "mps", "cuda:N"
    precision: str  # a name of `qalign_kernels.contract.precisions`, or of bitsandbytes'
    kernels: str  # what computes: "plain torch", "native" with an instruction set, "Triton" with its attention, ...
    in_flight: int  # how many batches at a time, from several threads, make it faster
    family: Family
    config: Any  # the family's sizes, which are `qalign_fast.families.family.Sizes`
    prompts: tuple[Prompt, ...]  # those that it can answer
    tail: Tail  # what the family's `answer` computes with on the host; none for most families

    def encode(self, pixels: npt.NDArray[np.uint8]) -> Tokens:
        """Pixels uint8 [B, H, W, 3], made by the rule `config.pixels` -> visual tokens [B, V, D].

        An engine whose `takes_tensors` is true also takes a torch tensor on its device. What made the tensor is done,
        or queued on the stream that is current in this thread. An engine without that attribute takes arrays alone.

        Raises DeviceError for a batch that the device has no room for, or otherwise cannot run.
        """
        ...

    def decode(self, tokens: Tokens, prompt: Prompt) -> npt.NDArray[np.float32]:
        """Visual tokens [B, F*V, D] of F frames each -> logits float32 [B, levels], the best level first.

        What a family's head gives beside them stands after them. `prompt` is one of `prompts`, or of their parts.
        Raises DeviceError as `encode` does.
        """
        ...
