"""Brings batches to a GPU and launches the work on them.

`Graphs` is for CUDA. It uploads pixels on one stream and computes on another, whatever stream the caller is on. It
captures the kernels of a function once for each shape, and launches them together. `Direct` copies and calls, on any
device.
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
_WARM_UPS = 2  # the first compiles kernels and lets libraries allocate, which no capture may do; the second is as usual


class Runner(Protocol):
    """How an engine moves batches to its device and runs its steps there.

    Tensors that methods take and give belong to the caller's current stream. It may use them, and change them, at once.
    """

    def scope(self) -> AbstractContextManager[object]:
        """The context in which the methods below are called."""
        ...

    def upload(self, batches: Sequence[Pixels]) -> Iterator[Tensor]:
        """Each batch on the device, in order. None has more pictures than the largest bucket."""
        ...

    def download(self, x: Tensor) -> Callable[[], Tensor]:
        """Starts to copy x to the host. The result waits for the copy; it may be called outside the scope."""
        ...

    def call(self, step: Step, x: Tensor) -> Tensor:
        """step(x), for x of any shape."""
        ...

    def run(self, key: Hashable, step: Step, x: Tensor) -> Tensor:
        """step(x). One key always means the same step, and x of the same shape and dtype."""
        ...


class Direct:
    """A runner that copies and calls directly, on any device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def scope(self) -> AbstractContextManager[object]:
        return nullcontext()

    def upload(self, batches: Sequence[Pixels]) -> Iterator[Tensor]:
        for batch in batches:
            yield torch.from_numpy(np.require(batch, requirements=["C", "W"])).to(self._device)

    def download(self, x: Tensor) -> Callable[[], Tensor]:
        return x.cpu

    def call(self, step: Step, x: Tensor) -> Tensor:
        return step(x)

    def run(self, key: Hashable, step: Step, x: Tensor) -> Tensor:
        return step(x)


@dataclass(frozen=True)
class _Captured:
    """One captured step, on x of one shape."""

    graph: torch.cuda.CUDAGraph
    input: Tensor  # the graph reads it
    output: Tensor  # holds the result until the graph runs again

    def __call__(self, x: Tensor) -> Tensor:
        self.input.copy_(x)
        self.graph.replay()
        return self.output


class Graphs:
    """A runner that captures steps as CUDA graphs."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with self.scope():
            self._stream = _stream(device)  # for all steps, one by one: graphs share a pool, kernels their scratch
            self._pool = torch.cuda.graph_pool_handle()
            self._uploads = _Uploads(device)
        self._captured: dict[Hashable, _Captured] = {}

    def scope(self) -> AbstractContextManager[object]:
        """Makes the device current, because Triton launches on the current one."""
        return torch.cuda.device(self._device)

    def upload(self, batches: Sequence[Pixels]) -> Iterator[Tensor]:
        return self._uploads(batches)

    def download(self, x: Tensor) -> Callable[[], Tensor]:
        host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
        host.copy_(x, non_blocking=True)
        arrived = _event()
        arrived.record(torch.cuda.current_stream(self._device))

        def wait() -> Tensor:
            arrived.synchronize()  # waits for this copy alone, not for what another thread has queued since
            return host

        return wait

    def call(self, step: Step, x: Tensor) -> Tensor:
        """step(x). The result is a copy, because the next call overwrites what a graph has written."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            output = step(x)
        result = torch.empty_like(output)
        self._stream.wait_stream(current)  # whose work may still use the result's memory
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
        # thread_local: calls of CUDA by other threads do not break this capture
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            output = step(static)
        return _Captured(graph, static, output)


def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _event() -> torch.cuda.Event:
    """A new event. A thread that waits for it sleeps; nobody waits for an event that was never recorded."""
    return torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]


@dataclass
class _Slot:
    """Memory for one batch."""

    host: Tensor  # pinned, because only then the copy runs beside other work
    device: Tensor
    sent: torch.cuda.Event = field(default_factory=_event)  # after it `host` is free
    read: torch.cuda.Event = field(default_factory=_event)  # after it `device` is free


class _Uploads:
    """Uses two slots in turn: while one batch is computed, the next one is uploaded."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, _stream(device)
        self._slots: Iterator[_Slot] | None = None  # in the order of their turns

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
        slot.host[: len(batch)].copy_(torch.from_numpy(np.require(batch, requirements=["C", "W"])))
        self._stream.wait_event(slot.read)
        with torch.cuda.stream(self._stream):
            slot.device[: len(batch)].copy_(slot.host[: len(batch)], non_blocking=True)
        slot.sent.record(self._stream)
        return slot, len(batch)

    def _slot(self, picture: tuple[int, ...]) -> _Slot:
        """A slot for the largest bucket.

        It is allocated on the stream that writes it, because memory of another stream may still be in use there.
        """
        shape = (BUCKETS[-1], *picture)
        with torch.cuda.stream(self._stream):
            room = torch.empty(shape, dtype=torch.uint8, device=self._device)
        return _Slot(torch.empty(shape, dtype=torch.uint8, pin_memory=True), room)

    def _take(self, slot: _Slot, count: int) -> Tensor:
        """Copies the pictures out of the slot, so that the slot is free before anything is computed."""
        current = torch.cuda.current_stream(self._device)
        current.wait_event(slot.sent)
        pixels = slot.device[:count].clone()
        slot.read.record(current)
        return pixels
