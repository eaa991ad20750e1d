"""The model's operations as ONNX operators, in float32: the standard ones, and onnxruntime's own for 8 and 4 bits.

Sizes that depend on a batch or a sequence come from `Shape` alone, never from arithmetic on shapes: such arithmetic
runs on a CPU, and then the graph could not run on a GPU alone.

Letters: B batch, T tokens of a sequence, D width, H heads, Dh head width, K inputs and N outputs of a linear.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from onnx import TensorProto

from qalign_export.onnx_graphs.graph import Graph
from qalign_fast.families.mplug_owl2.sizes import DecoderConfig
from qalign_kernels.contract.precisions import GROUP

_ALL = np.iinfo(np.int64).max  # as an end of a slice


class ModelGraph(Graph):
    """A graph for engine onnx, with a method for each operation that the model is made of."""

    def __init__(self, name: str, tensors: Mapping[str, np.ndarray], data_file: Path | None = None) -> None:
        super().__init__(name, tensors, data_file)
        self._quantized: dict[str, tuple[str, str]] = {}  # a value's 8-bit rows and their scales, made once
        self._batches: dict[tuple[str, int], str] = {}  # shapes [B, 1, 1, ...] by value and rank

    def enter(self, x: str) -> str:
        """float32 -> the type that the operations below take and give: here the same."""
        return x

    def leave(self, x: str) -> str:
        """The type of the operations -> float32."""
        return x

    def exact_product(self, x: str, name: str) -> str:
        """float32 rows times a float32 weight, and its bias if it has one -> float32, in every kind of graph."""
        y, bias = self._multiply(x, f"{name}.weight", self.tensors[f"{name}.weight"]), f"{name}.bias"
        return self.op("Add", y, self.array(bias, self.tensors[bias])) if bias in self.tensors else y

    def linear(self, x: str, name: str, inputs: int) -> str:
        """[..., K = inputs] by the folded linear of that name, in the precision of its weight -> [..., N]."""
        return self.add_bias(self.product(x, name, inputs), name)

    def linears(self, x: str, name: str, parts: int, inputs: int) -> list[str]:
        """`linear`, its outputs split into equal parts."""
        return self.ops("Split", parts, self.linear(x, name, inputs), axis=-1, num_outputs=parts)

    def add_bias(self, y: str, name: str) -> str:
        """y and the linear's bias, if it has one."""
        return self.op("Add", y, self.weight(f"{name}.bias")) if f"{name}.bias" in self.tensors else y

    def product(self, x: str, name: str, inputs: int) -> str:
        """`linear` without its bias."""
        weight = self.tensors[f"{name}.weight"]
        if weight.dtype == np.int8:
            return self._int8(x, name, weight, inputs)
        if weight.dtype == np.uint8:
            return self._int4(x, name, weight, inputs)
        if weight.dtype == np.float16:
            half = self.op("Cast", x, to=TensorProto.FLOAT16)
            return self.op("Cast", self._multiply(half, f"{name}.weight", weight), to=TensorProto.FLOAT)
        return self._multiply(x, f"{name}.weight", weight)

    def layer_norm(self, x: str, name: str, eps: float) -> str:
        """LayerNorm with the gain and bias of that name."""
        gain, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return self.op("LayerNormalization", x, gain, bias, epsilon=eps, axis=-1)

    def add_layer_norm(self, x: str, y: str, linear: str, inputs: int, norm: str, eps: float) -> tuple[str, str]:
        """x + the linear of y, and the norm of that sum."""
        x = self.op("Add", x, self.linear(y, linear, inputs))
        return x, self.layer_norm(x, norm, eps)

    def rms(self, x: str, eps: float) -> str:
        """x / sqrt(mean(x²) + eps): RMSNorm without its gain."""
        mean = self.op("ReduceMean", self.op("Mul", x, x), self.const([-1]), keepdims=1)
        return self.op("Div", x, self.op("Sqrt", self.op("Add", mean, self.const(eps, np.float32))))

    def add_rms(self, x: str, y: str, eps: float) -> tuple[str, str]:
        """x + y, and its `rms`."""
        x = self.op("Add", x, y)
        return x, self.rms(x, eps)

    def quick_gelu(self, x: str) -> str:
        """x · sigmoid(1.702 x)."""
        return self.op("Mul", x, self.op("Sigmoid", self.op("Mul", x, self.const(1.702, np.float32))))

    def silu(self, x: str) -> str:
        """x · sigmoid(x)."""
        return self.op("Mul", x, self.op("Sigmoid", x))

    def rotate(self, x: str, cos: str, sin: str, heads: int) -> str:
        """Rotary positions in the half-split form: x [B, T, D], cos and sin [T, Dh/2]."""
        x = self.op("Reshape", x, self.const([0, 0, heads, -1]))
        low, high = self.ops("Split", 2, x, axis=-1, num_outputs=2)  # [B, T, H, Dh/2]
        cos, sin = (self.op("Unsqueeze", table, self.const([1])) for table in (cos, sin))
        turned = (
            self.op("Sub", self.op("Mul", low, cos), self.op("Mul", high, sin)),
            self.op("Add", self.op("Mul", high, cos), self.op("Mul", low, sin)),
        )
        return self.op("Reshape", self.op("Concat", *turned, axis=-1), self.const([0, 0, -1]))

    def attend(self, q: str, k: str, v: str, heads: int, mask: str = "") -> str:
        """q [B, Tq, D], already scaled, k and v [B, Tk, D], mask [1, 1, Tq, Tk] to add -> context [B, Tq, D]."""
        if self.uses_contrib:  # one operator is twice as fast: attention's scores stay in the cache
            masked = ("", "", mask) if mask else ()
            return self.contrib("MultiHeadAttention", q, k, v, *masked, num_heads=heads, scale=1.0)
        split = self.const([0, 0, heads, -1])
        q = self.op("Transpose", self.op("Reshape", q, split), perm=[0, 2, 1, 3])
        k = self.op("Transpose", self.op("Reshape", k, split), perm=[0, 2, 3, 1])
        v = self.op("Transpose", self.op("Reshape", v, split), perm=[0, 2, 1, 3])
        scores = self.op("MatMul", q, k)  # [B, H, Tq, Tk]
        scores = self.op("Add", scores, mask) if mask else scores
        context = self.op("MatMul", self.op("Softmax", scores, axis=-1), v)  # [B, H, Tq, Dh]
        return self.op("Reshape", self.op("Transpose", context, perm=[0, 2, 1, 3]), self.const([0, 0, -1]))

    def before(self, prefix: str, config: DecoderConfig, batch: str) -> list[str]:
        """A prefix [L, 2, P, H, Dh] -> each layer's keys, then its values, for each sequence of `batch` [B, T, D]."""
        count = 2 * config.layers
        flat = self.op("Reshape", self.enter(prefix), self.const([count, -1, config.width]))
        return [self.repeat(one, batch) for one in self.ops("Split", count, flat, axis=0, num_outputs=count)]

    def join(self, before: str, x: str) -> str:
        """Keys or values of a prefix and [B, T, D] -> [B, P+T, D]."""
        return self.op("Concat", before, x, axis=1)

    def mask(self, positions: str, keys: str) -> str:
        """`attend_after`'s mask, from the positions of queries [T, 1] and of keys [P+T, 1]."""
        hidden = self.op("Less", positions, self.op("Transpose", keys))
        mask = self.op("Where", hidden, self.const(-np.inf, np.float32), self.const(0, np.float32))
        return self.op("Unsqueeze", mask, self.const([0, 1]))

    def attend_after(self, before: tuple[str, str], q: str, k: str, v: str, heads: int, mask: str) -> str:
        """`attend`, in which each query of [B, T, D] sees the prefix, the tokens before it and itself."""
        return self.attend(q, self.join(before[0], k), self.join(before[1], v), heads, mask)

    def slice(self, x: str, start: str | int, end: str | int | None, axis: int) -> str:
        """x[start:end] along an axis; each end is a number or the name of a tensor [1]."""
        bounds = [self.const([b]) if isinstance(b, int) else b for b in (start, _ALL if end is None else end)]
        return self.op("Slice", x, *bounds, self.const([axis]))

    def repeat(self, x: str, batch: str, rank: int = 3) -> str:
        """[1, *, *], of that rank -> [B, *, *], for each sequence of `batch` [B, T, D]."""
        if (batch, rank) not in self._batches:
            one = self.slice(self.slice(batch, 0, 1, axis=1), 0, 1, axis=2)  # [B, 1, 1]
            one = self.op("Unsqueeze", one, self.const([3])) if rank == 4 else one
            self._batches[batch, rank] = self.op("Shape", one)
        return self.op("Expand", x, self._batches[batch, rank])

    def _multiply(self, x: str, name: str, weight: np.ndarray) -> str:
        return self.op("MatMul", x, self.array(name, weight.T))

    def _int8(self, x: str, name: str, weight: np.ndarray, inputs: int) -> str:
        """`qalign_kernels.contract.linear` in int8. A CPU is fast at u8 times s8, so 128 is added to the rows.

        Of the operators that bench/results/onnx_linear.json compares, these are the fastest that are documented.
        """
        rows, scale = self._quantize_rows(x, inputs)
        y = self.contrib(
            "MatMulIntegerToFloat",
            rows,
            self.array(f"{name}.weight", weight.T),
            self.const(1, np.float32),
            self.weight(f"{name}.scale"),
            self.const(128, np.uint8),
        )
        return self.op("Mul", y, scale)

    def _quantize_rows(self, x: str, inputs: int) -> tuple[str, str]:
        """float32 [..., K] -> uint8 [..., K], 128 for zero, and scales [..., 1]."""
        if x not in self._quantized:
            largest = self.op("ReduceMax", self.op("Abs", x), self.const([-1]), keepdims=1)
            largest = self.op("Max", largest, self.const(1e-30, np.float32))
            scale = self.op("Div", largest, self.const(127, np.float32))
            flat = self.op("Reshape", scale, self.const([-1]))
            zeros = self.op("Expand", self.const(128, np.uint8), self.op("Shape", flat))
            rows = self.op("QuantizeLinear", self.op("Reshape", x, self.const([-1, inputs])), flat, zeros, axis=0)
            self._quantized[x] = self.op("Reshape", rows, self.op("Shape", x)), scale
        return self._quantized[x]

    def _int4(self, x: str, name: str, weight: np.ndarray, inputs: int) -> str:
        """`qalign_kernels.contract.linear`'s 4-bit weights; onnxruntime rounds the rows, more finely than we do.

        Its accuracy level 4 is 8 bits with a scale for every 32 inputs.
        """
        codes, scale, zero = split_int4(weight, self.tensors[f"{name}.scale"], self.tensors[f"{name}.groups"], inputs)
        return self.contrib(
            "MatMulNBits",
            x,
            self.array(f"{name}.weight", codes),
            self.array(f"{name}.scale", scale),
            self.array(f"{name}.zero", zero),
            K=inputs,
            N=len(codes),
            bits=4,
            block_size=GROUP,
            accuracy_level=4,
        )


def split_int4(weight: np.ndarray, scale: np.ndarray, groups: np.ndarray, inputs: int) -> tuple[np.ndarray, ...]:
    """An int4 linear's tensors -> MatMulNBits' weights uint8 [N, G, 16], scales float32 [N, G] and zero points uint8
    [N, ceil(G / 2)].

    Groups that only pad are left out, so that G = ceil(K / 32). Of two numbers in a byte the even one is the low half.
    """
    count = -(-inputs // GROUP)
    codes = np.concatenate((weight & 15, weight >> 4), axis=-1).reshape(len(weight), -1, GROUP)[:, :count]
    groups = groups[:, :count]
    zero = np.pad(groups & 15, ((0, 0), (0, count % 2)))
    return _pairs(codes), scale[:, None] * ((groups >> 4) + np.float32(1)), _pairs(zero)


def _pairs(x: np.ndarray) -> np.ndarray:
    """uint8 [..., 2n] of 0..15 -> [..., n]."""
    pairs: np.ndarray = x[..., 0::2] | (x[..., 1::2] << 4)
    return pairs
