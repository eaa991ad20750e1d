"""The inputs that a user names in, groups of entries out: what each of them is, and who reads it."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from io import BufferedIOBase, BytesIO
from pathlib import Path

from qalign_fast.errors import OptionError
from qalign_fast.jobs.entries import Entry
from qalign_fast.jobs.inputs.files import entries_of_files
from qalign_fast.jobs.inputs.lists import listed
from qalign_fast.jobs.inputs.saved_datasets import arrow_files, is_saved_dataset
from qalign_fast.jobs.inputs.stores import entries_of_urls, is_url, matching_urls, protocols_of, suffix_of
from qalign_fast.jobs.inputs.tables import SUFFIXES as TABLES
from qalign_fast.jobs.inputs.tables import entries_of_table
from qalign_fast.jobs.inputs.taking import InputOptions
from qalign_fast.jobs.inputs.tars import entries_of_tar
from qalign_fast.sources import CLIP_SUFFIXES, IMAGE_SUFFIXES, find_sources

_LISTS = frozenset([".txt", ".lst", ".list"])
_COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")
_FILE_NAME = "file_name"
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # as the datasets library's image folder has them


@dataclass(frozen=True)
class Group:
    """Entries that make shards together. A tar's are one shard, which is named after it."""

    entries: Iterator[Entry]
    tar: str | None = None


def find_entries(
    inputs: Sequence[str], options: InputOptions, stdin: BufferedIOBase, skipped: Callable[[str], None] = lambda _: None
) -> Iterator[Group]:
    """The entries of every input, in order. `skipped` hears the kind of what is left out: files, samples.

    Raises OptionError for an input that cannot be read as what it is, and for columns that it does not have.
    """
    loose: list[str] = []
    for name in (each for named in inputs for each in _matches(named)):
        if (read := _reader_of(name, options, stdin, skipped)) is None:
            loose.append(name)  # files, folders of pictures and patterns follow one another in one group
            continue
        if loose:
            yield Group(_of_files(loose, options, stdin, skipped))
            loose = []
        yield from read()
    if loose:
        yield Group(_of_files(loose, options, stdin, skipped))


def _matches(name: str) -> list[str]:
    """The tars and tables that a pattern matches; any other name is itself."""
    if not name:
        raise OptionError("an input's name is empty")
    if suffix_of(name) in (".tar", *TABLES) and any(sign in name for sign in "*?["):
        if is_url(name):
            return matching_urls(name)
        if not os.path.lexists(name):
            return sorted(glob.glob(name, recursive=True)) or [name]  # noqa: PTH207
    return [name]


def _reader_of(
    name: str, options: InputOptions, stdin: BufferedIOBase, skipped: Callable[[str], None]
) -> Callable[[], Iterable[Group]] | None:
    """What reads an input that is more than a file, a folder of pictures or a pattern."""
    suffix, allowed = suffix_of(name), options.protocols
    if Path(name).is_dir():
        return (lambda: _of_folder(name, options, skipped)) if _is_dataset(name) else None
    if is_url(name):
        allowed = (*allowed, *protocols_of(name))  # who names a store on the command line allows it
    if name.lower().endswith(_COMPRESSED):
        raise OptionError(f"{name}: a compressed tar cannot be read in parts; unpack it to a .tar first")
    if suffix == ".tar":
        return lambda: [Group(entries_of_tar(name, options, allowed, skipped), name)]
    if suffix in TABLES:
        return lambda: [Group(entries_of_table(name, options, allowed))]
    if is_url(name):
        return lambda: [Group(entries_of_urls(name, options, allowed))]
    return (lambda: [Group(listed(name, options, stdin))]) if name == "-" or suffix in _LISTS else None


def _is_dataset(folder: str) -> bool:
    """Whether a folder is a saved data set, one of tars or tables, or has a table about its pictures."""
    if is_saved_dataset(folder) or _metadata(folder):
        return True
    return not _holds_media(folder) and bool(_tars(folder) or _tables(folder))


def _of_folder(folder: str, options: InputOptions, skipped: Callable[[str], None]) -> Iterable[Group]:
    if is_saved_dataset(folder):
        return (Group(entries_of_table(file, options, options.protocols)) for file in arrow_files(folder))
    if table := _metadata(folder):
        return [Group(_named(folder, table, options, skipped))]
    if tars := _tars(folder):
        return (Group(entries_of_tar(tar, options, options.protocols, skipped), tar) for tar in tars)
    return (Group(entries_of_table(table, options, options.protocols)) for table in _tables(folder))


def _named(folder: str, table: str, options: InputOptions, skipped: Callable[[str], None]) -> Iterator[Entry]:
    """The pictures that the folder's table names; then `skipped` hears of each that lies there and is not named."""
    named = set()
    taking = replace(options, column=options.column or _FILE_NAME)
    for entry in entries_of_table(table, taking, options.protocols):
        named.add(os.path.normpath(entry.place))
        yield entry
    for source in find_sources([folder], BytesIO(), recursive=True, formats=options.formats):
        if isinstance(source, str) and os.path.normpath(os.fsencode(source)) not in named:
            skipped(f"not named in {Path(table).name}")


def _of_files(
    names: list[str], options: InputOptions, stdin: BufferedIOBase, skipped: Callable[[str], None]
) -> Iterator[Entry]:
    if options.keep or options.column:
        raise OptionError(f"{names[0]}: files and folders of pictures have no columns; tables and tars have")
    found = find_sources(names, stdin, recursive=options.recursive, formats=options.formats, skipped=skipped)
    return entries_of_files(found)


def _metadata(folder: str) -> str | None:
    """A table about the folder's pictures, which its column `file_name` names."""
    for path in (Path(folder, name) for name in _METADATA):
        if path.is_file() and _FILE_NAME.encode() in path.read_bytes():
            return str(path)
    return None


def _holds_media(folder: str) -> bool:
    """Whether a picture or a clip lies in the folder itself."""
    wanted = IMAGE_SUFFIXES | CLIP_SUFFIXES
    with os.scandir(folder) as entries:
        return any(Path(entry.name).suffix.lower() in wanted for entry in entries)


def _tars(folder: str) -> list[str]:
    return sorted(str(path) for path in Path(folder).glob("*.tar"))


def _tables(folder: str) -> list[str]:
    """Parquet files in the folder, or in its `data`, as data sets on the Hub have them."""
    return sorted(str(path) for path in (*Path(folder).glob("*.parquet"), *Path(folder).glob("data/*.parquet")))
