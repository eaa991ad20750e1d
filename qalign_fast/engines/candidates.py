"""Chooses the engine and the place for an artifact, from the device and the engine that the user asked for.

Each way to run an artifact is a candidate. It has a name, a place, an expected speed, a loader, and perhaps an
objection: the reason why it cannot run here. Candidates come in order of preference, and the first one without an
objection is chosen. If every candidate has one, the error lists them all. A new engine is one more candidate.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import TypeAlias

from qalign_fast.artifact.manifest import Artifact, Manifest
from qalign_fast.engines.contract import Engine
from qalign_fast.engines.options import LoadOptions
from qalign_fast.errors import DeviceError, MissingExtraError, QAlignError
from qalign_kernels.contract.precisions import PRECISIONS

ENGINES = ("native", "torch", "onnx")  # that an artifact's weights may be for, beside those for one kind of GPU
Load: TypeAlias = Callable[[Artifact, str, int | None], Engine]  # takes an artifact, a place and a number of threads


@dataclass(frozen=True)
class Candidate:
    """One way to run an artifact."""

    engine: str  # one of `engines_of`, "openvino" or "tensorrt"
    place: str  # "cpu", "mps" or "cuda:N"
    loader: Load = field(repr=False)
    kind: str  # the name that a family's `Family.engines` must hold
    why: str = ""  # what computes, how fast that is expected to be, and where that is known from
    objection: QAlignError | None = None  # why it cannot run here

    def load(self, artifact: Artifact, threads: int | None) -> Engine:
        """The engine, ready to run. `threads` None: every core.

        Raises ArtifactError for weights that cannot be read, DeviceError for what the device cannot do, and
        MissingExtraError for a package that is not installed.
        """
        return self.loader(artifact, self.place, threads)

    def __str__(self) -> str:
        return f"{self.engine} on {self.why or self.place}"


def choose(artifact: Artifact, options: LoadOptions) -> Candidate:
    """The first candidate without an objection, among those for the device and the engine that were asked for.

    If there is none, raises DeviceError or MissingExtraError, whose message has the objection to each candidate.
    """
    refused = []
    for candidate in candidates(artifact, options):
        if candidate.objection is None:
            return candidate
        refused.append(candidate.objection)
    first, *others = refused
    raise type(first)("; or ".join(map(str, refused))) if others else first


def candidates(artifact: Artifact, options: LoadOptions) -> Iterator[Candidate]:
    """All candidates for the device and the engine that were asked for, the one that is preferred first."""
    has = engines_of(artifact.manifest) if options.engine == "auto" else (options.engine,)
    for candidate in _candidates(artifact, options.device, has):
        yield _if_the_family_has_it(candidate, artifact.manifest)


def engines_of(manifest: Manifest) -> tuple[str, ...]:
    """The engines that read what an artifact has. Two engines run torch weights: one without torch, and torch."""
    has = tuple(manifest.engines)
    return (*has, "native") if "torch" in has and "native" in manifest.family.engines else has


def by_name_of(manifest: Manifest) -> tuple[str, ...]:
    """The engines that read what an artifact has, and run only where they are named."""
    return ("openvino", "tensorrt") if "onnx" in manifest.engines else ()


def weights_of(engine: str) -> str:
    """The engine under whose name a manifest lists the weights that an engine reads."""
    return {"native": "torch", "openvino": "onnx", "tensorrt": "onnx"}.get(engine, engine)


def _candidates(artifact: Artifact, device: str, has: tuple[str, ...]) -> Iterator[Candidate]:
    if has == ("openvino",):
        yield _openvino_on(device)
    elif device == "auto" and has != ("tensorrt",):
        yield from _on_gpus_found(artifact.manifest, has)
        yield from _on_cpu(artifact.manifest, has)
    elif device == "cpu" and has != ("tensorrt",):
        yield from _on_cpu(artifact.manifest, has)
    elif has == ("native",):
        error = DeviceError(f"device {device!r}: engine native runs on a CPU; engine torch runs on other devices too")
        yield Candidate("native", device, _load_native, "native", objection=error)
    elif "torch" in has:
        yield _torch_on(device, artifact.manifest)
    else:
        yield _graphs_on(device, artifact, has)


def _on_gpus_found(manifest: Manifest, has: tuple[str, ...]) -> Iterator[Candidate]:
    """The engines for a GPU that find one here, as far as that is known before anything is loaded."""
    if "torch" in has and find_spec("torch") and driver_is_there():
        place = _place_of_torch("auto", manifest)
        if place != "cpu":
            why = f"{place}, the first CUDA device that its kernels run on"
            yield Candidate("torch", place, _load_torch_cuda, "torch-cuda", why)
    if "onnx-cuda" in has and find_spec("onnxruntime"):
        from qalign_fast.engines.onnx_session import has_cuda

        if has_cuda():
            yield Candidate("onnx-cuda", "cuda:0", _onnx("onnx-cuda"), "onnx-cuda")


def _on_cpu(manifest: Manifest, has: tuple[str, ...]) -> Iterator[Candidate]:
    """The engines on a CPU, the fastest first. Their speeds are looked up only if kinds of weights compete."""
    from qalign_kernels.cpu import native

    kernels = native.chosen()
    order: tuple[str, ...] = ("native", "torch") if kernels else ("torch", "native")
    expected = ""
    if {"native", "torch"} & set(has) and {"onnx", "onnx-cuda"} & set(has):
        from qalign_fast.engines.engine_times import rank

        order, reason = rank(manifest.precision, kernels)
        expected = f" ({reason})"
    by = {"native": _native_on_cpu, "torch": _torch_on_cpu}
    for name in sorted(has, key=lambda name: (*order, name).index(name)):
        if name in by:
            yield by[name](manifest, kernels, expected)
        else:
            yield Candidate(name, "cpu", _onnx(name), "onnx", f"onnxruntime{expected}", _not_installed(name))


def _native_on_cpu(manifest: Manifest, kernels: str | None, expected: str) -> Candidate:
    from qalign_kernels.cpu.table import KINDS

    on = (f"native {kernels}" if kernels else "plain numpy") + expected
    has = [one.name for one in PRECISIONS.values() if one.weight in KINDS]
    error = None
    if manifest.precision not in has:
        error = DeviceError(f"engine native has no kernels for {manifest.precision}; it has: {', '.join(has)}")
    return Candidate("native", "cpu", _load_native, "native", on, error)


def _torch_on_cpu(manifest: Manifest, kernels: str | None, expected: str) -> Candidate:
    on = (f"native {kernels}" if kernels else "plain torch") + expected
    return Candidate("torch", "cpu", _load_torch, "torch", on, _not_installed("torch"))


def _openvino_on(device: str) -> Candidate:
    """OpenVINO's graphs for GPUs and NPUs were not tried: they would compute in float16."""
    objection: QAlignError | None = _not_installed("openvino")
    if device not in ("auto", "cpu"):
        objection = DeviceError(f"device {device!r}: engine openvino runs on a CPU; engine torch runs on other devices")
    return Candidate("openvino", "cpu", _load_openvino, "openvino", "OpenVINO", objection)


def _torch_on(device: str, manifest: Manifest) -> Candidate:
    """The torch engine on the device that was named, never on another."""
    try:
        require_torch()
        place = _place_of_torch(device, manifest)
    except QAlignError as error:
        return Candidate("torch", device, _load_torch, "torch", objection=error)
    if place.startswith("cuda"):
        return Candidate("torch", place, _load_torch_cuda, "torch-cuda")
    return Candidate("torch", place, _load_torch, "torch")


def _graphs_on(device: str, artifact: Artifact, has: tuple[str, ...]) -> Candidate:
    """Graphs on a GPU. onnxruntime's kernels there are for floats, so graphs of 8 and 4 bits run on a CPU only."""
    precision = artifact.manifest.precision
    in_floats = precision in ("fp32", "fp16")
    name = next((name for name in ("onnx-cuda", "onnx", "tensorrt") if name in has), has[0])
    loader, kind = (_load_tensorrt, "tensorrt") if name == "tensorrt" else (_onnx(name), "onnx-cuda")
    if device.startswith(("cuda", "auto")) and ("onnx-cuda" in has or in_floats):
        return Candidate(name, device if ":" in device else "cuda:0", loader, kind)
    places = ("an NVIDIA GPU" if "tensorrt" in has else "a CPU or an NVIDIA GPU") if in_floats else "a CPU"
    error = DeviceError(
        f"device {device!r}: {artifact.directory}'s {precision} graphs run on {places}; "
        "`qalign-fast export --engine torch` makes weights for any device"
    )
    return Candidate(name, device, loader, kind, objection=error)


def _if_the_family_has_it(candidate: Candidate, manifest: Manifest) -> Candidate:
    if candidate.kind in manifest.family.engines:
        return candidate
    has = ", ".join(manifest.family.engines)
    error = DeviceError(
        f"models of the family {manifest.family.name} have no engine {candidate.kind}; they have: {has}"
    )
    return replace(candidate, objection=candidate.objection or error)


def _not_installed(engine: str) -> MissingExtraError | None:
    """The objection to an engine whose package is not installed.

    The package is only looked for: importing it takes a second, and another candidate may be chosen.
    """
    packages = {"torch": ("torch", "torch"), "openvino": ("openvino", "openvino")}
    package, extra = packages.get(engine, ("onnxruntime", "cpu"))
    if find_spec(package):
        return None
    return MissingExtraError(
        f"an artifact's engine {engine} runs on {package}, which is not installed: pip install 'qalign-fast[{extra}]'"
    )


def driver_is_there() -> bool:
    """Whether NVIDIA's driver is installed, as far as can be told without torch, whose import takes seconds."""
    if "torch" in sys.modules:
        return True
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def _place_of_torch(device: str, manifest: Manifest) -> str:
    from qalign_fast.engines.devices import choose_device, needs_of

    return choose_device(device, needs_of(manifest.precision))


def require_torch() -> None:
    """Raises MissingExtraError where torch cannot be imported."""
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"this model runs on torch, which is not installed: pip install 'qalign-fast[torch]' ({error})"
        ) from error


def _load_native(artifact: Artifact, place: str, threads: int | None) -> Engine:
    from qalign_fast.engines.native_cpu import load_native_engine

    return load_native_engine(artifact, threads)


def _load_torch(artifact: Artifact, place: str, threads: int | None) -> Engine:
    require_torch()
    from qalign_fast.engines.torch_cpu import load_folded

    return load_folded(artifact, threads, device=place)


def _load_torch_cuda(artifact: Artifact, place: str, threads: int | None) -> Engine:
    from qalign_fast.engines.torch_cuda import load_cuda

    return load_cuda(artifact, place, threads)


def _onnx(graphs: str) -> Load:
    """The loader of the graphs that the manifest has for the engine `graphs`."""

    def load(artifact: Artifact, place: str, threads: int | None) -> Engine:
        if place == "cpu":
            from qalign_fast.engines.onnx_cpu import OnnxEngine

            return OnnxEngine(artifact, graphs, threads)
        from qalign_fast.engines.onnx_cuda import OnnxGpuEngine
        from qalign_fast.engines.onnx_session import cuda

        return OnnxGpuEngine(artifact, graphs, cuda(place))

    return load


def _load_openvino(artifact: Artifact, place: str, threads: int | None) -> Engine:
    from qalign_fast.engines.openvino_cpu import OpenvinoEngine

    return OpenvinoEngine(artifact, threads)


def _load_tensorrt(artifact: Artifact, place: str, threads: int | None) -> Engine:
    from qalign_fast.engines.onnx_cuda import OnnxGpuEngine
    from qalign_fast.engines.onnx_session import tensorrt

    return OnnxGpuEngine(artifact, "onnx", tensorrt(place, artifact.manifest.precision))
