"""An artifact in, `encode` and `decode` on onnxruntime out."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file

from qalign_fast.artifact import PROMPTS, Artifact
from qalign_fast.engine import Tokens
from qalign_fast.errors import ArtifactError, MissingExtraError, one_line
from qalign_fast.prompt import Prompt

_CHUNK = 16  # pictures a run of the vision graph; attention's scores are what grows with it


class OnnxEngine:
    name = "onnx"
    device = "cpu"

    def __init__(self, artifact: Artifact, threads: int | None = None) -> None:
        """Raises ArtifactError for files onnxruntime refuses, MissingExtraError where it is not installed."""
        manifest = artifact.manifest
        self.precision, self.config = manifest.precision, manifest.config
        self.prompts = tuple(entry.prompt for entry in manifest.prompts)
        if "onnx" not in manifest.engines:
            raise ArtifactError(f"{artifact.directory}: has no ONNX graphs; it has: {', '.join(manifest.engines)}")
        parts = manifest.engines["onnx"]
        self._constants = self._load_constants(artifact)
        self._encoder = _session(artifact.path(parts["encode"]), threads)
        self._decoder = _session(artifact.path(parts["decode"]), threads)

    def encode(self, pixels: npt.NDArray[np.uint8]) -> Tokens:
        runs = [
            self._encoder.run(None, {"pixels": pixels[start : start + _CHUNK]})[0]
            for start in range(0, len(pixels), _CHUNK)
        ]
        return runs[0] if len(runs) == 1 else np.concatenate(runs)

    def decode(self, tokens: Tokens, prompt: Prompt) -> npt.NDArray[np.float32]:
        prefix, suffix = self._constants[prompt.name]
        feed = {"visual_tokens": tokens, "prefix_key_values": prefix, "suffix_embeds": suffix}
        logits: npt.NDArray[np.float32] = self._decoder.run(None, feed)[0]
        return logits

    def _load_constants(self, artifact: Artifact) -> dict[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
        path = artifact.path(PROMPTS)
        try:
            tensors = load_file(path)
            return {e.prompt.name: (tensors[e.prefix], tensors[e.suffix]) for e in artifact.manifest.prompts}
        except (SafetensorError, OSError, KeyError) as error:
            raise ArtifactError(f"{path}: does not hold the manifest's prompts ({error})") from error


def import_onnxruntime() -> ModuleType:
    """onnxruntime with its telemetry off, which since 1.29 is on by default and is decided at import."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "an artifact runs on onnxruntime, which is not installed: pip install 'qalign-fast[cpu]'"
        ) from error
    module: ModuleType = onnxruntime
    return module


def _session(path: Path, threads: int | None) -> Any:
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors only
    if threads is not None:
        options.intra_op_num_threads = threads
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except (
        state.Fail,
        state.InvalidGraph,
        state.InvalidProtobuf,
        state.InvalidArgument,
        state.NoSuchFile,
        RuntimeError,
    ) as error:
        raise ArtifactError(f"{path}: onnxruntime cannot load it ({one_line(error)})") from error
