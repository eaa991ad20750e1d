"""Operations in, the same operations out, which note how long each call took and what it had to do.

The names of weights tell the station. Norms and attention belong to the station of the linear before them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from qalign_kernels.contract.operations import Activation, Operations
from qalign_kernels.contract.ops import Ops
from qalign_kernels.contract.quantized_rows import QuantizedRows
from qalign_kernels.contract.weight import Array, Modal, Weight

_LAYER = re.compile(r"layers\.\d+\.")


class Clock(Protocol):
    """Marks moments and tells the seconds between two marks."""

    def now(self) -> Any:
        """A mark of this moment."""
        ...

    def seconds(self, start: Any, end: Any) -> float:
        """The seconds between two marks."""
        ...


class HostClock:
    """The host's time."""

    def now(self) -> float:
        return time.perf_counter()

    def seconds(self, start: float, end: float) -> float:
        return end - start


class CudaClock:
    """Events in the device's own queue, so that nothing waits for the host."""

    def now(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        end.synchronize()
        return 1e-3 * float(start.elapsed_time(end))


class Call(NamedTuple):
    """One call of an operation."""

    station: str
    operation: str
    flop: int  # a multiplication and an addition are two
    bytes: int  # that it reads and writes
    start: Any
    end: Any


class TimedOps(Ops):
    """Runs `inner` and keeps the `calls` since the last `clear`."""

    def __init__(self, ops: Operations, clock: Clock | None = None) -> None:
        """`clock`: None is the host's."""
        self.name = ops.name
        self.inner, self.clock = ops, clock or HostClock()
        self.clear()

    def clear(self) -> None:
        """Forgets all calls; the next one is in the vision station."""
        self.calls: list[Call] = []
        self._station = "vision"

    def linear(
        self, x: Tensor | QuantizedRows, w: Weight, *, activation: Activation = None, residual: Tensor | None = None
    ) -> Array:
        self._station, _, operation = _LAYER.sub("", w.name).partition(".")
        rows = size_of(x).elements // x.shape[-1]
        flop = 2 * rows * x.shape[-1] * w.weight.shape[0]
        read = (x, residual, w.weight, w.scale, w.groups, w.bias)
        return self._time(
            operation, flop, read, lambda: self.inner.linear(x, w, activation=activation, residual=residual)
        )

    def modal_linear(self, x: Tensor | QuantizedRows, w: Weight, modal: Modal) -> Array:
        self._station, _, operation = _LAYER.sub("", w.name).partition(".")
        columns = modal.common + (len(w.weight) - modal.common) // 2
        flop = 2 * size_of(x).elements * columns
        return self._time(operation, flop, (x, w.weight, w.scale), lambda: self.inner.modal_linear(x, w, modal))

    def patches_for(self, w: Weight, pixels: Tensor, patch: int) -> Array:
        return self._time("patches", 0, (pixels,), lambda: self.inner.patches_for(w, pixels, patch))

    def layer_norm(self, x: Tensor, gain: Tensor, bias: Tensor, eps: float) -> Array:
        return self._time("norms", 0, (x,), lambda: self.inner.layer_norm(x, gain, bias, eps))

    def layer_norm_for(self, readers: Sequence[Weight], x: Tensor, gain: Tensor, bias: Tensor, eps: float) -> Array:
        return self._time("norms", 0, (x,), lambda: self.inner.layer_norm_for(readers, x, gain, bias, eps))

    def rms_norm(self, x: Tensor, visual_gain: Tensor, text_gain: Tensor, split: int, eps: float) -> Array:
        return self._time("norms", 0, (x,), lambda: self.inner.rms_norm(x, visual_gain, text_gain, split, eps))

    def rms_norm_for(
        self, readers: Sequence[Weight], x: Tensor, visual_gain: Tensor, text_gain: Tensor, split: int, eps: float
    ) -> Array:
        arguments = readers, x, visual_gain, text_gain, split, eps
        return self._time("norms", 0, (x,), lambda: self.inner.rms_norm_for(*arguments))

    def swiglu(self, gate_up: Tensor) -> Array:
        return self._time("swiglu", 0, (gate_up,), lambda: self.inner.swiglu(gate_up))

    def swiglu_for(self, readers: Sequence[Weight], gate_up: Tensor) -> Array:
        return self._time("swiglu", 0, (gate_up,), lambda: self.inner.swiglu_for(readers, gate_up))

    def attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Array:
        flop = 4 * q.numel() * k.shape[1]
        return self._time("attention", flop, (q, k, v), lambda: self.inner.attention(q, k, v, heads))

    def attention_by_modality(
        self, q: Tensor, kv_visual: Tensor, kv_text: Tensor, prefix: Tensor, turns: Tensor, batch: int
    ) -> Array:
        flop = 4 * q.numel() * (prefix.shape[1] + turns.shape[1])
        arguments = q, kv_visual, kv_text, prefix, turns, batch
        read = (q, kv_visual, kv_text, prefix)
        return self._time("attention", flop, read, lambda: self.inner.attention_by_modality(*arguments))

    def _time(
        self, operation: str, flop: int, read: Sequence[Tensor | QuantizedRows | None], run: Callable[[], Array]
    ) -> Array:
        start = self.clock.now()
        result = run()
        moved = sum(size_of(x).bytes for x in read) + size_of(result).bytes
        self.calls.append(Call(self._station, operation, flop, moved, start, self.clock.now()))
        return result


class Size(NamedTuple):
    """How much something holds."""

    elements: int
    bytes: int


def size_of(x: Tensor | QuantizedRows | None) -> Size:
    """The size of a tensor or of rows with their scales; of None it is zero."""
    if x is None:
        return Size(0, 0)
    if isinstance(x, QuantizedRows):
        return Size(x.values.numel(), x.values.nbytes + x.scale.nbytes)
    return Size(x.numel(), x.nbytes)
