"""What a user names on the command line in, items to score out: files, folders, globs, and lists from stdin."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

from qalign_fast.feed.items import ClipOptions, Item

CLIP_SUFFIXES = frozenset(".mp4 .m4v .mov .mkv .webm .avi .mpg .mpeg .ts .m2ts .wmv .flv .3gp .ogv".split())
IMAGE_SUFFIXES = frozenset(".jpg .jpeg .jpe .png .webp .gif .tif .tiff .bmp .ppm .pgm .pbm .avif .mpo".split())


def find_sources(paths: Iterable[str], stdin: TextIO, *, recursive: bool) -> Iterator[str]:
    """Every source in order; lazily, so that a list on stdin is scored while it still comes.

    A file is itself, whatever its name; a folder is the pictures and clips in it, by suffix and in name order; a
    pattern is what it matches, or itself, to be reported missing; "-" is one path a line from stdin. A path that the
    system refuses to look up, because it is too long or behind a closed folder, is itself too.
    """
    for path in paths:
        if path == "-":
            yield from (line.rstrip("\r\n") for line in stdin if line.strip())
        elif os.path.isdir(path):  # noqa: PTH112 (Path.is_dir raises for a path that is refused)
            yield from _in_folder(Path(path), recursive)
        elif glob.has_magic(path) and not os.path.exists(path):  # noqa: PTH110
            matches = glob.glob(path, recursive=True)  # noqa: PTH207 (Path.glob takes no absolute pattern)
            yield from sorted(matches) or [path]
        else:
            yield path


def to_items(sources: Iterable[str], clip: ClipOptions) -> Iterator[Item[str]]:
    """An item for each source, which is its key: a picture or, by its suffix, a clip."""
    for source in sources:
        yield Item(source, source, "video" if is_video(source) else "image", clip)


def is_video(source: str) -> bool:
    return Path(source).suffix.lower() in CLIP_SUFFIXES


def _in_folder(folder: Path, recursive: bool) -> list[str]:
    wanted = IMAGE_SUFFIXES | CLIP_SUFFIXES
    found = folder.rglob("*") if recursive else folder.glob("*")
    return sorted(str(p) for p in found if p.suffix.lower() in wanted and p.is_file())
