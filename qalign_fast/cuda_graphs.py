"""Pictures and functions in, results on a device out: how a batch gets to a GPU, and how its work is launched there.

`Graphs` is CUDA's form: pixels go up on a stream of their own, and a function's kernels are captured once for each
shape and launched together. `Direct` copies and calls, on any device.
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

Pixels: TypeAlias = npt.NDArray[np.uint8]  # [B, S, S, 3]
Step: TypeAlias = Callable[[Tensor], Tensor]
_WARM_UPS = 2  # the first compiles kernels and lets libraries allocate, which a capture may not; the second is as later


class Runner(Protocol):
    def scope(self) -> AbstractContextManager[object]:
        """What the two below are called in."""
        ...

    def upload(self, batches: Sequence[Pixels]) -> Iterator[Tensor]:
        """Each batch on the device, in order. It holds until the next one is asked for."""
        ...

    def download(self, x: Tensor) -> Callable[[], Tensor]:
        """Sends x to the host; what is returned waits for it, and may be called outside the scope."""
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

    def run(self, key: Hashable, step: Step, x: Tensor) -> Tensor:
        return step(x)


@dataclass(frozen=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    input: Tensor  # where the graph reads
    output: Tensor  # where it leaves its result, until it runs again


class Graphs:
    def __init__(self, device: torch.device) -> None:
        self._device = device
        with self.scope():
            self._stream = _stream(device)  # the default one cannot be captured
            self._pool = torch.cuda.graph_pool_handle()  # one, for no two graphs run at a time
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

    def run(self, key: Hashable, step: Step, x: Tensor) -> Tensor:
        if key not in self._captured:
            self._captured[key] = self._capture(step, x)
        captured = self._captured[key]
        captured.input.copy_(x)
        captured.graph.replay()
        return captured.output.clone()

    def _capture(self, step: Step, x: Tensor) -> _Captured:
        static = x.clone()
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UPS):
                step(static)
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # thread_local: what other threads do with CUDA meanwhile is no error of this capture
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            output = step(static)
        return _Captured(graph, static, output)


def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _event() -> torch.cuda.Event:
    """One that was never recorded is not waited for."""
    return torch.cuda.Event()  # type: ignore[no-untyped-call]


@dataclass
class _Slot:
    host: Tensor  # pinned, or the copy would not run beside anything
    device: Tensor
    sent: torch.cuda.Event = field(default_factory=_event)  # host is free
    used: torch.cuda.Event = field(default_factory=_event)  # device is free

    def make_room(self, shape: tuple[int, ...]) -> None:
        """For a batch of that shape, if none as large was here before."""
        if len(self.host) < shape[0]:
            self.used.synchronize()
            self.host = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
            self.device = torch.empty(shape, dtype=torch.uint8, device=self.device.device)


class _Uploads:
    """Two slots: while one's pictures are computed, the next batch goes into the other."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, _stream(device)
        none = torch.empty(0, dtype=torch.uint8)
        self._slots = [_Slot(none, none.to(device)) for _ in range(2)]

    def __call__(self, batches: Sequence[Pixels]) -> Iterator[Tensor]:
        slots, under_way = cycle(self._slots), deque[tuple[_Slot, int]]()
        for batch in batches:
            under_way.append(self._send(next(slots), batch))
            if len(under_way) == len(self._slots):
                yield from self._use(*under_way.popleft())
        while under_way:
            yield from self._use(*under_way.popleft())

    def _send(self, slot: _Slot, batch: Pixels) -> tuple[_Slot, int]:
        slot.sent.synchronize()
        slot.make_room(batch.shape)
        slot.host[: len(batch)].copy_(torch.from_numpy(np.ascontiguousarray(batch)))
        self._stream.wait_event(slot.used)
        with torch.cuda.stream(self._stream):
            slot.device[: len(batch)].copy_(slot.host[: len(batch)], non_blocking=True)
        slot.sent.record(self._stream)
        return slot, len(batch)

    def _use(self, slot: _Slot, count: int) -> Iterator[Tensor]:
        compute = torch.cuda.current_stream(self._device)
        compute.wait_event(slot.sent)
        try:
            yield slot.device[:count]
        finally:
            slot.used.record(compute)
