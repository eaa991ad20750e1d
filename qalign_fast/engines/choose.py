"""An artifact, a device and an engine asked for in, the engine that is to run and where out, and why that one.

The candidates come in order of preference, each with what speaks against it; the first that nothing does is taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType

from qalign_fast.artifact.manifest import Artifact, Manifest
from qalign_fast.errors import DeviceError, MissingExtraError, QAlignError

_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d{1,3})?")


@dataclass(frozen=True)
class Candidate:
    engine: str  # one of the artifact's, or "tensorrt"
    place: str  # "cpu", "mps" or "cuda:N"
    why: str = ""  # what it computes with, and why it comes where it does
    why_not: QAlignError | None = None

    def __str__(self) -> str:
        return f"{self.engine} on {self.why or self.place}"


def choose(artifact: Artifact, device: str, engine: str) -> Candidate:
    """Which of the artifact's engines is to run, or "tensorrt", and where. `device` and `engine` as in `load_engine`.

    Raises DeviceError for what is no device's name, and it or MissingExtraError where something speaks against all.
    """
    check_device(device)
    has = tuple(artifact.manifest.engines) if engine == "auto" else (engine,)
    refused = []
    for candidate in _candidates(artifact, device, has):
        if candidate.why_not is None:
            return candidate
        refused.append(candidate)
    raise _refusal(refused)


def check_device(name: str) -> None:
    """Raises DeviceError for what is no device's name, on any machine."""
    if not _DEVICE.fullmatch(name):
        raise DeviceError(f"device {name!r} is not one; there are: auto, cpu, cuda, cuda:1 and so on, mps")


def _candidates(artifact: Artifact, device: str, has: tuple[str, ...]) -> Iterator[Candidate]:
    if device == "auto" and has != ("tensorrt",):
        yield from _found_gpus(artifact.manifest, has)
        yield from _on_cpu(artifact.manifest, has)
    elif device == "cpu" and has != ("tensorrt",):
        yield from _on_cpu(artifact.manifest, has)
    elif "torch" in has:
        yield _torch_on(device, artifact.manifest)
    else:
        yield _graphs_on(device, artifact, has)


def _found_gpus(manifest: Manifest, has: tuple[str, ...]) -> Iterator[Candidate]:
    """The engines that are made for a GPU and have one here, as far as is known before anything is loaded."""
    if "torch" in has and find_spec("torch"):
        place = _choose_device("auto", manifest)
        if place != "cpu":
            yield Candidate("torch", place, f"{place}, the first CUDA device that its kernels run on")
    if "onnx-cuda" in has and find_spec("onnxruntime"):
        from qalign_fast.engines.onnx_session import has_cuda

        if has_cuda():
            yield Candidate("onnx-cuda", "cuda:0")


def _on_cpu(manifest: Manifest, has: tuple[str, ...]) -> Iterator[Candidate]:
    """The fastest first, which is a question only where torch is among them."""
    order: tuple[str, ...] = ("onnx", "onnx-cuda")
    why = torch_on = ""
    if "torch" in has:
        from qalign_fast.engines.engine_times import rank
        from qalign_kernels.cpu import native

        kernels = native.chosen()
        torch_on = f"native {kernels}" if kernels else "plain torch"
        if len(has) > 1:
            order, reason = rank(manifest.precision, kernels)
            why = f" ({reason})"
    for name in sorted(has, key=lambda name: (*order, name).index(name)):
        yield Candidate(name, "cpu", (torch_on if name == "torch" else "onnxruntime") + why, _not_installed(name))


def _torch_on(device: str, manifest: Manifest) -> Candidate:
    """On a device that was named, and on no other."""
    try:
        import_torch_engine("this artifact")
        return Candidate("torch", _choose_device(device, manifest))
    except QAlignError as error:
        return Candidate("torch", device, why_not=error)


def _graphs_on(device: str, artifact: Artifact, has: tuple[str, ...]) -> Candidate:
    """Graphs on a GPU. Its kernels are for floats; ours of 8 and 4 bits, and all of them elsewhere, are a CPU's."""
    precision = artifact.manifest.precision
    in_floats = precision in ("fp32", "fp16")
    name = next((name for name in ("onnx-cuda", "onnx", "tensorrt") if name in has), has[0])
    if device.startswith(("cuda", "auto")) and ("onnx-cuda" in has or in_floats):
        return Candidate(name, device if ":" in device else "cuda:0")
    places = ("an NVIDIA GPU" if "tensorrt" in has else "a CPU or an NVIDIA GPU") if in_floats else "a CPU"
    error = DeviceError(
        f"device {device!r}: {artifact.directory}'s {precision} graphs run on {places}; "
        "`qalign-fast export --engine torch` makes weights for any device"
    )
    return Candidate(name, device, why_not=error)


def _not_installed(engine: str) -> MissingExtraError | None:
    """Looked for and not imported: that is a second's work, and may be another candidate's turn."""
    package, extra = ("torch", "torch") if engine == "torch" else ("onnxruntime", "cpu")
    if find_spec(package):
        return None
    return MissingExtraError(
        f"an artifact's engine {engine} runs on {package}, which is not installed: pip install 'qalign-fast[{extra}]'"
    )


def _refusal(refused: list[Candidate]) -> QAlignError:
    """One that says what speaks against each."""
    first, *others = (candidate.why_not for candidate in refused)
    assert first is not None
    return type(first)("; or ".join(map(str, (first, *others)))) if others else first


def _choose_device(device: str, manifest: Manifest) -> str:
    from qalign_fast.engines.devices import choose_device, needs_of

    return choose_device(device, needs_of(manifest.precision))


def import_torch_engine(what: str) -> ModuleType:
    """qalign_fast.engines.torch_cpu. Raises MissingExtraError where torch is not installed."""
    try:
        from qalign_fast.engines import torch_cpu
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{what} runs on torch, which is not installed: pip install 'qalign-fast[torch]' ({error})"
        ) from error
    return torch_cpu
