"""`contract.linear` for int8 on sm_90, in Gluon: the same product by Hopper's own copies and asynchronous matrix units.

Triton's compiler waits for every int8 product of a warp group before it begins the next one. Here one stays under way:
TMA brings boxes of x and w to shared memory several steps ahead, and a product is issued before the earlier one is
waited for. A program computes many tiles: while it finishes one, the first boxes of its next tile are on their way.
Two programs of 4 warps fit on a processor, so that one multiplies while the other scales, adds and stores.

Every program has the same number of whole tiles. The steps of the tiles that are left are shared equally ("stream-K",
Osama et al., arXiv 2301.03598) where that ends sooner. The parts of a shared tile are added in `sums`, in int32 and
therefore exactly in any order, and the program that adds the last part finishes the tile.

Letters: M rows, K inputs, N output channels.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from qalign_kernels.contract.quantized_rows import QuantizedRows
from qalign_kernels.contract.weight import Modal
from qalign_kernels.cuda.launch import cdiv, row_stride
from qalign_kernels.cuda.runtime import (
    Pointer,
    TensorDescriptor,
    Value,
    at_compile_time,
    constexpr,
    gdc_launch_dependents,
    gdc_wait,
    gl,
    gluon_jit,
    mbarrier,
    overlap,
    thread_barrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from qalign_kernels.cuda.tile_order import gluon_origin
from qalign_kernels.cuda.tiles import RESERVED, SHARED_COST, Shares, Tile, tiles_of

_PARTS = constexpr(4)  # of a tile's columns, finished one after another: the whole needs more registers than there are
_PER_PROCESSOR = 228 * 1024  # bytes of a processor's shared memory


def launch(
    x: QuantizedRows, weight: Tensor, scale: Tensor, bias: Tensor | None, residual: Tensor | None, y: Tensor,
    tile: Tile, shares: Shares, gelu: bool, modal: Modal | None,
) -> None:  # fmt: skip
    """y [M, N] = residual + activation(x̂ ŵᵀ + bias), with x [M, K] and weight [N, K] in int8.

    A row begins a multiple of 16 bytes after the one before it: TMA asks for that.
    """
    (m, k), n = x.values.shape, y.shape[1]
    tiles, steps = tiles_of(m, n, tile, modal), cdiv(k, tile.inputs)
    programs = min(tiles * steps, shares.processors * per_processor(tile))
    whole, rest = divmod(tiles, programs)
    shared = rest > 0 and cdiv(rest * steps, programs) + SHARED_COST < steps
    assert not shared or shares.hold(rest, tile), tile
    split, common = (m, n) if modal is None else modal
    _multiply_hopper[(programs if shared or whole else rest,)](
        _boxes(x.values, tile.rows, tile.inputs), _boxes(weight, tile.columns, tile.inputs),
        y, x.scale, scale, bias, residual, shares.sums, shares.arrived,
        m, n, steps, tiles, whole, split, common, x.scale.stride(0), row_stride(residual),
        gelu, shared, modal is not None, tile.stages, num_warps=tile.warps, **overlap(),
    )  # fmt: skip


def per_processor(tile: Tile) -> int:
    """How many programs a processor holds at once: two of 4 warps where shared memory has room for both, else one."""
    size = (tile.rows + tile.columns) * tile.inputs * tile.stages + tile.rows * 32 + RESERVED
    return 2 if tile.warps == 4 and 2 * size <= _PER_PROCESSOR else 1


def _boxes(x: Tensor, rows: int, inputs: int) -> Any:
    """int8 [M, K] as TMA reads it, in boxes [rows, inputs], with zeros past its ends."""
    layout = gl.NVMMASharedLayout.get_default_for([rows, inputs], gl.int8)
    return TensorDescriptor(x, list(x.shape), [x.stride(0), 1], [rows, inputs], layout)


@gluon_jit
def _multiply_hopper(  # noqa: PLR0912 (branches on a constexpr are not compiled)
    x: Value, w: Value, y: Pointer, row_scale: Pointer, column_scale: Pointer, bias: Pointer, residual: Pointer,
    sums: Pointer, arrived: Pointer, m: Value, n: Value, steps: Value, tiles: Value, whole: Value, split: Value,
    common: Value, scale_stride: Value, residual_stride: Value,
    gelu: constexpr, shared: constexpr, modal: constexpr, stages: constexpr, num_warps: constexpr,
    pdl: constexpr,
) -> None:  # fmt: skip
    """y = residual + activation(row_scale · column_scale · x wᵀ + bias), over this program's steps."""
    if pdl:
        gdc_launch_dependents()
    rows: constexpr = x.block_type.shape[0]
    columns: constexpr = w.block_type.shape[0]
    inputs: constexpr = x.block_type.shape[1]
    layout: constexpr = gl.NVMMADistributedLayout([3, 0], [num_warps, 1], [16, columns, 32])
    program, programs = gl.program_id(0), gl.num_programs(0)
    if shared:
        rest = (tiles - whole * programs) * steps
        first = rest * program // programs
        total = whole * steps + rest * (program + 1) // programs - first
    else:
        first = 0
        total = gl.cdiv(tiles - program, programs) * steps
        whole = total // steps

    a = gl.allocate_shared_memory(gl.int8, [stages, rows, inputs], x.layout)
    b = gl.allocate_shared_memory(gl.int8, [stages, columns, inputs], w.layout)
    ready = gl.allocate_shared_memory(gl.int64, [stages, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(stages):
        mbarrier.init(ready.index(i), count=1)
    # weights are loaded while the kernel before this one still writes x
    for i in gl.static_range(stages - 1):
        _load(x, w, a, b, ready, i, total, steps, whole, first, m, n, split, common, modal, True, False)
    if pdl:
        gdc_wait()
    for i in gl.static_range(stages - 1):
        _load(x, w, a, b, ready, i, total, steps, whole, first, m, n, split, common, modal, False, True)

    s = 0  # of `total` steps
    while s < total:
        tile, k = _place(s, steps, whole, first)
        count = gl.minimum(steps - k, total - s)
        acc = gl.zeros([rows, columns], gl.int32, layout)
        for step in range(count):
            stage = s % stages
            mbarrier.wait(ready.index(stage), s // stages & 1)
            acc = warpgroup_mma(a.index(stage), b.index(stage).permute((1, 0)), acc, use_acc=step > 0, is_async=True)
            acc = warpgroup_mma_wait(num_outstanding=1, deps=(acc,))
            # the earlier product is done, and what it read may be overwritten
            ahead = s + stages - 1
            _load(x, w, a, b, ready, ahead, total, steps, whole, first, m, n, split, common, modal, True, True)
            s += 1
        acc = warpgroup_mma_wait(num_outstanding=0, deps=(acc,))
        row, row_end, channel, column, column_end = gluon_origin(tile, m, n, split, common, modal, rows, columns)
        complete = True
        if shared and count < steps:
            place = tile - whole * programs
            acc, complete = _add_part(
                acc, sums + place * (rows * columns), arrived + place, row_end - row, count, steps
            )
        if complete:
            left, right = _halves(acc)
            for part in gl.static_range(_PARTS):
                quarter = _halves(left if part < _PARTS // 2 else right)[part % 2]
                at = part * (columns // _PARTS)
                _finish(quarter, y, row_scale, column_scale, bias, residual, row, row_end, channel + at, column + at,
                        column_end, n, scale_stride, residual_stride, gelu, num_warps)  # fmt: skip
    for i in gl.static_range(stages):
        mbarrier.invalidate(ready.index(i))


@gluon_jit
def _place(s: Value, steps: Value, whole: Value, first: Value) -> Value:
    """The tile that this program's step s belongs to, and which of the tile's steps it is."""
    program, programs = gl.program_id(0), gl.num_programs(0)
    own = s < whole * steps
    at = gl.where(own, s, first + s - whole * steps)
    tile = at // steps
    return gl.where(own, program + tile * programs, whole * programs + tile), at % steps


@gluon_jit
def _load(
    x: Value, w: Value, a: Value, b: Value, ready: Value, s: Value, total: Value, steps: Value, whole: Value,
    first: Value, m: Value, n: Value, split: Value, common: Value, modal: constexpr, of_w: constexpr, of_x: constexpr,
) -> None:  # fmt: skip
    """Asks TMA for the boxes of step s, if there is such a step. `of_w` also announces the bytes of both boxes."""
    stages: constexpr = a.shape[0]
    tile, k = _place(s, steps, whole, first)
    row, _, channel, _, _ = gluon_origin(tile, m, n, split, common, modal, a.shape[1], b.shape[1])
    bar = ready.index(s % stages)
    if of_w:
        mbarrier.expect(bar, x.block_type.nbytes + w.block_type.nbytes, pred=s < total)
        tma.async_copy_global_to_shared(w, [channel, k * b.shape[2]], bar, b.index(s % stages), pred=s < total)
    if of_x:
        tma.async_copy_global_to_shared(x, [row, k * a.shape[2]], bar, a.index(s % stages), pred=s < total)


@gluon_jit
def _add_part(acc: Value, sums: Pointer, arrived: Pointer, height: Value, count: Value, steps: Value) -> Value:
    """Adds a part of `count` steps to a tile's first `height` rows -> the sums, and whether they are complete.

    The last program to come reads the sums, and leaves zeros for the next product.
    """
    rows: constexpr = acc.shape[0]
    columns: constexpr = acc.shape[1]
    i = gl.arange(0, rows, gl.SliceLayout(1, acc.type.layout))
    j = gl.arange(0, columns, gl.SliceLayout(0, acc.type.layout))
    place = sums + i[:, None] * columns + j[None, :]
    inside = (i < height)[:, None] & (j < columns)[None, :]
    gl.atomic_add(place, acc, inside, sem="relaxed")
    thread_barrier()  # the parts of all threads are in memory before the program says so
    complete = gl.atomic_add(arrived, count, sem="acq_rel") + count == steps
    if complete:
        acc = gl.load(place, inside, 0, cache_modifier=".cg")
        gl.store(place, gl.zeros_like(acc), inside)
        gl.store(arrived, 0)
    return acc, complete


@gluon_jit
def _halves(x: Value) -> Value:
    """[rows, columns] -> the left and the right columns, of which each thread has the same number."""
    return x.reshape([x.shape[0], 2, x.shape[1] // 2]).permute((0, 2, 1)).split()


@gluon_jit
def _finish(
    acc: Value, y: Pointer, row_scale: Pointer, column_scale: Pointer, bias: Pointer, residual: Pointer,
    row: Value, row_end: Value, channel: Value, column: Value, column_end: Value, n: Value, scale_stride: Value,
    residual_stride: Value, gelu: constexpr, num_warps: constexpr,
) -> None:  # fmt: skip
    """`epilogue.finish`, in its order, for a part of a tile."""
    rows: constexpr = acc.shape[0]
    columns: constexpr = acc.shape[1]
    layout: constexpr = acc.type.layout
    i = row + gl.arange(0, rows, gl.SliceLayout(1, layout))
    j = gl.arange(0, columns, gl.SliceLayout(0, layout))
    there = column + j < column_end
    product = acc.to(gl.float32)
    product *= gl.load(row_scale + i * scale_stride, i < row_end, 0.0)[:, None]
    product *= gl.load(column_scale + channel + j, there, 0.0)[None, :]
    if bias is not None:
        product += gl.load(bias + channel + j, there, 0.0).to(gl.float32)[None, :]
    if gelu:
        product = product * (1.0 / (1.0 + gl.exp(-1.702 * product)))
    lines: constexpr = _lines(rows, columns, num_warps)
    i = row + gl.arange(0, rows, gl.SliceLayout(1, lines))
    j = column + gl.arange(0, columns, gl.SliceLayout(0, lines))
    inside = (i < row_end)[:, None] & (j < column_end)[None, :]
    i = i.to(gl.int64)[:, None]
    if residual is not None:
        added = gl.load(residual + i * residual_stride + j[None, :], inside, 0.0)
        product += gl.convert_layout(added, layout).to(gl.float32)
    gl.store(y + i * n + j[None, :], gl.convert_layout(product.to(y.dtype.element_ty), lines), inside)


@at_compile_time
def _lines(rows: int, columns: int, warps: int) -> Any:
    """The layout of [rows, columns] for loads and stores: 8 columns for a thread, whole rows of its own for a warp."""
    along = _powers(8, columns, 1)
    down = _powers(1, 1 << (5 - len(along)), 0)
    return gl.DistributedLinearLayout(
        reg_bases=_powers(1, 8, 1) + _powers(1 << len(down), 16, 0) + _powers(16 * warps, rows, 0),
        lane_bases=along + down,
        warp_bases=_powers(16, 16 * warps, 0),
        block_bases=[],
        shape=[rows, columns],
    )


@at_compile_time
def _powers(first: int, end: int, dim: int) -> list[list[int]]:
    """Steps of first, 2 first, 4 first, ... below `end`, along rows (dim 0) or columns (dim 1)."""
    found = []
    while first < end:
        found.append([first * (dim == 0), first * (dim == 1)])
        first *= 2
    return found
