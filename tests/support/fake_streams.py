"""A stand-in for CUDA's streams, events and graphs on a CPU. It finds accesses to memory that nothing orders.

All work runs at once; vector clocks keep who had to wait for whom. Memory that a stream allocates counts as written
there, because kernels that are queued on that stream may still use the block. Graphs run again what they captured, and
all of them write one pool. It does not see a block that is given back while another stream still uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Clock = dict["FakeStream", int]
POOL = 0  # in place of an address


class Access(NamedTuple):
    stream: FakeStream
    tick: int
    writes: bool
    name: str


class FakeStream:
    def __init__(self, name: str) -> None:
        self.name = name
        self.clock: Clock = {}  # what happens before anything that is queued from now on

    def join(self, clock: Clock) -> None:
        for stream, tick in clock.items():
            self.clock[stream] = max(tick, self.clock.get(stream, 0))

    def tick(self) -> int:
        self.clock[self] = self.clock.get(self, 0) + 1
        return self.clock[self]

    def wait_stream(self, other: FakeStream) -> None:
        self.join(other.clock)

    def wait_event(self, event: FakeEvent) -> None:
        self.join(event.clock)


class FakeEvent:
    def __init__(self, world: FakeCuda, **options: bool) -> None:
        self.options, self.clock = options, {}
        self._world = world

    def record(self, stream: FakeStream | None = None) -> None:
        self.clock = dict((stream or self._world.current).clock)

    def synchronize(self) -> None:
        self._world.host.join(self.clock)


class FakeGraph:
    def __init__(self, world: FakeCuda) -> None:
        self._world = world
        self.calls: list[Callable[[], None]] = []
        self.replays: list[Access] = []

    def replay(self) -> None:
        self.replays.append(self._world.touch(POOL, "replay", writes=True))
        for call in self.calls:
            call()


class FakeCuda(TorchDispatchMode):
    """While it is entered, torch's work goes to the current stream. `races` names accesses that nothing orders."""

    def __init__(self) -> None:
        super().__init__()
        self.host, self.current = FakeStream("host"), FakeStream("default")
        self.races: list[str] = []
        self.events: list[FakeEvent] = []
        self.graphs: list[FakeGraph] = []
        self._capturing: FakeGraph | None = None
        self._memory: dict[int, dict[tuple[FakeStream, bool], Access]] = {}  # the last access of each kind
        self._on_host: set[int] = set()
        self._kept: list[UntypedStorage] = []  # so that no address comes twice

    def functions(self) -> dict[str, Any]:
        """The functions that replace those of torch.cuda, by their names."""
        return {
            "Stream": lambda device=None: FakeStream("another"),
            "Event": lambda **options: self._new(self.events, FakeEvent(self, **options)),
            "CUDAGraph": lambda: self._new(self.graphs, FakeGraph(self)),
            "graph_pool_handle": lambda: None,
            "device": lambda _: nullcontext(),
            "current_stream": lambda _=None: self.current,
            "stream": self._stream,
            "graph": self._graph,
        }

    def touch(self, address: int, name: str, *, writes: bool) -> Access:
        """Records an access by the work that is queued now."""
        stream = self.current
        stream.join(self.host.clock)
        access = Access(stream, stream.tick(), writes, name)
        known = self._memory.setdefault(address, {})
        for other in known.values():
            if (writes or other.writes) and stream.clock.get(other.stream, 0) < other.tick:
                self.races.append(f"{name} on {stream.name} meets {other.name} on {other.stream.name}")
        known[stream, writes] = access
        return access

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        pinned = kwargs.pop("pin_memory", None)
        result = function(*args, **kwargs)
        given = {address(x) for x in tensors((args, kwargs))}
        made = [x for x in tensors(result) if address(x) not in given]
        self._kept += [x.untyped_storage() for x in tensors((args, kwargs, result))]
        if pinned or function.overloadpacket.__name__ == "lift_fresh":  # numpy's memory
            self._on_host |= {address(x) for x in tensors(result)}
        elif made or function._schema.is_mutable:
            self._queue(function, args, kwargs, made)
        return result

    def _queue(self, function: Any, args: Any, kwargs: Any, made: list[Tensor]) -> None:
        names = [argument.name for argument in function._schema.arguments]
        changed = {a.name for a in function._schema.arguments if a.alias_info and a.alias_info.is_write}
        shape_alone = function.overloadpacket is torch.ops.aten.empty_like
        by_name = {} if shape_alone else dict(zip(names, args)) | kwargs
        written = {address(x) for x in tensors([by_name[name] for name in changed if name in by_name])}
        read = {address(x) for x in tensors(by_name)} - written
        written |= {address(x) for x in made}

        def touch() -> None:
            for addresses, writes in ((read, False), (written, True)):
                for one in addresses:
                    self.touch(one, function.overloadpacket.__name__, writes=writes)

        def again() -> None:
            touch()
            for x, y in zip(made, tensors(function(*args, **kwargs)), strict=bool(made)):
                x.copy_(y)

        if self._capturing:
            self._capturing.calls.append(again)
        elif read | written <= self._on_host:
            with self._stream(self.host):
                touch()
        else:
            touch()

    @contextmanager
    def _stream(self, stream: FakeStream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def _graph(self, graph: FakeGraph, stream: FakeStream, **_: object) -> Iterator[None]:
        """Captures a graph. Like torch's, it first waits for all that is queued."""
        for accesses in self._memory.values():
            for access in accesses.values():
                self.host.join({access.stream: access.tick})
        self._capturing = graph
        with self._stream(stream):
            yield
        self._capturing = None

    def _new(self, known: list[Any], one: Any) -> Any:
        known.append(one)
        return one


def tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def address(x: Tensor) -> int:
    return x.untyped_storage()._cdata
