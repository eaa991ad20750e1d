"""Pictures and functions in, results on a device out: how a batch gets to a GPU, and how its work is launched there.

`Graphs` is CUDA's form: pixels go up on a stream of their own, and all that is computed is on another, whatever stream
the caller is on. A function's kernels are captured once for each shape and launched together. `Direct` copies and
calls, on any device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import cycle
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qalign_fast.engines.common import BUCKETS

Pixels: TypeAlias = npt.NDArray[np.uint8]  # [B, S, S, 3]
Step: TypeAlias = Callable[[Tensor], Tensor]
_SLOTS = 2
_WARM_UPS = 2  # the first compiles kernels and lets libraries allocate, which a capture may not; the second is as later


class Runner(Protocol):
    def scope(self) -> AbstractContextManager[object]:
        """What the two below are called in."""
        ...

    def upload(self, batches: Sequence[Pixels]) -> Iterator[Tensor]:
        """Each batch, of no more than the largest bucket, on the device, in order."""
        ...

    def download(self, x: Tensor) -> Callable[[], Tensor]:
        """Sends x to the host; what is returned waits for it, and may be called outside the scope."""
        ...

    def call(self, step: Step, x: Tensor) -> Tensor:
        """step(x), of any shape."""
        ...

    def run(self, key: Hashable, step: Step, x: Tensor) -> Tensor:
        """step(x). A key means the same step, and x of the same shape and type, every time."""
        ...


class Direct:
    def __init__(self, device: torch.device) -> None:
        self._device = device

    def scope(self) -> AbstractContextManager[object]:
        return nullcontext()

    def upload(self, batches: Sequence[Pixels]) -> Iterator[Tensor]:
        for batch in batches:
            yield torch.from_numpy(np.ascontiguousarray(batch)).to(self._device)

    def download(self, x: Tensor) -> Callable[[], Tensor]:
        return x.cpu

    def call(self, step: Step, x: Tensor) -> Tensor:
        return step(x)

    def run(self, key: Hashable, step: Step, x: Tensor) -> Tensor:
        return step(x)


@dataclass(frozen=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    input: Tensor  # where the graph reads
    output: Tensor  # where it leaves its result, until it runs again

    def __call__(self, x: Tensor) -> Tensor:
        self.input.copy_(x)
        self.graph.replay()
        return self.output


class Graphs:
    def __init__(self, device: torch.device) -> None:
        self._device = device
        with self.scope():
            self._stream = _stream(device)  # for steps, one after another: graphs share a pool, kernels their scratch
            self._pool = torch.cuda.graph_pool_handle()
            self._uploads = _Uploads(device)
        self._captured: dict[Hashable, _Captured] = {}

    def scope(self) -> AbstractContextManager[object]:
        """Triton launches on the current device."""
        return torch.cuda.device(self._device)

    def upload(self, batches: Sequence[Pixels]) -> Iterator[Tensor]:
        return self._uploads(batches)

    def download(self, x: Tensor) -> Callable[[], Tensor]:
        host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
        host.copy_(x, non_blocking=True)
        arrived = _event()
        arrived.record(torch.cuda.current_stream(self._device))

        def wait() -> Tensor:
            arrived.synchronize()  # for this alone, not for what another thread has queued since
            return host

        return wait

    def call(self, step: Step, x: Tensor) -> Tensor:
        """x is the caller's stream's, and so is the result, which is a copy."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            output = step(x)
        result = torch.empty_like(output)
        self._stream.wait_stream(current)  # for what used the result's memory before
        with torch.cuda.stream(self._stream):
            result.copy_(output)
        current.wait_stream(self._stream)
        return result

    def run(self, key: Hashable, step: Step, x: Tensor) -> Tensor:
        if key not in self._captured:
            self._captured[key] = self._capture(step, x)
        return self.call(self._captured[key], x)

    def _capture(self, step: Step, x: Tensor) -> _Captured:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            static = x.clone()
            for _ in range(_WARM_UPS):
                step(static)
        graph = torch.cuda.CUDAGraph()
        # thread_local: what other threads do with CUDA meanwhile is no error of this capture
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            output = step(static)
        return _Captured(graph, static, output)


def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _event() -> torch.cuda.Event:
    """One that was never recorded is not waited for; a thread that waits leaves its core to others."""
    return torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]


@dataclass
class _Slot:
    """Room for one batch."""

    host: Tensor  # pinned, or the copy would not run beside anything
    device: Tensor
    sent: torch.cuda.Event = field(default_factory=_event)  # host is free
    read: torch.cuda.Event = field(default_factory=_event)  # device is free


class _Uploads:
    """Two slots in turn: while one batch's pictures are computed, the next one's go up."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, _stream(device)
        self._slots: Iterator[_Slot] | None = None  # whose turn it is

    def __call__(self, batches: Sequence[Pixels]) -> Iterator[Tensor]:
        under_way = deque[tuple[_Slot, int]]()
        for batch in batches:
            under_way.append(self._send(batch))
            if len(under_way) == _SLOTS:
                yield self._take(*under_way.popleft())
        while under_way:
            yield self._take(*under_way.popleft())

    def _send(self, batch: Pixels) -> tuple[_Slot, int]:
        if self._slots is None:
            self._slots = cycle([self._slot(batch.shape[1:]) for _ in range(_SLOTS)])
        slot = next(self._slots)
        slot.sent.synchronize()
        slot.host[: len(batch)].copy_(torch.from_numpy(np.ascontiguousarray(batch)))
        self._stream.wait_event(slot.read)
        with torch.cuda.stream(self._stream):
            slot.device[: len(batch)].copy_(slot.host[: len(batch)], non_blocking=True)
        slot.sent.record(self._stream)
        return slot, len(batch)

    def _slot(self, picture: tuple[int, ...]) -> _Slot:
        """For the largest bucket. On the stream that writes it: another's memory may still be in use there."""
        shape = (BUCKETS[-1], *picture)
        with torch.cuda.stream(self._stream):
            room = torch.empty(shape, dtype=torch.uint8, device=self._device)
        return _Slot(torch.empty(shape, dtype=torch.uint8, pin_memory=True), room)

    def _take(self, slot: _Slot, count: int) -> Tensor:
        """Out of the slot, so that it is free before anything is computed."""
        current = torch.cuda.current_stream(self._device)
        current.wait_event(slot.sent)
        pixels = slot.device[:count].clone()
        slot.read.record(current)
        return pixels
