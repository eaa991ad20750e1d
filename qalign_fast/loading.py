"""A model reference in, an engine out: finds or fetches the directory and picks the engine that can run it."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from qalign_fast.artifact import EMBEDDED, MANIFEST, Artifact, Manifest, is_artifact, open_artifact
from qalign_fast.engine import Engine
from qalign_fast.errors import ArtifactError, DeviceError, MissingExtraError
from qalign_fast.hub import fetch

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def load_engine(
    model: str | Path | None = None,
    *,
    device: str = "auto",
    precision: str | None = None,
    engine: str = "auto",
    threads: int | None = None,
    verify: bool = True,
) -> Engine:
    """The engine for a model: None (the embedded one), an artifact or checkpoint directory, or a Hub id.

    An artifact that has both engines' weights runs on torch where the C++ kernels were built, which is faster on a CPU,
    else on onnxruntime; a checkpoint runs on torch. Raises ArtifactError or
    CheckpointError for a model that cannot be read, DeviceError for an engine, device or precision it does not have,
    MissingExtraError for one not installed.
    """
    directory = find_model(model)
    if threads is not None and threads < 1:
        raise DeviceError(f"threads is {threads}; expected 1 or more")
    if device not in ("auto", "cpu"):
        raise DeviceError(f"device {device!r} is not available in this version; available: auto, cpu")
    if is_artifact(directory):
        return _load_artifact(open_artifact(directory, verify=verify, remembered=True), precision, engine, threads)
    if not (directory / "config.json").is_file():
        raise ArtifactError(f"{directory}: neither an artifact ({MANIFEST}) nor a checkpoint (config.json)")
    hint = "; `qalign-fast export` makes an artifact for onnx"
    _check_choice("weights for engine", engine, ("torch",), directory, hint)
    _check_choice("precision", precision, ("fp32",), directory, "; `qalign-fast export` makes others")
    loaded: Engine = _torch_engine("a checkpoint").load_checkpoint(directory, threads)
    return loaded


def _load_artifact(artifact: Artifact, precision: str | None, engine: str, threads: int | None) -> Engine:
    manifest, directory = artifact.manifest, artifact.directory
    if not manifest.engines:
        raise ArtifactError(f"{directory / MANIFEST}: has no engine's weights")
    _check_choice("precision", precision, (manifest.precision,), directory)
    _check_choice("weights for engine", engine, tuple(manifest.engines), directory)
    if engine == "onnx" or (engine == "auto" and "onnx" in manifest.engines and not _prefers_torch(manifest)):
        from qalign_fast.onnx_engine import OnnxEngine

        return OnnxEngine(artifact, threads)
    loaded: Engine = _torch_engine("this artifact").load_packed(artifact, threads)
    return loaded


def _prefers_torch(manifest: Manifest) -> bool:
    if "torch" not in manifest.engines or find_spec("torch") is None:
        return False
    from qalign_kernels import native

    return native.library_path().exists()


def _torch_engine(what: str) -> ModuleType:
    try:
        from qalign_fast import torch_engine
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{what} runs on torch, which is not installed: pip install 'qalign-fast[torch]' ({error})"
        ) from error
    return torch_engine


def find_model(model: str | Path | None) -> Path:
    """The directory of a model, fetched from the Hub if it is an id. Raises ArtifactError, MissingExtraError."""
    if model is None:
        return EMBEDDED
    try:
        if Path(model).is_dir():
            return Path(model)
        if Path(model).exists():
            raise ArtifactError(f"{model}: a file; expected an artifact or checkpoint directory, or a Hub id")
    except OSError as error:
        raise ArtifactError(f"{str(model)[:256]}: {error.strerror}") from error
    if isinstance(model, str) and _HUB_ID.fullmatch(model):
        return fetch(model)
    raise ArtifactError(f"{model}: no such directory, and not a Hub id (owner/name)")


def _check_choice(what: str, asked: str | None, has: tuple[str, ...], directory: Path, hint: str = "") -> None:
    if asked not in (None, "auto", *has):
        raise DeviceError(f"{directory}: has no {what} {asked!r}; available: {', '.join(has)}{hint}")
