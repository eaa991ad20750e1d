"""A Parquet or Arrow file in, its columns out in batches, or the bytes of one row after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from qalign_fast.errors import OptionError, one_line
from qalign_fast.jobs.inputs.stores import open_input, suffix_of

if TYPE_CHECKING:
    import pyarrow as pa


@contextmanager
def open_columns(name: str, protocols: tuple[str, ...]) -> Iterator[Parquet | Arrow]:
    """A table's file, opened. Raises OptionError for one that is none, OSError."""
    import pyarrow as pa

    with open_input(name, protocols) as file:
        try:
            yield Parquet(file) if suffix_of(name) == ".parquet" else Arrow(name)
        except pa.ArrowException as error:
            raise OptionError(f"{name}: cannot be read as a table ({one_line(error)})") from error


class Parquet:
    """Reads pages as they are needed: a row group may hold gigabytes of pictures."""

    def __init__(self, file: Any) -> None:
        import pyarrow.parquet as pq

        self._file = pq.ParquetFile(file, pre_buffer=False)
        self.schema: pa.Schema = self._file.schema_arrow

    def batches(
        self, columns: Sequence[str], rows: int, start: int = 0, *, paths_of: str | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Batches of these columns, from row `start` on. `paths_of` adds a column of structs, only their paths."""
        group, skipped = 0, 0
        about = self._file.metadata
        while group < about.num_row_groups and skipped + about.row_group(group).num_rows <= start:
            skipped += about.row_group(group).num_rows
            group += 1
        groups = list(range(group, about.num_row_groups))
        wanted = [*columns, *([f"{paths_of}.path"] if paths_of else [])]
        for batch in self._file.iter_batches(rows, row_groups=groups, columns=wanted):
            left = max(0, min(batch.num_rows, start - skipped))
            skipped += batch.num_rows
            if left < batch.num_rows:
                yield _paths_alone(batch.slice(left), paths_of)


class Arrow:
    """A file of Arrow's stream or file format, mapped: nothing is copied that is not asked for."""

    def __init__(self, name: str) -> None:
        import pyarrow as pa

        source = pa.memory_map(name)
        try:
            self._table = pa.ipc.open_stream(source).read_all()
        except pa.ArrowInvalid:
            self._table = pa.ipc.open_file(source).read_all()
        self.schema: pa.Schema = self._table.schema

    def batches(
        self, columns: Sequence[str], rows: int, start: int = 0, *, paths_of: str | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Batches of these columns, from row `start` on. `paths_of` adds a column of structs, only their paths."""
        table = self._table.select(list(dict.fromkeys([*columns, *([paths_of] if paths_of else [])]))).slice(start)
        if not columns and not paths_of:  # pyarrow forgets how many rows a table without columns has
            table = self._table.select([0]).slice(start)
        for batch in table.to_batches(max_chunksize=rows):
            yield _paths_alone(batch, paths_of)


def _paths_alone(batch: pa.RecordBatch, name: str | None) -> pa.RecordBatch:
    """The batch, with the paths in place of a column of structs."""
    if name is None:
        return batch
    import pyarrow.compute as pc

    at = batch.schema.get_field_index(name)
    return batch.set_column(at, name, pc.struct_field(batch.column(at), "path"))
