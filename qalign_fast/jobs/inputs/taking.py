"""How inputs are taken, as one value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class InputOptions:
    """How inputs are taken.

    column: of a table, the one with paths, URLs or bytes; of a tar, the suffix of the member to score. None: the first
        of the usual names.
    keep: columns of a table that the rows of output repeat; of a tar, text members, or fields of a sample's JSON
        member.
    root: the folder that relative paths of a table or a list start from. None: a table's own folder, and for a list
        the working directory.
    recursive: whether folders below folders are read.
    formats: further picture formats, as of PictureLimits.
    protocols: of stores that lists and tables may name, such as "s3" and "https".
    """

    column: str | None = None
    keep: tuple[str, ...] = ()
    root: str | None = None
    recursive: bool = False
    formats: tuple[str, ...] = ()
    protocols: tuple[str, ...] = ()
