"""A model reference in, an engine out: finds or fetches the directory and picks the engine that can run it."""

from __future__ import annotations

import re
from pathlib import Path

from qalign_fast.artifact.manifest import EMBEDDED, MANIFEST, Artifact, is_artifact, open_artifact
from qalign_fast.engines.choose import check_device, choose, import_torch_engine
from qalign_fast.engines.contract import Engine
from qalign_fast.errors import ArtifactError, DeviceError

CHECKPOINT_PRECISIONS = ("fp32", "bnb-int8", "bnb-nf4")  # what a checkpoint is loaded in; artifacts have their own
_HUB_ID = r"[A-Za-z0-9][\w.-]*/[\w.-]+"


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
    weights, or with graphs for CUDA, where something is installed that runs them there, else the CPU. There, an
    artifact that has several engines' weights runs on the one that was measured to be the fastest on such a CPU
    (`engine_times.rank` is the rule, and `qalign-fast info` says which one it is). A checkpoint runs on torch, in
    float32 where "auto" is the CPU, or with `precision` "bnb-int8" or "bnb-nf4" on bitsandbytes' linears, where "auto"
    is the first CUDA device that they run on.

    `engine` is "auto", one that the artifact has ("onnx", "onnx-cuda" for graphs made for a GPU, "torch"), or
    "tensorrt", which runs "onnx" graphs in float32 or float16.

    Raises ArtifactError or CheckpointError for a model that cannot be read, DeviceError for an engine, device or
    precision that the model or the machine does not have, MissingExtraError for one not installed.
    """
    directory = find_model(model)
    if threads is not None and threads < 1:
        raise DeviceError(f"threads is {threads}; expected 1 or more")
    check_device(device)
    if is_artifact(directory):
        artifact = open_artifact(directory, verify=verify, remembered=True)
        return _load_artifact(artifact, device, precision, engine, threads)
    if not (directory / "config.json").is_file():
        raise ArtifactError(f"{directory}: neither an artifact ({MANIFEST}) nor a checkpoint (config.json)")
    hint = "; `qalign-fast export` makes an artifact for onnx"
    _check_choice("weights for engine", engine, ("torch",), directory, hint)
    _check_choice("precision", precision, CHECKPOINT_PRECISIONS, directory, "; `qalign-fast export` makes others")
    torch_engine = import_torch_engine("a checkpoint")
    chosen = "fp32" if precision in (None, "auto") else precision
    loaded: Engine = torch_engine.load_checkpoint(directory, threads, _place_checkpoint(device, chosen), chosen)
    return loaded


def _place_checkpoint(device: str, precision: str) -> str:
    """Where a checkpoint is to run: "cpu", "mps" or "cuda:N"."""
    from qalign_fast.engines.bitsandbytes_linears import PRECISIONS
    from qalign_fast.engines.devices import choose_device

    if precision in PRECISIONS:
        return choose_device(device, PRECISIONS[precision].needs)
    # float32 at full size is 33 GB: more than most GPUs have, so that one is taken only where it is named
    return "cpu" if device == "auto" else choose_device(device)


def _load_artifact(artifact: Artifact, device: str, precision: str | None, engine: str, threads: int | None) -> Engine:
    manifest, directory = artifact.manifest, artifact.directory
    if not manifest.engines:
        raise ArtifactError(f"{directory / MANIFEST}: has no engine's weights")
    _check_choice("precision", precision, (manifest.precision,), directory)
    runnable = (*manifest.engines, *(["tensorrt"] if "onnx" in manifest.engines else []))
    _check_choice("weights for engine", engine, runnable, directory)
    chosen = choose(artifact, device, engine)
    if chosen.engine != "torch":
        return _load_onnx(artifact, chosen.engine, chosen.place, threads)
    if chosen.place.startswith("cuda"):
        from qalign_fast.engines.torch_cuda import load_cuda

        return load_cuda(artifact, chosen.place, threads)
    loaded: Engine = import_torch_engine("this artifact").load_folded(artifact, threads, device=chosen.place)
    return loaded


def _load_onnx(artifact: Artifact, engine: str, place: str, threads: int | None) -> Engine:
    if place == "cpu":
        from qalign_fast.engines.onnx_cpu import OnnxEngine

        return OnnxEngine(artifact, engine, threads)
    from qalign_fast.engines.onnx_cuda import OnnxGpuEngine
    from qalign_fast.engines.onnx_session import cuda, tensorrt

    if engine != "tensorrt":
        return OnnxGpuEngine(artifact, engine, cuda(place))
    return OnnxGpuEngine(artifact, "onnx", tensorrt(place, artifact.manifest.precision))


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
    if isinstance(model, str) and re.fullmatch(_HUB_ID, model):
        from qalign_fast.hub import fetch

        return fetch(model)
    raise ArtifactError(f"{model}: no such directory, and not a Hub id (owner/name)")


def _check_choice(what: str, asked: str | None, has: tuple[str, ...], directory: Path, hint: str = "") -> None:
    if asked not in (None, "auto", *has):
        raise DeviceError(f"{directory}: has no {what} {asked!r}; available: {', '.join(has)}{hint}")
