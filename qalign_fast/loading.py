"""A model reference in, an engine out: finds or fetches the directory and picks the engine that can run it."""

from __future__ import annotations

import re
from pathlib import Path

from qalign_fast.artifact import EMBEDDED, MANIFEST, open_artifact
from qalign_fast.engine import Engine
from qalign_fast.errors import ArtifactError, DeviceError, MissingExtraError, one_line

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_HUB_FILES = ("*.json", "*.safetensors", "*.bin", "*.onnx", "*.onnx_data")


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

    An artifact runs on onnxruntime, a checkpoint on torch. Raises ArtifactError or CheckpointError for a model that
    cannot be read, DeviceError for an engine, device or precision it does not have, MissingExtraError
    for one not installed.
    """
    directory = find_model(model)
    if threads is not None and threads < 1:
        raise DeviceError(f"threads is {threads}; expected 1 or more")
    if device not in ("auto", "cpu"):
        raise DeviceError(f"device {device!r} is not available in this version; available: auto, cpu")
    artifact = (directory / MANIFEST).is_file()
    has = "onnx" if artifact else "torch"
    if engine not in ("auto", has):
        hint = "" if artifact else "; `qalign-fast export` makes an artifact for onnx"
        raise DeviceError(f"{directory}: has no weights for engine {engine!r}; available: {has}{hint}")
    if artifact:
        from qalign_fast.onnx_engine import OnnxEngine

        loaded = open_artifact(directory, verify=verify)
        _check_precision(precision, loaded.manifest.precision, directory)
        return OnnxEngine(loaded, threads)
    if not (directory / "config.json").is_file():
        raise ArtifactError(f"{directory}: neither an artifact ({MANIFEST}) nor a checkpoint (config.json)")
    _check_precision(precision, "fp32", directory)
    try:
        from qalign_fast.torch_engine import TorchEngine
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"a checkpoint runs on torch, which is not installed: pip install 'qalign-fast[torch]' ({error})"
        ) from error
    return TorchEngine(directory, threads)


def find_model(model: str | Path | None) -> Path:
    """The directory of a model, fetched from the Hub if it is an id. Raises ArtifactError, MissingExtraError."""
    if model is None:
        return EMBEDDED
    if Path(model).is_dir():
        return Path(model)
    if Path(model).exists():
        raise ArtifactError(f"{model}: a file; expected an artifact or checkpoint directory, or a Hub id")
    if isinstance(model, str) and _HUB_ID.fullmatch(model):
        return _fetch(model)
    raise ArtifactError(f"{model}: no such directory, and not a Hub id (owner/name)")


def _fetch(hub_id: str) -> Path:
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{hub_id}: no such directory; to fetch it from the Hub: pip install 'qalign-fast[torch]'"
        ) from error
    try:
        return Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=list(_HUB_FILES)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        cause = one_line(error)
        raise ArtifactError(
            f"{hub_id}: no such directory, and it could not be fetched from the Hub ({cause})"
        ) from error


def _check_precision(asked: str | None, has: str, directory: Path) -> None:
    if asked not in (None, has):
        raise DeviceError(f"{directory}: has no precision {asked!r}; available: {has}")
