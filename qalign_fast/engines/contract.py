"""The contract every engine keeps: `encode` pixels to visual tokens, `decode` tokens and a prompt to logits."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from qalign_fast.families.mplug_owl2.sizes import ModelConfig
from qalign_fast.families.prompt import Prompt

# [B, Q+1, D] on the engine's own device: a numpy array or a torch tensor. Slicing and reshape work on both.
Tokens: TypeAlias = Any


class Engine(Protocol):
    name: str
    device: str
    precision: str
    kernels: str  # what computes: "plain torch", "native" and an instruction set, "Triton" and whose attention, ...
    in_flight: int  # batches that several threads may have under way with profit; all engines may be called by several
    config: ModelConfig
    prompts: tuple[Prompt, ...]  # what it can answer

    def encode(self, pixels: npt.NDArray[np.uint8]) -> Tokens:
        """uint8 [B, S, S, 3] -> visual tokens [B, Q+1, D]."""
        ...

    def decode(self, tokens: Tokens, prompt: Prompt) -> npt.NDArray[np.float32]:
        """Visual tokens [B, F*(Q+1), D] of F frames each -> logits [B, 5], excellent first."""
        ...
