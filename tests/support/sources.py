"""Sources as a user names them, and folders to find them in."""

from __future__ import annotations

import io
import os
from itertools import islice
from pathlib import Path

from qalign_fast.errors import ImageError
from qalign_fast.sources import Refused, Source, find_sources


def find(*paths: object, stdin: bytes = b"", **options) -> list[Source]:
    """The first thousand: a loop that does not end is a failure, and no hang."""
    return list(islice(find_sources(map(str, paths), io.BytesIO(stdin), **options), 1000))


def told(sources: list[Source]) -> list[object]:
    """Refused ones as (path, message), for errors are not equal."""
    refused = [source for source in sources if isinstance(source, Refused)]
    assert all(type(source.error) is ImageError for source in refused)
    return [(s.path, str(s.error)) if isinstance(s, Refused) else s for s in sources]


def fill(folder: Path, *names: str, content: bytes = b"") -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def names(folder: Path, **options) -> list[str]:
    """The paths found in a folder, from it on."""
    return [os.path.relpath(path, folder) for path in find(folder, **options)]
