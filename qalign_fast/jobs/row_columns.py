"""Cells in, columns out, in the types of NumPy and Arrow; an Arrow column of pictures in, the pictures out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

Kind: TypeAlias = Literal["float64", "string"]
Columns: TypeAlias = "dict[str, npt.NDArray[Any]]"  # float64 with NaN; objects, a text or None


def make_column(cells: list[Any], kind: Kind) -> npt.NDArray[Any]:
    """A column of a kind, whatever its cells are; NaN stands for None in float64."""
    if kind == "string":
        found = np.empty(len(cells), object)
        found[:] = cells
        return found
    return np.array([np.nan if cell is None else cell for cell in cells], np.float64)


def texts_for_none(columns: Columns) -> Columns:
    """The columns with "" in place of None, for tools that guess a column's type from its values, batch by batch."""
    return {
        name: np.array(["" if cell is None else cell for cell in cells], object) if cells.dtype == object else cells
        for name, cells in columns.items()
    }


def arrow_media(column: Any) -> Iterator[Any]:
    """The media of a pyarrow array, one by one; bytes are not copied."""
    binary = str(column.type).removeprefix("large_").startswith(("binary", "fixed_size_binary"))
    for cell in column:
        yield memoryview(cell.as_buffer()) if binary and cell.is_valid else cell.as_py()


def arrow_columns(columns: Columns, kinds: dict[str, Kind]) -> dict[str, Any]:
    """Columns as pyarrow arrays, float64 and string, with nulls."""
    import pyarrow as pa

    types = {"float64": pa.float64(), "string": pa.string()}
    return {name: pa.array(cells, types[kinds[name]], from_pandas=True) for name, cells in columns.items()}
