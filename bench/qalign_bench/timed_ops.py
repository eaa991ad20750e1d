"""Operations in, the same operations out, with a note of how long each took: where an engine's time goes.

The model's own names tell the station: norms and attention belong to the linear that came before them.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

from qalign_kernels.linear import Weight
from qalign_kernels.ops import Activation, Ops
from qalign_kernels.rows import Rows

T = TypeVar("T")
_LAYER = re.compile(r"layers\.\d+\.")


class TimedOps(Ops):
    """`seconds` and `flop` by (station, operation); a multiplication and an addition are two."""

    def __init__(self, ops: Ops) -> None:
        self.name = ops.name
        self.inner = ops
        self.seconds: dict[tuple[str, str], float] = defaultdict(float)
        self.flop: dict[tuple[str, str], int] = defaultdict(int)
        self._station = "vision"

    def clear(self) -> None:
        self.seconds.clear()
        self.flop.clear()
        self._station = "vision"

    def linear(
        self, x: Tensor | Rows, w: Weight, *, activation: Activation = None, residual: Tensor | None = None
    ) -> Tensor:
        assert isinstance(x, Tensor)
        self._station, _, operation = _LAYER.sub("", w.name).partition(".")
        count = 2 * x.numel() * w.weight.shape[0]
        return self._time(operation, count, lambda: self.inner.linear(x, w, activation=activation, residual=residual))

    def layer_norm(self, x: Tensor, gain: Tensor, bias: Tensor, eps: float) -> Tensor:
        return self._time("norms", 0, lambda: self.inner.layer_norm(x, gain, bias, eps))

    def rms_norm(self, x: Tensor, visual_gain: Tensor, text_gain: Tensor, split: int, eps: float) -> Tensor:
        return self._time("norms", 0, lambda: self.inner.rms_norm(x, visual_gain, text_gain, split, eps))

    def swiglu(self, gate_up: Tensor) -> Tensor:
        return self._time("swiglu", 0, lambda: self.inner.swiglu(gate_up))

    def attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        count = 4 * q.numel() * k.shape[1]
        return self._time("attention", count, lambda: self.inner.attention(q, k, v, heads))

    def packed_attention(
        self, q: Tensor, kv_visual: Tensor, kv_text: Tensor, prefix: Tensor, turns: Tensor, batch: int
    ) -> Tensor:
        keys = prefix.shape[1] + turns.shape[1]
        arguments = q, kv_visual, kv_text, prefix, turns, batch
        return self._time("attention", 4 * q.numel() * keys, lambda: self.inner.packed_attention(*arguments))

    def _time(self, operation: str, flop: int, run: Callable[[], T]) -> T:
        started = time.perf_counter()
        result = run()
        key = self._station, operation
        self.seconds[key] += time.perf_counter() - started
        self.flop[key] += flop
        return result
