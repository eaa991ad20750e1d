"""An upstream checkpoint in, `encode` and `decode` on torch out: the float32 reference on a CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from qalign_fast.engine import Tokens
from qalign_fast.prompt import MEDIA, TASKS, Prompt, prompt
from qalign_fast.weights import load_model

_CHUNK = 8  # pictures a run of the vision tower


class TorchEngine:
    name = "torch"
    device = "cpu"
    precision = "fp32"

    def __init__(self, checkpoint: Path, threads: int | None = None) -> None:
        """Raises CheckpointError. `threads` is torch's own setting and so holds for the whole process."""
        if threads is not None:
            torch.set_num_threads(threads)
        self._model = load_model(checkpoint)
        self.config = self._model.config
        self.prompts = tuple(prompt(task, medium) for task in TASKS for medium in MEDIA)
        self._constants: dict[Prompt, tuple[torch.Tensor, torch.Tensor]] = {}

    @torch.inference_mode()
    def encode(self, pixels: npt.NDArray[np.uint8]) -> Tokens:
        chunks = torch.from_numpy(np.ascontiguousarray(pixels)).split(_CHUNK)
        return torch.cat([self._model.encode(chunk) for chunk in chunks])

    @torch.inference_mode()
    def decode(self, tokens: Tokens, prompt: Prompt) -> npt.NDArray[np.float32]:
        if prompt not in self._constants:
            decoder = self._model.decoder
            self._constants[prompt] = (decoder.prefix(prompt.prefix), decoder.suffix(prompt.suffix))
        logits: npt.NDArray[np.float32] = self._model.decoder(tokens, *self._constants[prompt]).numpy()
        return logits
