"""Files found on this machine in, entries out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from qalign_fast.jobs.entries import Entry
from qalign_fast.sources import Refused, is_video

if TYPE_CHECKING:
    from qalign_fast.sources import Source


def entries_of_files(sources: Iterable[Source]) -> Iterator[Entry]:
    """An entry for each, with the size and time that the file has now. One that cannot be had tells so in its row."""
    for source in sources:
        if isinstance(source, Refused):
            yield Entry(source.path, os.fsencode(source.path), problem=str(source.error))
        else:
            yield entry_of_file(source, source)


def entry_of_file(source: str, path: str) -> Entry:
    """A file by its path, and what its rows call it. Its suffix says whether it is a picture or a clip."""
    entry = Entry(source, os.fsencode(path), medium="video" if is_video(path) else "image")
    try:
        status = os.stat(path)  # noqa: PTH116 (a Path for each of millions takes longer than the call)
    except (OSError, ValueError):  # its row tells the error
        return entry
    entry.size, entry.mtime_ns = status.st_size, status.st_mtime_ns
    return entry
