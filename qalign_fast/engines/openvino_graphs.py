"""An artifact's graphs in, checked models that OpenVINO compiled for a CPU out.

OpenVINO 2026.4 reads all operators of the graphs but two, of int8: its QuantizeLinear takes no scale for each row where
the number of rows is open, and its MatMulIntegerToFloat subtracts zero points in 8 bits, where they wrap. OpenVINO lets
its users translate an operator, and these two are translated here, to what onnxruntime documents. Rows are rounded to
8 bits as there. The products of all precisions are in float32, and weights of 8 and 4 bits stay that small in memory.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from qalign_fast.artifact.manifest import Artifact
from qalign_fast.engines.forks import keep_in_forks
from qalign_fast.engines.graph_parts import check_interface, graph_paths
from qalign_fast.errors import ArtifactError, DeviceError, MissingExtraError
from qalign_fast.families.schema import Values
from qalign_kernels.cores import cores

_TELEMETRY = "openvino_telemetry"


def import_openvino() -> ModuleType:
    """openvino without its telemetry, which it would send when it is imported, without a question.

    openvino does without the package that sends, where there is none. So that package is hidden while openvino is
    imported. A process that has imported openvino itself has decided for itself.

    Raises MissingExtraError if openvino is not installed.
    """
    with _hidden(_TELEMETRY):
        try:
            import openvino
            import openvino.frontend.onnx
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                "engine openvino runs on OpenVINO, which is not installed: pip install 'qalign-fast[openvino]'"
            ) from error
    module: ModuleType = openvino
    return module


def compile_graphs(artifact: Artifact, threads: int | None = None) -> tuple[Any, Any]:
    """The compiled encoder and decoder, from the graphs that the manifest has for engine onnx.

    `threads` None: every core.

    Raises ArtifactError for files that cannot be read or do not fit the manifest, DeviceError for graphs that OpenVINO
    does not compute, and MissingExtraError if it is not installed.
    """
    encoder, decoder = (_compile(artifact, path, part, threads) for part, path in graph_paths(artifact, "onnx").items())
    return encoder, decoder


def refusals() -> tuple[type[Exception], ...]:
    """The exceptions of OpenVINO."""
    kinds = vars(import_openvino().frontend).values()
    return (RuntimeError, *(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Exception)))


def cause(error: Exception) -> str:
    """The last line of an error of OpenVINO, which says what is wrong; those before it say where in its sources."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


def settings(threads: int | None) -> dict[str, str]:
    """The settings of every model: the same scores on every CPU, and cores that other processes may use too.

    OpenVINO would compute in bfloat16 where the CPU has AMX or AVX512-BF16, and round rows to 8 bits in groups of 32
    before a product with weights of 8 or 4 bits where it has VNNI.
    """
    return {
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(threads or cores()),
        "ENABLE_CPU_PINNING": "NO",
    }


@contextmanager
def _hidden(name: str) -> Iterator[None]:
    """Within, `import name` raises ModuleNotFoundError."""
    before = sys.modules.get(name)
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before


def _compile(artifact: Artifact, path: Path, part: str, threads: int | None) -> Any:
    model = _read(path)
    check_interface(artifact, path, part, _interface(model.inputs), _interface(model.outputs))
    try:
        compiled = _core().compile_model(model, "CPU", settings(threads))
    except refusals() as error:
        raise DeviceError(f"engine openvino: cannot compile {path} ({cause(error)})") from error
    keep_in_forks(compiled)
    return compiled


def _read(path: Path) -> Any:
    """The graph as OpenVINO's own. Weights in files of their own are mapped."""
    reader = _reader()
    try:
        model = reader.load(os.fspath(path))
    except refusals() as error:
        raise ArtifactError(f"{path}: OpenVINO cannot load it ({cause(error)})") from error
    try:
        return reader.convert(model)
    except refusals() as error:
        raise DeviceError(
            f"engine openvino: does not have what {path} computes ({cause(error)}); engine onnx runs such graphs"
        ) from error


_TYPES = {"u8": "tensor(uint8)", "f32": "tensor(float)"}  # OpenVINO's name -> ONNX's


def _interface(ports: Sequence[Any]) -> Values:
    return {
        port.any_name: (
            _TYPES.get(kind := port.element_type.get_type_name(), kind),
            tuple(size.get_length() if size.is_static else None for size in port.partial_shape),
        )
        for port in ports
    }


@cache
def _core() -> Any:
    core = import_openvino().Core()
    keep_in_forks(core)
    return core


@cache
def _reader() -> Any:
    """OpenVINO's reader of ONNX, and of nothing else, with the translations of this file."""
    frontend = import_openvino().frontend
    reader = frontend.FrontEndManager().load_by_framework("onnx")
    reader.add_extension(frontend.onnx.ConversionExtension("QuantizeLinear", _quantize))
    reader.add_extension(frontend.onnx.ConversionExtension("MatMulIntegerToFloat", "com.microsoft", _product))
    return reader


def _quantize(node: Any) -> Any:
    """ONNX's QuantizeLinear along axis 0: x [N, K], a scale and a zero point uint8 for each row -> uint8 [N, K]."""
    ops = import_openvino().opset13
    if (axis := node.get_attribute("axis")) != 0:
        raise NotImplementedError(f"QuantizeLinear along axis {axis}; expected 0")
    x, scale, zero = (node.get_input(i) for i in range(3))
    scale, zero = (ops.unsqueeze(one, ops.constant(1)) for one in (scale, ops.convert(zero, "f32")))
    rounded = ops.round(ops.divide(x, scale), "half_to_even")
    return ops.convert(ops.clamp(ops.add(rounded, zero), 0.0, 255.0), "u8").outputs()


def _product(node: Any) -> Any:
    """com.microsoft's MatMulIntegerToFloat: uint8 x [..., K], int8 w [K, N], scales of both, x's zero point -> float32.

    The scale of w stands beside it, by which OpenVINO knows weights that may stay in 8 bits.
    """
    ops = import_openvino().opset13
    x, w, x_scale, w_scale, zero = (node.get_input(i) for i in range(5))
    rows = ops.subtract(ops.convert(x, "f32"), ops.convert(zero, "f32"))
    weight = ops.multiply(ops.convert(w, "f32"), w_scale)
    return ops.multiply(ops.matmul(rows, weight, False, False), x_scale).outputs()
