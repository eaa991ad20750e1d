"""An artifact in, `encode` and `decode` on onnxruntime out."""

from __future__ import annotations

import mmap
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from qalign_fast.artifact import MANIFEST, Artifact
from qalign_fast.config import ModelConfig
from qalign_fast.constants import load_constants
from qalign_fast.engine import Tokens
from qalign_fast.errors import ArtifactError, MissingExtraError, one_line
from qalign_fast.levels import LEVELS
from qalign_fast.prompt import Prompt

_CHUNK = 16  # pictures a run of the vision graph; attention's scores are what grows with it


class OnnxEngine:
    name = "onnx"
    device = "cpu"
    kernels = "onnxruntime"

    def __init__(self, artifact: Artifact, threads: int | None = None) -> None:
        """Raises ArtifactError for files onnxruntime refuses, MissingExtraError where it is not installed."""
        manifest = artifact.manifest
        self.precision, self.config = manifest.precision, manifest.config
        self.prompts = tuple(entry.prompt for entry in manifest.prompts)
        if "onnx" not in manifest.engines:
            raise ArtifactError(
                f"{artifact.directory}: has no ONNX graphs; it has: {', '.join(manifest.engines) or 'no engine'}"
            )
        parts = manifest.engines["onnx"]
        if parts.keys() != {"encode", "decode"}:
            has = ", ".join(parts) or "none"
            raise ArtifactError(f"{artifact.path(MANIFEST)}: engine onnx has the parts {has}; expected encode, decode")
        self._constants = load_constants(artifact)
        self._encoder, self._decoder = (_open(artifact, parts[part], part, threads) for part in ("encode", "decode"))

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


def _open(artifact: Artifact, name: str, part: str, threads: int | None) -> Any:
    """A session of one of the artifact's graphs, once it is known to read listed files only and to fit the engine."""
    path = artifact.path(name)
    for data in _data_files(path):
        if str(PurePosixPath(name).parent / data) not in artifact.manifest.files:
            raise ArtifactError(f"{path}: reads {data!r}, which is not among the manifest's files")
    session = _session(path, threads)
    found = _interface(session.get_inputs()), _interface(session.get_outputs())
    expected = _expected(artifact.manifest.config)[part]
    if found != expected:
        raise ArtifactError(f"{path}: has the inputs and outputs {found}; the manifest's sizes ask {expected}")
    return session


_Values: TypeAlias = Mapping[str, tuple[str, tuple[int | None, ...]]]  # name -> (type, shape, None where it may vary)


def _expected(config: ModelConfig) -> dict[str, tuple[_Values, _Values]]:
    side, width, heads = config.pixels.side, config.decoder.width, config.decoder.heads
    real = "tensor(float)"
    pixels: _Values = {"pixels": ("tensor(uint8)", (None, side, side, 3))}
    prompt: _Values = {
        "visual_tokens": (real, (None, None, width)),
        "prefix_key_values": (real, (config.decoder.layers, 2, None, heads, width // heads)),
        "suffix_embeds": (real, (None, width)),
    }
    return {
        "encode": (pixels, {"visual_tokens": (real, (None, config.abstractor.tokens, width))}),
        "decode": (prompt, {"logits": (real, (None, len(LEVELS)))}),
    }


def _interface(values: Sequence[Any]) -> _Values:
    return {v.name: (v.type, tuple(size if isinstance(size, int) else None for size in v.shape)) for v in values}


_LOCATION = b"\x0a\x08location\x12"  # protobuf: a map entry whose key is "location"; its value's length follows


def _data_files(graph: Path) -> Iterator[str]:
    """The files beside a graph that it names as its weights'. onnxruntime itself refuses those outside its folder."""
    if not graph.stat().st_size:
        return
    with graph.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = data.find(_LOCATION)
        while at >= 0:
            start = at + len(_LOCATION) + 1
            yield data[start : start + sum(data[start - 1 : start])].decode("utf-8", "replace")
            at = data.find(_LOCATION, start)


def _saturates() -> bool:
    """Whether u8 x s8 products overflow 16 bits here: on x64 without VNNI, as far as the system tells."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    try:
        return "vnni" not in Path("/proc/cpuinfo").read_text()
    except OSError:
        return True


def _session(path: Path, threads: int | None) -> Any:
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors only
    if _saturates():
        options.add_session_config_entry("session.x64quantprecision", "1")  # u8 x u8: right, at half the speed
    if threads is not None:
        options.intra_op_num_threads = threads
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    # each of its status codes is a class of its own, derived from Exception alone
    kinds = [kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    refusals: tuple[type[Exception], ...] = (RuntimeError, *kinds)
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except refusals as error:
        raise ArtifactError(f"{path}: onnxruntime cannot load it ({one_line(error)})") from error
