"""An artifact's graphs and an execution provider of onnxruntime in, checked sessions out."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from qalign_fast.artifact.manifest import Artifact
from qalign_fast.engines.forks import keep_in_forks
from qalign_fast.engines.graph_parts import check_interface, graph_paths
from qalign_fast.errors import ArtifactError, DeviceError, MissingExtraError, one_line
from qalign_fast.families.schema import Values
from qalign_kernels.cache_folder import cache_folder
from qalign_kernels.cores import cores

_CPU = "CPUExecutionProvider"
_CUDA = "CUDAExecutionProvider"
_TENSORRT = "TensorrtExecutionProvider"


@dataclass(frozen=True)
class Provider:
    """An execution provider of onnxruntime and its device."""

    name: str  # as onnxruntime calls it
    device: str = "cpu"  # or "cuda:N"
    options: Mapping[str, str] = field(default_factory=dict)
    helper: str | None = None  # another provider, which runs the operators that this one does not have

    @property
    def place(self) -> tuple[str, int]:
        """The device as onnxruntime names it: kind and number."""
        kind, _, index = self.device.partition(":")
        return kind, int(index or 0)


CPU = Provider(_CPU)


def cuda(device: str) -> Provider:
    """The CUDA provider: with graphs of kernels, float32 sums inside norms, and no TF32 in float32 products."""
    options = {"enable_cuda_graph": "1", "enable_skip_layer_norm_strict_mode": "1", "use_tf32": "0"}
    return Provider(_CUDA, device, options)


def tensorrt(device: str, precision: str) -> Provider:
    """The TensorRT provider. For each size of batch it builds for minutes, and keeps the result in our cache folder."""
    cache = cache_folder() / "tensorrt"
    options = {
        "trt_fp16_enable": "1" if precision == "fp16" else "0",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(cache),
    }
    return Provider(_TENSORRT, device, options, helper=_CUDA)


def import_onnxruntime() -> ModuleType:
    """onnxruntime without its telemetry, which is on by default since 1.29 and is decided at import.

    Raises MissingExtraError if it is not installed.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "an artifact runs on onnxruntime, which is not installed: pip install 'qalign-fast[cpu]'"
        ) from error
    module: ModuleType = onnxruntime
    return module


def has_cuda() -> bool:
    """Whether the installed onnxruntime is built for CUDA. It does not say whether there is a device."""
    return _CUDA in import_onnxruntime().get_available_providers()


def refusals() -> tuple[type[Exception], ...]:
    """The exceptions of onnxruntime. Each of its status codes has a class of its own, derived from Exception alone."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    kinds = [kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    return (RuntimeError, *kinds)


def cause(error: Exception) -> str:
    """The message of CUDA inside an error of onnxruntime, if there is one, else the error's first line."""
    said = re.search(r"(CUDA|CUDNN|CUBLAS) failure \d+: [^;]+", str(error))
    return said.group().strip() if said else one_line(error)


def require_provider(provider: Provider) -> None:
    """Raises DeviceError if this onnxruntime does not have the provider, or finds no device for it.

    Without this check onnxruntime would leave out a provider that it does not have, and run everything on the CPU.
    """
    ort = import_onnxruntime()
    has = ort.get_available_providers()
    if provider.name not in has:
        kinds = ", ".join(name.removesuffix("ExecutionProvider") for name in has)
        raise DeviceError(
            f"device {provider.device!r}: the installed onnxruntime {ort.__version__} has no {provider.name}, only "
            f"{kinds}; `pip uninstall onnxruntime` and `pip install 'qalign-fast[gpu]'` bring it; available: cpu"
        )
    if hasattr(ort, "preload_dlls"):  # loads CUDA's libraries that pip installed; prints those that it does not find
        with contextlib.redirect_stdout(sys.stderr):
            ort.preload_dlls()
    try:
        ort.OrtValue.ortvalue_from_shape_and_type([1], "uint8", *provider.place)
    except refusals() as error:
        raise DeviceError(
            f"device {provider.device!r}: onnxruntime cannot use it ({cause(error)}); its messages, if any, say which "
            "library is missing; available: cpu"
        ) from error


def open_sessions(artifact: Artifact, engine: str, provider: Provider, threads: int | None = None) -> tuple[Any, Any]:
    """The sessions of the encoder and the decoder, from the graphs that the manifest has for the engine of that name.

    Raises ArtifactError for files that onnxruntime refuses or that do not fit the manifest, and DeviceError if the
    provider cannot run a whole graph.
    """
    encoder, decoder = (
        _open(artifact, path, part, provider, threads) for part, path in graph_paths(artifact, engine).items()
    )
    return encoder, decoder


def _open(artifact: Artifact, path: Path, part: str, provider: Provider, threads: int | None) -> Any:
    session = _session(path, provider, threads)
    check_interface(artifact, path, part, _interface(session.get_inputs()), _interface(session.get_outputs()))
    return session


def _interface(values: Sequence[Any]) -> Values:
    return {v.name: (v.type, tuple(size if isinstance(size, int) else None for size in v.shape)) for v in values}


# An ONNX model: y = MatMulInteger(x, w) of uint8 x [2, 2] and int8 w [2, 1].
_PRODUCT = bytes.fromhex(
    "08083a5c0a180a01780a0177120179220d4d61744d756c496e74656765721201675a130a0178120e0a0c080212080a0208020a0208025a130a"
    "0177120e0a0c080312080a0208020a02080162130a0179120e0a0c080612080a0208020a02080142040a00100d"
)


@cache
def saturates() -> bool:
    """Whether onnxruntime's sums of two u8 x s8 products overflow 16 bits here, as they do on x64 without VNNI.

    It is tried out, because not every system tells whether a CPU has VNNI, and onnxruntime chooses its own kernels.
    """
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = ort.InferenceSession(_PRODUCT, options, providers=[_CPU])
    [found] = session.run(None, {"x": np.full((2, 2), 255, np.uint8), "w": np.full((2, 1), 127, np.int8)})
    return bool((found != 2 * 255 * 127).any())


# Threads that wait for the next operator spin. They take cores that the other graph and decoders of pictures need.
# Measured on two cores: without spinning, the mini model scores files at 1.6 times the speed, and its graphs load
# sooner. On many cores, where waking threads takes longer, nothing was measured.
_FEW = 4


def session_options(provider: Provider, threads: int | None = None) -> Any:
    """The options of every session. They keep results right, and keep operators on the provider that was asked for."""
    options = import_onnxruntime().SessionOptions()
    options.log_severity_level = 3  # errors only
    if threads is not None:
        options.intra_op_num_threads = threads
    if provider.name == _CPU and (threads or cores()) <= _FEW:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if provider.name == _CPU:
        if saturates():
            options.add_session_config_entry("session.x64quantprecision", "1")  # u8 x u8 is exact, at half the speed
    else:  # without this, operators that the provider has no kernel for would run on the CPU without a word
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return options


def _session(path: Path, provider: Provider, threads: int | None) -> Any:
    ort, options = import_onnxruntime(), session_options(provider, threads)
    device = {} if provider.name == _CPU else {"device_id": str(provider.place[1])}
    names = [name for name in (provider.name, provider.helper) if name]
    settings = [{**device, **(provider.options if name == provider.name else {})} for name in names]
    try:
        session = ort.InferenceSession(str(path), options, providers=names, provider_options=settings)
    except refusals() as error:
        if provider.name == _CPU:
            raise ArtifactError(f"{path}: onnxruntime cannot load it ({one_line(error)})") from error
        raise DeviceError(_refused(path, provider, cause(error))) from error
    if session.get_providers()[0] != provider.name:
        raise DeviceError(_refused(path, provider, f"it took {session.get_providers()[0]} instead"))
    keep_in_forks(session)
    return session


def _refused(path: Path, provider: Provider, why: str) -> str:
    return (
        f"device {provider.device!r}: onnxruntime does not run {path.name} wholly on {provider.name} ({why}); "
        "`qalign-fast export --engine onnx-cuda --precision fp16` makes graphs for it; available: cpu"
    )
