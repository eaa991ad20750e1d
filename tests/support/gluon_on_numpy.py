"""Runs the text of a Gluon kernel on numpy, which Triton's interpreter cannot. Tiles are arrays; programs run in turn.

Asynchronous work happens at the worst time. A box that TMA brings spoils its buffer when it is sent, and arrives when
its barrier is waited for. An asynchronous product reads its operands when it is waited for. So this finds a buffer that
is overwritten early, read early, or waited for in a phase that nothing was sent for. It does not see layouts,
registers, the order of memory between programs, or threads of a program that do not wait for each other;
`triton_ahead.py` looks at the instructions instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import FunctionType, SimpleNamespace
from typing import Any

import numpy as np
from torch import Tensor

_SPOILED = -77
_TYPES = {"int8": np.int8, "int32": np.int32, "int64": np.int64, "float16": np.float16, "float32": np.float32}


class Tile(np.ndarray):
    """An array with the attributes of Gluon's tensors that numpy's do not have."""

    type = SimpleNamespace(layout=None)

    def to(self, dtype: type) -> Tile:
        return self.astype(dtype)

    def permute(self, axes: Sequence[int]) -> Tile:
        return self.transpose(axes)

    def split(self) -> tuple[Tile, Tile]:
        return self[..., 0], self[..., 1]


class Place:
    """A pointer, or a tile of pointers: the numbers of places in a tensor's flat storage."""

    def __init__(self, storage: np.ndarray, at: Any = 0) -> None:
        self.storage, self.at = storage, at
        self.dtype = SimpleNamespace(element_ty=storage.dtype.type)

    def __add__(self, step: Any) -> Place:
        return Place(self.storage, self.at + step)


class Buffer:
    """Shared memory or one of its stages, as the matrix units read it."""

    def __init__(self, values: np.ndarray, layout: Any = None) -> None:
        self.values, self.layout, self.shape = values, layout, values.shape

    def index(self, i: int) -> Buffer:
        return Buffer(self.values[int(i)])

    def permute(self, axes: Sequence[int]) -> Buffer:
        return Buffer(self.values.transpose(axes))


class Barrier:
    """A barrier that counts bytes. What was sent to it in a phase arrives when that phase is waited for."""

    def __init__(self) -> None:
        self.expected: int | None = None
        self.sent: list[tuple[np.ndarray, np.ndarray]] = []
        self.phase = 0

    def wait(self, phase: int) -> None:
        if int(phase) == self.phase:
            assert self.expected is not None, "a wait for what nobody sends"
            assert self.expected == sum(box.nbytes for _, box in self.sent), "not the bytes that were expected"
            for place, box in self.sent:
                place[...] = box
            self.expected, self.sent, self.phase = None, [], 1 - self.phase


class Descriptor:
    """A matrix that is read in boxes of some rows and columns, with zeros beyond its ends."""

    def __init__(self, tensor: Tensor, block: Sequence[int]) -> None:
        self.values, self.layout = tensor.numpy(), None
        self.written = False  # by the kernel that ran before
        self.block_type = SimpleNamespace(shape=tuple(block), nbytes=int(np.prod(block)) * tensor.element_size())

    def box(self, first: Sequence[int]) -> np.ndarray:
        rows, columns = self.block_type.shape
        i, j = (int(x) for x in first)
        assert i >= 0 and j >= 0
        box = np.zeros((rows, columns), self.values.dtype)
        found = self.values[i : i + rows, j : j + columns]
        box[: found.shape[0], : found.shape[1]] = found
        return box


class Accumulator(Tile):
    """Sums with unfinished products. A product of s8 reads its operands when it is waited for."""

    pending: list[Callable[[Tile], None]]


def warpgroup_mma(a: Buffer, b: Buffer, acc: Tile, *, use_acc: Any = True, is_async: bool = False) -> Tile:
    assert is_async
    pending = getattr(acc, "pending", [])
    if not use_acc:
        assert not pending, "sums are begun anew while products of the last ones are under way"
        acc = np.zeros_like(acc)

    def run(into: Tile) -> None:
        into += (a.values.astype(np.float64) @ b.values.astype(np.float64)).astype(np.int32)

    acc = acc.view(Accumulator)
    acc.pending = [*pending, run]
    return acc


def warpgroup_mma_wait(num_outstanding: int = 0, deps: Sequence[Tile] = ()) -> Tile:
    (acc,) = deps
    pending = getattr(acc, "pending", [])
    while len(pending) > num_outstanding:
        pending.pop(0)(acc)
    return acc


def where(condition: Any, x: Any, y: Any) -> Any:
    return np.where(condition, x, y) if np.ndim(condition) else (x if condition else y)


def exp(x: Tile) -> Tile:
    with np.errstate(over="ignore"):
        return np.exp(x)


def tile(values: Any) -> Tile:
    return np.asarray(values).view(Tile)


def load(place: Place, mask: Any = True, other: Any = 0, cache_modifier: str = "") -> Tile:
    at, inside = np.broadcast_arrays(place.at, mask)
    found = place.storage[np.where(inside, at, 0)]
    return tile(np.where(inside, found, np.asarray(other, place.storage.dtype)))


def store(place: Place, values: Any, mask: Any = True) -> None:
    at, inside, values = np.broadcast_arrays(place.at, mask, np.asarray(values))
    assert at.size == 1 or len(np.unique(at[inside])) == inside.sum(), "two values for one place"
    place.storage[at[inside]] = values[inside]


def atomic_add(place: Place, values: Any, mask: Any = True, *, sem: str) -> Any:
    at, inside, values = np.broadcast_arrays(place.at, mask, np.asarray(values))
    before = place.storage[at].copy()
    np.add.at(place.storage, at[inside], values[inside])
    return before


def allocate(dtype: type, shape: Sequence[int], layout: Any) -> Any:
    if layout == "barriers":
        barriers = [Barrier() for _ in range(shape[0])]
        return SimpleNamespace(index=lambda i: barriers[int(i)])
    return Buffer(np.full(shape, _SPOILED, dtype), layout)


def expect(barrier: Barrier, size: int, pred: Any = True) -> None:
    if pred:
        assert barrier.expected is None, "sent again before it was waited for"
        barrier.expected = size


def send(x: Descriptor, first: Sequence[int], barrier: Barrier, into: Buffer, pred: Any = True) -> None:
    if pred:
        into.values[...] = _SPOILED
        barrier.sent.append((into.values, x.box(first)))


def language(program: int, programs: int) -> dict[str, Any]:
    """The names that kernels use, and what they mean here."""
    waited: list[bool] = []

    def send_in_time(x: Descriptor, *arguments: Any, **options: Any) -> None:
        assert waited or not x.written, "read before the kernel that writes it has ended"
        send(x, *arguments, **options)

    gl = SimpleNamespace(
        **_TYPES,
        program_id=lambda axis: program,
        num_programs=lambda axis: programs,
        cdiv=lambda x, y: -(-x // y),
        minimum=min,
        where=where,
        static_range=range,
        arange=lambda first, end, layout: tile(np.arange(first, end)),
        zeros=lambda shape, dtype, layout: tile(np.zeros(shape, dtype)),
        zeros_like=lambda x: tile(np.zeros_like(x)),
        exp=exp,
        load=load,
        store=store,
        atomic_add=atomic_add,
        convert_layout=lambda x, layout: x,
        allocate_shared_memory=allocate,
        SliceLayout=lambda dim, parent: None,
        NVMMADistributedLayout=lambda *_: None,
    )
    mbarrier = SimpleNamespace(
        MBarrierLayout=lambda: "barriers",
        init=lambda barrier, count: None,
        invalidate=lambda barrier: None,
        expect=expect,
        wait=lambda barrier, phase: barrier.wait(phase),
    )
    return {
        "gl": gl,
        "tl": gl,
        "mbarrier": mbarrier,
        "tma": SimpleNamespace(async_copy_global_to_shared=send_in_time),
        "warpgroup_mma": warpgroup_mma,
        "warpgroup_mma_wait": warpgroup_mma_wait,
        "thread_barrier": lambda: None,
        "gdc_launch_dependents": lambda: None,
        "gdc_wait": lambda: waited.append(True),
        "range": range,
        "_lines": lambda *_: None,
    }


def storage(x: Tensor) -> np.ndarray:
    """The storage from the tensor's first value on."""
    size = x.untyped_storage().nbytes() // x.element_size() - x.storage_offset()
    return x.as_strided((size,), (1,)).numpy()


class Launcher:
    """kernel[grid](...) for a kernel of that module. Programs run in the given order, by default in their own."""

    def __init__(self, module: Any, kernel: str, order: Callable[[int], Sequence[int]] = range) -> None:
        self._module, self._kernel, self._order = module, kernel, order
        self.grids: list[int] = []

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        (programs,) = grid
        self.grids.append(programs)

        def launch(x: Descriptor, *others: Any, **options: Any) -> None:
            x.written, arguments = True, (x, *others)
            values = [Place(storage(x)) if isinstance(x, Tensor) else x for x in arguments]
            for program in self._order(programs):
                self._kernel_for(program, programs)(*values, **options)

        return launch

    def _kernel_for(self, program: int, programs: int) -> Callable[..., None]:
        """The kernel and all that it calls, compiled so that names mean what `language` says."""
        meanings: dict[str, Any] = {}
        for name, found in vars(self._module).items():
            text = getattr(found, "fn", None)
            if isinstance(text, FunctionType):
                numbers = {k: x.value for k, x in text.__globals__.items() if type(x).__name__ == "constexpr"}
                meanings |= numbers | {name: FunctionType(text.__code__, meanings, name, text.__defaults__)}
        meanings |= language(program, programs)
        return meanings[self._kernel]
