"""`Operations` on the C++ kernels: float32 arrays in a CPU's memory in, the structs of a call filled, arrays out.

`ops.py` gives it torch's memory, `numpy_ops.py` numpy's. Both are given the same bits.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from ctypes import byref
from typing import Any

from qalign_kernels.contract.operations import Activation, Operations
from qalign_kernels.contract.weight import Array, Weight
from qalign_kernels.cpu.table import Attention, AttentionByModality, Linear


class NativeCalls(Operations):
    """The operations in C++, for the kind of array that a subclass knows the memory of."""

    def __init__(self, table: Any, exact: bool = True) -> None:
        """`table`: as `find_table` returns it. `exact`: whether attention must be exact, see its contract."""
        self._table, self._exact = table, exact
        self.name = f"native {table.name.decode()}"

    @abstractmethod
    def empty(self, shape: Sequence[int]) -> Array:
        """A new float32 array, its values unset."""

    @abstractmethod
    def solid(self, x: Array) -> Array:
        """The same values in row-major order without gaps: x itself if it lies so."""

    @abstractmethod
    def address(self, x: Array) -> int:
        """Where its first value is."""

    @abstractmethod
    def strides(self, x: Array) -> Sequence[int]:
        """Of each dimension, in values."""

    @abstractmethod
    def kind(self, weight: Array) -> int:
        """Its dtype's number in `table.KINDS`."""

    def linear(self, x: Array, w: Weight, *, activation: Activation = None, residual: Array | None = None) -> Array:
        x = self.solid(x)
        inputs, outputs = x.shape[-1], w.weight.shape[0]
        out = self.empty((*x.shape[:-1], outputs))
        if residual is not None:
            residual = self.solid(residual)
        pointers = self._addresses(x, w.weight, w.scale, w.groups, w.bias, residual)
        rows = math.prod(x.shape[:-1])
        args = self.kind(w.weight), rows, inputs, outputs, *pointers, activation == "quick_gelu", self.address(out)
        self._table.linear(byref(Linear(*args)))
        return self._made(out)

    def layer_norm(self, x: Array, gain: Array, bias: Array, eps: float) -> Array:
        x, out = self.solid(x), self.empty(x.shape)
        rows, width = math.prod(x.shape[:-1]), x.shape[-1]
        self._table.layer_norm(*self._addresses(x, gain, bias), eps, rows, width, self.address(out))
        return self._made(out)

    def rms_norm(self, x: Array, visual_gain: Array, text_gain: Array, split: int, eps: float) -> Array:
        x, out = self.solid(x), self.empty(x.shape)
        for part, gain in ((slice(0, split), visual_gain), (slice(split, None), text_gain)):
            rows = x[part]
            if len(rows):
                addresses = self._addresses(rows, gain)
                self._table.rms_norm(*addresses, eps, len(rows), x.shape[-1], self.address(out[part]))
        return self._made(out)

    def swiglu(self, gate_up: Array) -> Array:
        gate_up, width = self.solid(gate_up), gate_up.shape[-1] // 2
        out = self.empty((*gate_up.shape[:-1], width))
        self._table.swiglu(self.address(gate_up), math.prod(gate_up.shape[:-1]), width, self.address(out))
        return self._made(out)

    def attention(self, q: Array, k: Array, v: Array, heads: int) -> Array:
        q, k, v = (x if self.strides(x)[-1] == 1 else self.solid(x) for x in (q, k, v))
        out = self.empty(q.shape)
        sizes = len(q), heads, q.shape[1], k.shape[1], q.shape[2] // heads
        batches, rows, _ = zip(*(self.strides(x) for x in (q, k, v)), strict=True)
        addresses = self._addresses(q, k, v)
        self._table.attention(byref(Attention(*sizes, *addresses, *rows, *batches, self._exact, self.address(out))))
        return self._made(out)

    def attention_by_modality(
        self, q: Array, kv_visual: Array, kv_text: Array, prefix: Array, turns: Array, batch: int
    ) -> Array:
        heads, width = prefix.shape[2:]
        inputs = [self.solid(x) for x in (q, kv_visual, kv_text, prefix, turns)]
        out = self.empty(q.shape)
        sizes = batch, heads, width, len(kv_visual) // batch, len(kv_text) // batch, prefix.shape[1], len(q) == batch
        self._table.attention_by_modality(
            byref(AttentionByModality(*sizes, *self._addresses(*inputs), self.address(out)))
        )
        return self._made(out)

    def end_turn(self) -> None:
        self._table.end_turn()

    def _made(self, out: Array) -> Array:
        """The result, unless the kernels found no memory for their work."""
        if self._table.was_starved():
            raise MemoryError("the C++ kernels found no memory for their work")
        return out

    def _addresses(self, *arrays: Array | None) -> list[int | None]:
        return [None if x is None else self.address(x) for x in arrays]
