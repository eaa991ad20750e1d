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

_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d{1,3})?")
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

    `device` is "cpu", "cuda", "cuda:1" (and so on), "mps", or "auto": the first CUDA device for an artifact with torch
    weights where there is one that can run them, else the CPU. There, an artifact that has both engines' weights runs
    on torch where the C++ kernels were built, which is faster, else on onnxruntime. A checkpoint runs on torch.

    Raises ArtifactError or CheckpointError for a model that cannot be read, DeviceError for an engine, device or
    precision that the model or the machine does not have, MissingExtraError for one not installed.
    """
    directory = find_model(model)
    if threads is not None and threads < 1:
        raise DeviceError(f"threads is {threads}; expected 1 or more")
    if not _DEVICE.fullmatch(device):
        raise DeviceError(f"device {device!r} is not one; there are: auto, cpu, cuda, cuda:1 and so on, mps")
    if is_artifact(directory):
        artifact = open_artifact(directory, verify=verify, remembered=True)
        return _load_artifact(artifact, device, precision, engine, threads)
    if not (directory / "config.json").is_file():
        raise ArtifactError(f"{directory}: neither an artifact ({MANIFEST}) nor a checkpoint (config.json)")
    hint = "; `qalign-fast export` makes an artifact for onnx"
    _check_choice("weights for engine", engine, ("torch",), directory, hint)
    _check_choice("precision", precision, ("fp32",), directory, "; `qalign-fast export` makes others")
    torch_engine = _torch_engine("a checkpoint")
    # float32 at full size is 33 GB: more than most GPUs have, so that one is taken only where it is named
    place = "cpu" if device == "auto" else _choose_device(device)
    loaded: Engine = torch_engine.load_checkpoint(directory, threads, place)
    return loaded


def _load_artifact(artifact: Artifact, device: str, precision: str | None, engine: str, threads: int | None) -> Engine:
    manifest, directory = artifact.manifest, artifact.directory
    if not manifest.engines:
        raise ArtifactError(f"{directory / MANIFEST}: has no engine's weights")
    _check_choice("precision", precision, (manifest.precision,), directory)
    _check_choice("weights for engine", engine, tuple(manifest.engines), directory)
    place = _place(artifact, device, engine)
    if place != "cpu":
        return _load_on_device(artifact, place, threads)
    if engine == "onnx" or (engine == "auto" and "onnx" in manifest.engines and not _prefers_torch(manifest)):
        from qalign_fast.onnx_engine import OnnxEngine

        return OnnxEngine(artifact, threads)
    loaded: Engine = _torch_engine("this artifact").load_packed(artifact, threads)
    return loaded


def _place(artifact: Artifact, device: str, engine: str) -> str:
    """Where the artifact is to run: "cpu", "mps" or "cuda:N"."""
    has_torch = "torch" in artifact.manifest.engines and engine != "onnx"
    if device == "cpu" or (device == "auto" and not (has_torch and find_spec("torch"))):
        return "cpu"
    if not has_torch:
        what = "engine onnx runs" if engine == "onnx" else f"{artifact.directory} has weights for onnx alone, which run"
        raise DeviceError(
            f"device {device!r}: {what} on a CPU; available: auto, cpu; `qalign-fast export --engine torch` makes "
            "weights for GPUs"
        )
    _torch_engine("this artifact")
    return _choose_device(device)


def _choose_device(device: str) -> str:
    from qalign_fast.devices import choose_device

    return choose_device(device)


def _load_on_device(artifact: Artifact, place: str, threads: int | None) -> Engine:
    if place == "mps":
        loaded: Engine = _torch_engine("this artifact").load_packed(artifact, threads, device=place)
        return loaded
    from qalign_fast.cuda_engine import load_cuda

    return load_cuda(artifact, place, threads)


def _prefers_torch(manifest: Manifest) -> bool:
    if "torch" not in manifest.engines or find_spec("torch") is None:
        return False
    from qalign_kernels import native

    return native.is_built()


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
