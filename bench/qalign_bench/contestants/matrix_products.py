"""A precision and a device in, the matrix products that libraries and our kernels have for it, on random data, out."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from qalign_fast.engines.onnx_session import import_onnxruntime
from qalign_kernels.contract.precisions import PRECISIONS
from qalign_kernels.contract.weight import Weight
from qalign_kernels.cpu.ops import load_native

Product: TypeAlias = Callable[[], object]
Shape: TypeAlias = tuple[int, int, int]  # rows, inputs, outputs
Maker: TypeAlias = Callable[[Shape], Product]


def products(precision: str, device: str, instruction_set: str | None = None) -> dict[str, Maker]:
    """By name, what makes each product of a shape. `precision`: one that products are computed in, so not int4.

    For 16-bit floats on a CPU float32's products are among them, for a CPU without such instructions widens the
    numbers. For 8-bit floats, which every CPU widens, they are all. The instruction set is that of our kernels.
    onnxruntime cannot be held to one and is left out where one is given.
    """
    dtype = dtype_of(precision)
    if device.startswith("cuda"):
        return _on_cuda(dtype, device)
    if _is_8_bit_float(dtype):
        return products("fp32", device, instruction_set)
    found = {} if precision in ("int8", "fp32") else products("fp32", device, instruction_set)
    if precision == "int8":
        found["torch._int_mm"] = _int_mm(device)
    else:
        found[f"torch.matmul, {precision}"] = _matmul(dtype, device)
    if ops := load_native(instruction_set):
        found[f"qalign_kernels, {precision} weights"] = lambda shape: _native(ops, dtype, shape)
    if instruction_set is None and precision in ("int8", "fp32") and find_spec("onnxruntime"):
        name = {"int8": "onnxruntime, u8 x s8", "fp32": "onnxruntime, fp32"}[precision]
        found[name] = lambda shape: onnxruntime_product(precision, shape)
    return found


def dtype_of(precision: str) -> torch.dtype:
    """The dtype of a precision's weights."""
    dtype: torch.dtype = getattr(torch, PRECISIONS[precision].weight)
    return dtype


def _is_8_bit_float(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point and dtype.itemsize == 1


def _on_cuda(dtype: torch.dtype, device: str) -> dict[str, Maker]:
    if dtype == torch.int8:
        return {"torch._int_mm": _int_mm(device)}
    if _is_8_bit_float(dtype):
        return {"torch._scaled_mm": lambda shape: _scaled_mm(dtype, shape, device)}
    return {"torch.matmul": _matmul(dtype, device)}


def _int_mm(device: str) -> Maker:
    def make(shape: Shape) -> Product:
        x, w = _bytes(shape[:2], device), _bytes(shape[:0:-1], device).t()
        return lambda: torch._int_mm(x, w)

    return make


def _bytes(shape: tuple[int, ...], device: str = "cpu") -> Tensor:
    return torch.randint(-127, 128, shape, dtype=torch.int8, device=device)


def _matmul(dtype: torch.dtype, device: str) -> Maker:
    def make(shape: Shape) -> Product:
        rows, inputs, outputs = shape
        x = torch.randn(rows, inputs, device=device).to(dtype)
        w = torch.randn(outputs, inputs, device=device).to(dtype).t()
        return lambda: x @ w

    return make


def _scaled_mm(dtype: torch.dtype, shape: Shape, device: str) -> Product:
    """With one scale for all numbers. A scale for each row and channel costs a little more."""
    rows, inputs, outputs = shape
    x = torch.randn(rows, inputs, device=device).to(dtype)
    w = torch.randn(outputs, inputs, device=device).to(dtype).t()
    one = torch.ones((), device=device)
    return lambda: torch._scaled_mm(x, w, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)


def _native(ops: Any, dtype: torch.dtype, shape: Shape) -> Product:
    """Our own linear of float32 rows; rounding the rows is part of it."""
    rows, inputs, outputs = shape
    x = torch.randn(rows, inputs)
    if dtype == torch.int8:
        weight = Weight("", _bytes((outputs, inputs)), torch.rand(outputs))
    else:
        weight = Weight("", torch.randn(outputs, inputs).to(dtype))
    return lambda: ops.linear(x, weight)


def onnxruntime_product(precision: str, shape: Shape) -> Product:
    """onnxruntime's product with a constant, as an artifact's linears are, in "int8" or "fp32".

    On a CPU without VNNI its product of bytes saturates, which is its fastest way.
    """
    from onnx import TensorProto, helper, numpy_helper

    ort, (rows, inputs, outputs) = import_onnxruntime(), shape
    kind, result, name = TensorProto.FLOAT, TensorProto.FLOAT, "MatMul"
    if precision == "int8":
        kind, result, name = TensorProto.UINT8, TensorProto.INT32, "MatMulInteger"
        x = np.random.default_rng(0).integers(0, 256, (rows, inputs), np.uint8)
        w = _bytes((inputs, outputs)).numpy()
    else:
        x, w = torch.randn(rows, inputs).numpy(), torch.randn(inputs, outputs).numpy()
    graph = helper.make_graph(
        [helper.make_node(name, ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", kind, x.shape)],
        [helper.make_tensor_value_info("y", result, (rows, outputs))],
        [numpy_helper.from_array(w, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, torch.get_num_threads()
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": x})
