"""A tile's number in, its place in the product out: one text for kernels in Triton and in Gluon."""

from __future__ import annotations

from qalign_kernels.cuda.runtime import Pointer, Value, constexpr, gluon_jit, jit, tl

_BAND = constexpr(8)  # tiles of rows that go along the columns together, so that they find weights in the cache


def _origin(
    tile: Value, m: Value, n: Value, split: Value, common: Value, modal: constexpr, rows: constexpr, columns: constexpr
) -> Value:
    """A tile's first row, end of rows, first channel of w, first column of y [m, n], and end of columns.

    With `modal`, the tiles of the columns that all rows have come first, then those of visual rows, then those of text
    rows: see `contract.linear.Modal`.
    """
    height, width, above, before, skipped = m, n, 0, 0, 0
    if modal:
        own = n - common
        of_all = (m + rows - 1) // rows * ((common + columns - 1) // columns)
        of_visual = (split + rows - 1) // rows * ((own + columns - 1) // columns)
        visual, text = tile >= of_all, tile >= of_all + of_visual  # or text
        height = tl.where(text, m - split, tl.where(visual, split, m))
        width = tl.where(visual, own, common)
        above = tl.where(text, split, 0)
        before = tl.where(visual, common, 0)
        skipped = tl.where(text, own, 0)
        tile -= tl.where(text, of_all + of_visual, tl.where(visual, of_all, 0))
    across, down = (width + columns - 1) // columns, (height + rows - 1) // rows
    first = tile // (_BAND * across) * _BAND
    band = tl.minimum(down - first, _BAND)
    inside = tile % (_BAND * across)
    row, column = above + (first + inside % band) * rows, before + inside // band * columns
    return row, above + height, column + skipped, column, before + width


origin = jit(_origin)
gluon_origin = gluon_jit(_origin)


@jit
def row_places(x: Pointer, i: Value, row: Value, row_end: Value, stride: Value) -> Value:
    """The addresses [rows, 1] of x's rows i; from `row_end` on, that of `row` instead."""
    return x + tl.where(i < row_end, i, row).to(tl.int64)[:, None] * stride
