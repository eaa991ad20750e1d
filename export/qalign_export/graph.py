"""Operators and weights in, an ONNX file out: the small builder both graphs are written with.

Graphs are built, not traced: names stay readable, weights are written as they come, and nothing depends on how a
tracer of a given torch release sees the model.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 18
IR_VERSION = 9  # what the oldest onnxruntime we allow reads
_ALIGN = 4096  # external tensors begin on a page, so that a runtime can map them
_INLINE = 1024  # bytes; smaller constants stay in the graph


class Graph:
    """Values are their names; every method that makes one returns its name."""

    def __init__(self, name: str, data_file: Path | None = None) -> None:
        """With a data_file, weights go there as they come, instead of into the model file (2 GiB at most)."""
        self.name = name
        self.data_file = data_file
        self._data: IO[bytes] | None = data_file.open("wb") if data_file else None
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._count: Counter[str] = Counter()
        self.scope = ""

    def input(self, name: str, dtype: int, shape: list[int | str]) -> str:
        self._inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, value: str, name: str, dtype: int, shape: list[int | str]) -> None:
        self._nodes.append(helper.make_node("Identity", [value], [name], name=name))
        self._outputs.append(helper.make_tensor_value_info(name, dtype, shape))

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        return self.ops(kind, 1, *inputs, **attributes)[0]

    def ops(self, kind: str, outputs: int, *inputs: str, **attributes: Any) -> list[str]:
        """A node with several outputs."""
        base = self._fresh(kind)
        names = [base] if outputs == 1 else [f"{base}.{i}" for i in range(outputs)]
        self._nodes.append(helper.make_node(kind, list(inputs), names, name=base, **attributes))
        return names

    def const(self, value: Any, dtype: Any = np.int64) -> str:
        """A small constant; the same one twice is stored once."""
        array = np.asarray(value, dtype)
        name = f"const.{array.dtype}.{'x'.join(map(str, array.shape))}.{array.ravel().tolist()}"
        if name not in self._initializers:
            self._initializers[name] = numpy_helper.from_array(array, name)
        return name

    def weight(self, name: str, array: np.ndarray) -> str:
        """A weight, stored under its own name."""
        name = self.scope + name
        assert name not in self._initializers
        array = np.ascontiguousarray(array)
        if self._data is None or array.nbytes < _INLINE:
            self._initializers[name] = numpy_helper.from_array(array, name)
        else:
            self._initializers[name] = self._external(name, array)
        return name

    def linear(self, x: str, name: str, weight: np.ndarray, bias: np.ndarray | None = None) -> str:
        """x [..., K] times weight [N, K] transposed, plus bias [N]."""
        y = self.op("MatMul", x, self.weight(f"{name}.weight", weight.T))
        return y if bias is None else self.op("Add", y, self.weight(f"{name}.bias", bias))

    def save(self, path: Path) -> None:
        """Writes the model file, and closes the data file. What onnx.checker refuses is our mistake."""
        graph = helper.make_graph(
            self._nodes, self.name, self._inputs, self._outputs, list(self._initializers.values())
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="qalign-fast"
        )
        if self._data is not None:
            self._data.close()
        path.write_bytes(model.SerializeToString(deterministic=True))
        onnx.checker.check_model(str(path), full_check=True)

    def _external(self, name: str, array: np.ndarray) -> onnx.TensorProto:
        assert self._data is not None and self.data_file is not None
        self._data.write(b"\0" * (-self._data.tell() % _ALIGN))
        offset = self._data.tell()
        self._data.write(array.data)
        tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(array.dtype), dims=array.shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", self.data_file.name), ("offset", offset), ("length", array.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        return tensor

    def _fresh(self, kind: str) -> str:
        base = self.scope + kind
        self._count[base] += 1
        return f"{base}_{self._count[base]}"
