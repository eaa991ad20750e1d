"""A list of names in, entries out: a text file with a path or a URL a line, or such a list on stdin."""

from __future__ import annotations

import os
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import TYPE_CHECKING

from qalign_fast.errors import OptionError
from qalign_fast.jobs.entries import Entry
from qalign_fast.jobs.inputs.files import entries_of_files, entry_of_file
from qalign_fast.jobs.inputs.stores import entry_of_url, is_url
from qalign_fast.sources import Refused, find_sources

if TYPE_CHECKING:
    from qalign_fast.jobs.inputs.taking import InputOptions


def listed(name: str, options: InputOptions, stdin: BufferedIOBase) -> Iterator[Entry]:
    """The entries of a list, in order; "-" is stdin. Raises OptionError for a list that cannot be read."""
    if options.keep or options.column:
        raise OptionError(f"{name}: a list has no columns; tables and tars have")
    if name == "-":
        yield from _entries(stdin, options)
        return
    try:
        with Path(name).open("rb") as file:
            yield from _entries(file, options)
    except OSError as error:
        raise OptionError(f"{name}: {error.strerror or error}") from error


def _entries(stream: BufferedIOBase, options: InputOptions) -> Iterator[Entry]:
    for source in find_sources(["-"], stream):
        if isinstance(source, Refused):
            yield from entries_of_files([source])
        else:
            yield entry_of_name(source, source, options.root, options.protocols)


def entry_of_name(source: str, name: str, root: str | None, protocols: tuple[str, ...]) -> Entry:
    """A path or a URL that a list or a table names. A relative path starts from `root`, which may be a URL."""
    if root and not is_url(name):
        name = os.path.join(root, name)  # noqa: PTH118
    try:
        os.fsencode(name), os.fsencode(source)
    except UnicodeEncodeError:
        shown = source.encode("utf-8", "backslashreplace").decode()
        return Entry(shown, shown.encode(), problem=f"{shown}: no file can have this name")
    return entry_of_url(source, name, protocols) if is_url(name) else entry_of_file(source, name)
