"""An artifact in, `encode` and `decode` on onnxruntime and a CPU out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qalign_fast.artifact.manifest import Artifact
from qalign_fast.artifact.prompt_tensors import load_constants, load_tail
from qalign_fast.engines.contract import Tokens
from qalign_fast.engines.onnx_session import CPU, open_sessions
from qalign_fast.families.prompt import Prompt

_CHUNK = 16  # pictures in a run of the vision graph; the memory of attention's scores grows with it


class OnnxEngine:
    """An artifact's graphs on onnxruntime's CPU provider. Tokens are numpy arrays, float32 [B, V, D]."""

    device = "cpu"
    kernels = "onnxruntime"
    in_flight = 1

    def __init__(self, artifact: Artifact, graphs: str = "onnx", threads: int | None = None) -> None:
        """`graphs`: the engine whose graphs of the manifest are run. `threads` None: every core.

        Raises ArtifactError and DeviceError as `open_sessions` does, ArtifactError as `load_constants` does, and
        MissingExtraError if onnxruntime is not installed.
        """
        manifest = artifact.manifest
        self.name = graphs
        self.family, self.config, self.precision = manifest.family, manifest.config, manifest.precision
        self.prompts, self.tail = manifest.task_prompts, load_tail(artifact)
        self._constants = load_constants(artifact)
        self._encoder, self._decoder = open_sessions(artifact, graphs, CPU, threads)
        self._inputs = [value.name for value in self._decoder.get_inputs()]  # tokens, then a prompt's constants

    def encode(self, pixels: npt.NDArray[np.uint8]) -> Tokens:
        """As `Engine.encode`, in runs of a few pictures."""
        runs = [
            self._encoder.run(None, {"pixels": pixels[start : start + _CHUNK]})[0]
            for start in range(0, len(pixels), _CHUNK)
        ]
        return runs[0] if len(runs) == 1 else np.concatenate(runs)

    def decode(self, tokens: Tokens, prompt: Prompt) -> npt.NDArray[np.float32]:
        """As `Engine.decode`."""
        feed = dict(zip(self._inputs, (tokens, *self._constants[prompt.name]), strict=True))
        logits: npt.NDArray[np.float32] = self._decoder.run(None, feed)[0]
        return logits
