"""The kernel of `cuda.linear` for int4: weights are loaded ahead in 4 bits, and become int8 just before the product.

Each thread reads the bytes whose inputs its tensor core instruction will want, so that weights are spread in registers
and stay there. The tile is computed on its side, w xᵀ, because Hopper's matrix units take only the left operand from
registers. Four inputs of a word are spread at once, as k (w - z) + 128 in each byte, so that no byte borrows from the
next one.

Triton's compiler loads weights as the product wants them only where everything between is made of loads, constants and
steps within a thread. With an arange there, weights would go through shared memory a second time.

Letters: M rows, K inputs, N output channels, B = ceil(K / 128) blocks.
"""

from __future__ import annotations

from qalign_kernels.cuda.epilogue import finish_tile
from qalign_kernels.cuda.runtime import Pointer, Value, begin, constexpr, jit, tl
from qalign_kernels.cuda.tile_order import origin, row_places

_HALF = constexpr(64)  # inputs in the low halves of a block's bytes, and in the high halves
_WORDS = constexpr(16)  # words of a half, four inputs each
_EACH = constexpr(0x01010101)  # times a number below 256: that number in each byte of a word
_LOW = constexpr(0x0F0F0F0F)
_MIDDLE = constexpr(0x80808080)


@jit
def multiply_int4(
    x: Pointer, w: Pointer, groups: Pointer, y: Pointer, row_scale: Pointer, column_scale: Pointer, bias: Pointer,
    residual: Pointer, sums: Pointer, arrived: Pointer, m: Value, n: Value, k: Value, split: Value, common: Value,
    x_stride: Value, scale_stride: Value, residual_stride: Value, gelu: constexpr, even: constexpr, modal: constexpr,
    splits: constexpr, rows: constexpr, more_rows: constexpr, columns: constexpr, pdl: constexpr,
) -> None:  # fmt: skip
    """y = residual + activation(row_scale · column_scale · x wᵀ + bias): x [m, k], w [n, B, 64], or as `Modal` says.

    A word of `groups` [n, B] holds the four groups of a block.
    """
    begin(pdl)
    tile, part = tl.program_id(0) // splits, tl.program_id(0) % splits
    row, row_end, channel, column, column_end = origin(tile, m, n, split, common, modal, rows + more_rows, columns)
    i, j = row + tl.arange(0, rows), column + tl.arange(0, columns)
    blocks = tl.cdiv(k, 2 * _HALF)
    first, last = blocks * part // splits, blocks * (part + 1) // splits
    half = tl.arange(0, _HALF)[None, :]
    a = row_places(x, i, row, row_end, x_stride) + first * (2 * _HALF) + half
    own = (channel + tl.where(j < column_end, j - column, 0)).to(tl.int64) * blocks + first
    b, c = w + own[:, None] * _HALF + half, groups + own
    total = tl.zeros((columns, rows), tl.int32)
    more = None
    if more_rows > 0:
        more_i = row + rows + tl.arange(0, more_rows)
        more_a = row_places(x, more_i, row, row_end, x_stride) + first * (2 * _HALF) + half
        more = tl.zeros((columns, more_rows), tl.int32)
    for block in range(first, last):
        pairs, of_groups = words(tl.load(b)), tl.load(c)
        multipliers, zeros = ((of_groups >> 4) & _LOW) + _EACH, of_groups & _LOW
        low = spread(pairs & _LOW, multipliers, zeros, 0)
        high = spread((pairs >> 4) & _LOW, multipliers, zeros, 16)
        inside = k - block * (2 * _HALF)
        total = tl.dot(to_bytes(low), load_half(a, half, inside, even).T, total, out_dtype=tl.int32)
        total = tl.dot(to_bytes(high), load_half(a + _HALF, half + _HALF, inside, even).T, total, out_dtype=tl.int32)
        if more_rows > 0:
            # As signed words: if both products read the same values, the compiler would keep only one's in registers.
            left, right = to_bytes(low.to(tl.int32, bitcast=True)), to_bytes(high.to(tl.int32, bitcast=True))
            more = tl.dot(left, load_half(more_a, half, inside, even).T, more, out_dtype=tl.int32)
            more = tl.dot(right, load_half(more_a + _HALF, half + _HALF, inside, even).T, more, out_dtype=tl.int32)
            more_a += 2 * _HALF
        a += 2 * _HALF
        b += _HALF
        c += 1
    finish_tile(total, more, sums, arrived, tile, splits, True, y, row_scale, column_scale, bias, residual, row,
                row_end, channel, column, column_end, n, scale_stride, residual_stride, gelu, modal)  # fmt: skip


@jit
def load_half(place: Pointer, inputs: Value, inside: Value, even: constexpr) -> Value:
    return tl.load(place) if even else tl.load(place, inputs < inside, 0)


@jit
def words(b: Value) -> Value:
    """uint8 [columns, 64] -> uint32 [columns, 16], as registers hold them already."""
    even, odd = b.to(tl.uint32).reshape(b.shape[0], _WORDS, 2, 2).split()
    first, third = even.split()
    second, fourth = odd.split()
    return first | (second << 8) | (third << 16) | (fourth << 24)


@jit
def spread(codes: Value, multipliers: Value, zeros: Value, shift: constexpr) -> Value:
    """k (w - z) as words of int8: w uint32 [columns, 16], k and z [columns] words of four groups.

    The two groups from bit `shift` on are taken. Sums wrap.
    """
    k, next_k = (multipliers >> shift) & 255, (multipliers >> (shift + 8)) & 255
    kz, next_kz = k * (((zeros >> shift) & 255) * _EACH), next_k * (((zeros >> (shift + 8)) & 255) * _EACH)
    added = tl.sub(_MIDDLE, of_words(kz, next_kz), sanitize_overflow=False)
    return tl.add(codes * of_words(k, next_k), added, sanitize_overflow=False) ^ _MIDDLE


@jit
def to_bytes(v: Value) -> Value:
    """Words [columns, 16] -> int8 [columns, 64], as registers hold them already."""
    even = tl.join(v.to(tl.int8), (v >> 16).to(tl.int8))
    odd = tl.join((v >> 8).to(tl.int8), (v >> 24).to(tl.int8))
    return tl.join(even, odd).reshape(v.shape[0], 4 * _WORDS)


@jit
def of_words(one: Value, other: Value) -> Value:
    """Numbers of two groups [columns] each -> the same for each word, eight words a group [columns, 16]."""
    each = tl.broadcast_to(tl.join(one, other)[:, :, None], (one.shape[0], 2, _WORDS // 2))
    return each.reshape(one.shape[0], _WORDS)
