"""What a user names on the command line in, items to score out: files, folders, patterns, and lists from stdin."""

from __future__ import annotations

import glob
import os
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE, iterdecode
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from io import BufferedIOBase
from itertools import chain
from pathlib import Path
from typing import AnyStr, TypeAlias

from qalign_fast.errors import ImageError, QAlignError
from qalign_fast.feed.items import ClipOptions, Item

CLIP_SUFFIXES = frozenset(
    ".mp4 .m4v .mov .mkv .webm .avi .mpg .mpeg .m2v .vob .ts .mts .m2ts .wmv .asf .flv .f4v .3gp .3g2 .ogv .mxf .qt"
    " .y4m".split()
)
IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .jif .png .apng .webp .gif .tif .tiff .bmp .dib .ppm .pgm .pbm .avif .mpo".split()
)
MORE_SUFFIXES = {"heic": frozenset(".heic .heif .hif".split()), "jxl": frozenset([".jxl"])}  # by PictureLimits.formats

FOLDER, HIDDEN, SPECIAL, BARE = "folder", "hidden", "not a regular file", "without a suffix"  # kinds beside suffixes
_CHUNK = 1 << 16  # bytes
_UTF16 = {BOM_UTF16_LE: "utf-16-le", BOM_UTF16_BE: "utf-16-be"}


@dataclass(frozen=True, slots=True)
class Refused:
    """A folder, or the list "-", that cannot be read to its end, and why."""

    path: str
    error: QAlignError


Source: TypeAlias = "str | Refused"


def tell_skipped(kinds: Mapping[str, int]) -> str:
    """ "3 .txt, 1 hidden" of how often `find_sources` told which kind."""
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))


def find_sources(
    paths: Iterable[str],
    stdin: BufferedIOBase,
    *,
    recursive: bool = False,
    null: bool = False,
    formats: Iterable[str] = (),
    skipped: Callable[[str], None] = lambda _: None,
) -> Iterator[Source]:
    """Every source in order; lazily, so that a list on stdin is scored while it still comes.

    A folder is the pictures and clips in it, in the order of their sorted paths, and with `recursive` those of the
    folders below; `formats` adds those of MORE_SUFFIXES. `skipped` hears the kind of each entry that is left out: its
    suffix in lower case, or one of the four kinds above. "-" is a list: a name a line or, with `null`, before each null
    byte. A pattern is what it matches, or itself. All else is itself, even what is missing or what the system refuses.
    """
    wanted = CLIP_SUFFIXES.union(IMAGE_SUFFIXES, [FOLDER] * recursive, *(MORE_SUFFIXES[name] for name in formats))
    in_folder = partial(_in_folder, wanted=wanted, skipped=skipped)
    for path in paths:
        if path == "-":
            yield from _listed(stdin, null)
        elif os.path.isdir(path):  # noqa: PTH112 (Path.is_dir raises for a path that is refused)
            yield from in_folder(path)
        elif glob.has_magic(path) and not os.path.lexists(path):
            yield from _matches(path, in_folder)
        else:
            yield path


def to_items(sources: Iterable[Source], clip: ClipOptions) -> Iterator[Item[str]]:
    """An item for each source, whose path is the key: a picture or, by its suffix, a clip; or the error it has."""
    for source in sources:
        if isinstance(source, Refused):
            yield Item(source.path, source.error, clip=clip)
        else:
            yield Item(source, source, "video" if is_video(source) else "image", clip)


def find_paths(paths: Iterable[str], stdin: BufferedIOBase, *, recursive: bool = False) -> list[str]:
    """As `find_sources`, all at once. Raises the error of the first that cannot be listed."""
    found = []
    for source in find_sources(paths, stdin, recursive=recursive):
        if isinstance(source, Refused):
            raise source.error
        found.append(source)
    return found


def is_video(source: str) -> bool:
    """Whether a name's suffix is that of a clip, in either case."""
    return Path(source).suffix.lower() in CLIP_SUFFIXES


def _listed(stdin: BufferedIOBase, null: bool) -> Iterator[Source]:
    """The names of a list. Blank lines are left out; before a null byte, all but nothing at all is a name."""
    try:
        if null:
            yield from map(os.fsdecode, filter(None, _split(_read(stdin), b"\0", b"")))
        else:
            yield from (name for line in _lines(stdin) if (name := line.removesuffix("\r")).strip())
    except OSError as error:
        yield _refused("-", error)


def _lines(stdin: BufferedIOBase) -> Iterator[str]:
    """Lines are bytes that name files; in UTF-16, as PowerShell writes them, they are text."""
    begin = stdin.read(2)
    if codec := _UTF16.get(begin):
        yield from _split(iterdecode(_read(stdin), codec, "replace"), "\n", "")
        return
    if begin == BOM_UTF8[:2]:
        begin = (begin + stdin.read(1)).removeprefix(BOM_UTF8)
    yield from map(os.fsdecode, _split(chain([begin], _read(stdin)), b"\n", b""))


def _read(stdin: BufferedIOBase) -> Iterator[bytes]:
    """What has come so far, again and again: to ask for a certain number of bytes would be to wait for them."""
    return iter(partial(stdin.read1, _CHUNK), b"")


def _split(data: Iterable[AnyStr], end: AnyStr, rest: AnyStr) -> Iterator[AnyStr]:
    """What stands before each end, as soon as the end has come; and what is behind the last. `rest` is empty."""
    for part in data:
        whole = (rest + part).split(end)
        rest = whole.pop()
        yield from whole
    if rest:
        yield rest


def _matches(pattern: str, in_folder: Callable[[str], Iterator[Source]]) -> Iterator[Source]:
    """A match that is a folder is what is in it. `a/**` matches a, and all in it a second time: each counts once."""
    try:
        found = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 (Path.glob takes no absolute pattern)
    except ValueError:  # a folder's name in it holds a null byte, or cannot be encoded
        found = []
    seen: set[Path] = set()
    for match in found or [pattern]:
        for source in in_folder(match) if os.path.isdir(match) else [match]:  # noqa: PTH112
            path = Path(source.path if isinstance(source, Refused) else source)
            if path not in seen:
                seen.add(path)
                yield source


def _in_folder(root: str, wanted: frozenset[str], skipped: Callable[[str], None]) -> Iterator[Source]:
    """Enters each folder once, however many links lead to it. Holds the entries of the folders that it is inside of.

    A folder is sorted with a separator behind its name, which gives the order of the sorted paths of all files: first
    "a-b.jpg", then "a.jpg", then "a/1.jpg".
    """
    entered: set[tuple[int, int]] = set()
    left = [root + os.sep]  # the next one is the last
    while left:  # no recursion, which Python would end at a depth that folders can have
        path = left.pop()
        if path.endswith(os.sep):
            found: list[str] = []
            try:
                for name, kind in _read_folder(path, entered):
                    if kind in wanted:
                        found.append(path + name + os.sep * (kind == FOLDER))
                    else:
                        skipped(kind)
            except OSError as error:
                yield _refused(str(Path(path)), error)
            left += sorted(found, reverse=True)
        elif path.lower().endswith(".ts") and not _is_stream(path):
            skipped(".ts")
        else:
            yield str(Path(path))


def _read_folder(folder: str, entered: set[tuple[int, int]]) -> Iterator[tuple[str, str]]:
    """Each entry's name and kind; nothing if the folder was entered before. Raises OSError."""
    status = os.stat(folder)  # noqa: PTH116
    if (key := (status.st_dev, status.st_ino)) in entered:
        return
    entered.add(key)
    with os.scandir(folder) as entries:
        yield from ((entry.name, _kind(entry)) for entry in entries)


def _kind(entry: os.DirEntry[str]) -> str:
    """A link is what it leads to. One that leads nowhere is a file, whose row will tell the error."""
    if entry.name.startswith("."):
        return HIDDEN
    try:
        if entry.is_dir():
            return FOLDER
        if not entry.is_file() and os.path.exists(entry.path):  # noqa: PTH110
            return SPECIAL
    except OSError:  # a link into a closed folder, or to itself
        pass
    stem, _, suffix = entry.name.rpartition(".")
    return f".{suffix.lower()}" if stem and suffix else BARE


def _is_stream(path: str) -> bool:
    """Whether a .ts is MPEG's and not TypeScript. One that cannot be read is, so that its row tells the error."""
    try:
        with Path(path).open("rb", buffering=0) as file:
            return file.read(1) == b"\x47"  # each packet of a transport stream begins with it
    except OSError:
        return True


def _refused(path: str, error: OSError) -> Refused:
    return Refused(path, ImageError(f"{path}: {error.strerror or error}"))
