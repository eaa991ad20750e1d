"""The plan: every input in a fixed shard, written before work begins. Entries in, and out again shard by shard."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

from qalign_fast.errors import QAlignError
from qalign_fast.jobs.entries import Entry, Kind
from qalign_fast.jobs.inputs.found import Group
from qalign_fast.jobs.packages import pa, pq

_RESERVED = re.compile(r"[_.]|part-\d+$")  # names that readers leave out, and other shards'
_KINDS: tuple[Kind, ...] = ("file", "slice", "row")
_SCHEMA = pa.schema(
    [
        ("source", pa.binary()),
        ("place", pa.binary()),  # null: the source
        ("kind", pa.int8()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("clip", pa.bool_()),
        ("key", pa.binary()),
        ("keep", pa.string()),  # JSON
        ("problem", pa.binary()),
    ]
)


@dataclass
class Summary:
    """What a plan holds.

    bytes: of the inputs whose size is known.
    kept: the type of each kept column, "bool", "int", "float" or "string".
    names: of the shards that are named after a tar, by number.
    """

    inputs: int = 0
    clips: int = 0
    shards: int = 0
    bytes: int = 0
    keyed: bool = False
    kept: dict[str, str] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)

    def name(self, shard: int) -> str:
        """A shard's file, without its suffix."""
        return self.names.get(shard, f"part-{shard:05d}")


def write_plan(
    path: Path,
    groups: Iterable[Group],
    shard_size: int,
    keep: Sequence[str],
    seen: Callable[[int], None] = lambda _: None,
) -> Summary:
    """Writes the entries into a plan, a row group for each shard. `seen` hears how many there are so far.

    Raises OptionError for an input that cannot be read, QAlignError where there is none at all, OSError.
    """
    summary, taken = Summary(kept=dict.fromkeys(keep, "null")), set[str]()
    with pq.ParquetWriter(path, _SCHEMA, compression="zstd") as writer:
        for tar, entries in _shards(groups, shard_size):
            if tar is not None:
                summary.names[summary.shards] = _name_of(tar, summary.shards, taken)
            writer.write_table(_to_table(entries), row_group_size=len(entries))
            _count(entries, summary)
            seen(summary.inputs)
    if not summary.inputs:
        raise QAlignError("there is nothing to score: no picture and no clip was found")
    summary.kept = {name: "string" if kind == "null" else kind for name, kind in summary.kept.items()}
    return summary


class Plan:
    """A plan that was written. One thread at a time reads it."""

    def __init__(self, path: Path, folder: str) -> None:
        """`folder`: where relative paths start. Raises QAlignError for a plan that cannot be read."""
        self._folder = os.fsencode(folder)
        try:
            self._file = pq.ParquetFile(path)
        except (OSError, pa.ArrowException) as error:
            raise QAlignError(f"{path}: the plan cannot be read ({error}); --force starts anew") from error
        self.shards: int = self._file.metadata.num_row_groups

    def inputs(self, shard: int) -> int:
        """How many a shard has."""
        return int(self._file.metadata.row_group(shard).num_rows)

    def entries(self, shard: int) -> list[Entry]:
        """A shard's inputs, in order."""
        rows = self._file.read_row_group(shard).to_pylist()
        return [self._entry(row, shard, number) for number, row in enumerate(rows)]

    def _entry(self, row: dict[str, Any], shard: int, number: int) -> Entry:
        place = row["source"] if row["place"] is None else row["place"]
        if b"://" not in place and not os.path.isabs(place):  # noqa: PTH117 (bytes)
            place = os.path.join(self._folder, place)  # noqa: PTH118 (bytes)
        return Entry(
            os.fsdecode(row["source"]),
            place,
            _KINDS[row["kind"]],
            row["offset"],
            row["size"],
            row["mtime_ns"],
            "video" if row["clip"] else "image",
            None if row["key"] is None else os.fsdecode(row["key"]),
            json.loads(row["keep"]) if row["keep"] else {},
            None if row["problem"] is None else os.fsdecode(row["problem"]),
            shard,
            number,
        )


def _shards(groups: Iterable[Group], size: int) -> Iterator[tuple[str | None, list[Entry]]]:
    """The entries of each shard. A tar's are one, whatever their number; all others follow one another."""
    waiting: list[Entry] = []
    for group in groups:
        if group.tar is not None:
            if waiting:
                yield None, waiting
                waiting = []
            if entries := list(group.entries):
                yield group.tar, entries
            continue
        while more := list(islice(group.entries, size - len(waiting))):
            waiting += more
            if len(waiting) == size:
                yield None, waiting
                waiting = []
    if waiting:
        yield None, waiting


def _name_of(tar: str, shard: int, taken: set[str]) -> str:
    """The tar's name; where another has the same, with its folder's before it, or its shard's number behind it."""
    path = Path(tar)
    names = (path.stem, f"{path.parent.name}-{path.stem}", f"{path.stem}-{shard:05d}")
    numbered = (f"tar-{shard:05d}" + "-" * more for more in count())
    name = next(name for name in chain(names, numbered) if name not in taken and not _RESERVED.match(name))
    taken.add(name)
    return name


def _to_table(entries: list[Entry]) -> pa.Table:
    sources = [os.fsencode(entry.source) for entry in entries]
    columns = [
        sources,
        [None if entry.place == source else entry.place for entry, source in zip(entries, sources, strict=True)],
        [_KINDS.index(entry.kind) for entry in entries],
        [entry.offset for entry in entries],
        [entry.size for entry in entries],
        [entry.mtime_ns for entry in entries],
        [entry.medium == "video" for entry in entries],
        [None if entry.key is None else os.fsencode(entry.key) for entry in entries],
        [json.dumps(entry.keep, default=str) if entry.keep else None for entry in entries],
        [None if entry.problem is None else os.fsencode(entry.problem) for entry in entries],
    ]
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, _SCHEMA, strict=True)], _SCHEMA)


def _count(entries: list[Entry], summary: Summary) -> None:
    summary.shards += 1
    summary.inputs += len(entries)
    for entry in entries:
        summary.bytes += max(0, entry.size)
        summary.clips += entry.medium == "video"
        summary.keyed |= entry.key is not None
        for name, value in entry.keep.items():
            summary.kept[name] = _wider(summary.kept[name], value)


def _wider(kind: str, value: Any) -> str:
    """The type that holds a column's values so far, and this one."""
    if value is None:
        return kind
    its = {bool: "bool", int: "int", float: "float"}.get(type(value), "string")
    if its == "int" and not -(1 << 63) <= value < 1 << 63:
        its = "string"
    if kind in ("null", its):
        return its
    return "float" if {kind, its} == {"int", "float"} else "string"
