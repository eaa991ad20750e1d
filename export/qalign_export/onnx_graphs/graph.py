"""Operators and weights in, an ONNX file out: a small builder.

Graphs are built, not traced: names stay readable, weights are written as they come, and nothing depends on how the
tracer of some torch release sees the model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 18
IR_VERSION = 9  # the oldest onnxruntime that we allow reads it
_ALIGN = 4096  # external tensors begin on a page, so that a runtime can map them
_INLINE = 1024  # bytes; smaller constants stay in the graph
_CONTRIB = "com.microsoft"  # onnxruntime's own operators


class Graph:
    """An ONNX graph under construction. A value is its name; every method that adds one returns the name."""

    def __init__(self, name: str, tensors: Mapping[str, np.ndarray], data_file: Path | None = None) -> None:
        """`tensors`: the folded ones, each read when it is used. With a data_file they are written there as they come,
        instead of into the model file, which holds 2 GiB at most.
        """
        self.name = name
        self.tensors = tensors
        self.data_file = data_file
        self._data: IO[bytes] | None = data_file.open("wb") if data_file else None
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._count: Counter[str] = Counter()
        self._domains: set[str] = set()
        self.scope = ""  # begins the names of nodes that are added

    def input(self, name: str, dtype: int, shape: list[int | str]) -> str:
        """An input of the graph; a word in its shape is a size that may vary."""
        self._inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, value: str, name: str, dtype: int, shape: list[int | str]) -> None:
        """Makes the value an output of the graph, under another name."""
        self._nodes.append(helper.make_node("Identity", [value], [name], name=name))
        self._outputs.append(helper.make_tensor_value_info(name, dtype, shape))

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """A node with one output, of one of ONNX's operators."""
        return self.ops(kind, 1, *inputs, **attributes)[0]

    def ops(self, kind: str, outputs: int, *inputs: str, unused: Container[int] = (), **attributes: Any) -> list[str]:
        """A node with several outputs. Those in `unused` are not computed and have no name."""
        base = self._fresh(kind)
        names = [base] if outputs == 1 else ["" if i in unused else f"{base}.{i}" for i in range(outputs)]
        self._nodes.append(helper.make_node(kind, list(inputs), names, name=base, **attributes))
        return names

    def const(self, value: Any, dtype: Any = np.int64) -> str:
        """A small constant; the same one twice is stored once."""
        array = np.asarray(value, dtype)
        name = f"const.{array.dtype}.{'x'.join(map(str, array.shape))}.{array.ravel().tolist()}"
        if name not in self._initializers:
            self._initializers[name] = numpy_helper.from_array(array, name)
        return name

    def weight(self, name: str) -> str:
        """A folded tensor, under its own name."""
        return self.array(name, self.tensors[name])

    def array(self, name: str, array: np.ndarray) -> str:
        """An initializer; stored once, however often it is asked for."""
        if name not in self._initializers:
            array = np.ascontiguousarray(array)
            inline = self._data is None or array.nbytes < _INLINE
            self._initializers[name] = numpy_helper.from_array(array, name) if inline else self._external(name, array)
        return name

    @property
    def uses_contrib(self) -> bool:
        """Whether the graph has onnxruntime's own operators by now; a graph without them runs anywhere."""
        return bool(self._domains)

    def contrib(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """As `op`, of onnxruntime's own operators."""
        return self.contribs(kind, 1, *inputs, **attributes)[0]

    def contribs(self, kind: str, outputs: int, *inputs: str, **attributes: Any) -> list[str]:
        """As `ops`, of onnxruntime's own operators."""
        self._domains.add(_CONTRIB)
        return self.ops(kind, outputs, *inputs, domain=_CONTRIB, **attributes)

    def save(self, path: Path) -> None:
        """Writes the model file and closes the data file. If onnx.checker refuses the file, that is our mistake."""
        graph = helper.make_graph(
            self._nodes, self.name, self._inputs, self._outputs, list(self._initializers.values())
        )
        opsets = [helper.make_opsetid("", OPSET), *(helper.make_opsetid(domain, 1) for domain in self._domains)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="qalign-fast")
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
