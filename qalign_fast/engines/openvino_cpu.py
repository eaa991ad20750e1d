"""An artifact in, `encode` and `decode` on OpenVINO and a CPU out."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from qalign_fast.artifact.manifest import Artifact
from qalign_fast.artifact.prompt_tensors import load_constants, load_tail
from qalign_fast.engines.contract import Tokens
from qalign_fast.engines.forks import keep_in_forks
from qalign_fast.engines.openvino_graphs import cause, compile_graphs, refusals
from qalign_fast.errors import DeviceError
from qalign_fast.families.prompt import Prompt

_CHUNK = 16  # pictures in a run of the vision graph; the memory of attention's scores grows with it


class OpenvinoEngine:
    """An artifact's graphs for engine onnx, on OpenVINO. Tokens are numpy arrays, float32 [B, V, D]."""

    name = "openvino"
    device = "cpu"
    kernels = "OpenVINO"
    in_flight = 1

    def __init__(self, artifact: Artifact, threads: int | None = None) -> None:
        """`threads` None: every core. Raises as `compile_graphs` does, and ArtifactError as `load_constants` does."""
        manifest = artifact.manifest
        self.family, self.config, self.precision = manifest.family, manifest.config, manifest.precision
        self.prompts, self.tail = manifest.task_prompts, load_tail(artifact)
        self._constants = load_constants(artifact)
        encoder, decoder = compile_graphs(artifact, threads)
        self._encoder, self._decoder = _Graph(encoder), _Graph(decoder)

    def encode(self, pixels: npt.NDArray[np.uint8]) -> Tokens:
        """As `Engine.encode`, in runs of a few pictures."""
        runs = [self._encoder.run(pixels[start : start + _CHUNK]) for start in range(0, len(pixels), _CHUNK)]
        return runs[0] if len(runs) == 1 else np.concatenate(runs)

    def decode(self, tokens: Tokens, prompt: Prompt) -> npt.NDArray[np.float32]:
        """As `Engine.decode`."""
        return self._decoder.run(tokens, *self._constants[prompt.name])


class _Graph:
    """A compiled graph, and the requests that nobody uses now: each call needs one of its own."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._free: list[Any] = []

    def run(self, *inputs: Any) -> npt.NDArray[Any]:
        """The graph's one output."""
        request = self._request()
        try:
            found = request.infer([np.ascontiguousarray(x) for x in inputs], share_inputs=True)
        except refusals() as error:
            raise DeviceError(
                f"device 'cpu': {len(inputs[0])} at a time failed on OpenVINO ({cause(error)}); a smaller batch may do"
            ) from error
        self._free.append(request)
        output: npt.NDArray[Any] = found[0]
        return output

    def _request(self) -> Any:
        try:
            return self._free.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
            keep_in_forks(request)
            return request
