"""A WebDataset's tar in, entries out: one for each sample, whose members share a name up to its first dot."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING, Any

from qalign_fast.errors import OptionError, one_line
from qalign_fast.jobs.entries import Entry
from qalign_fast.jobs.inputs.stores import is_url, open_input
from qalign_fast.sources import CLIP_SUFFIXES, IMAGE_SUFFIXES, MORE_SUFFIXES

if TYPE_CHECKING:
    from qalign_fast.jobs.inputs.taking import InputOptions

_MOST_TEXT = 16 << 20  # bytes of a text or JSON member
_PART = 1 << 20  # bytes read at a time
_NOTHING = "sample(s) of a tar without a picture"


def entries_of_tar(
    name: str, options: InputOptions, protocols: tuple[str, ...], skipped: Callable[[str], None] = lambda _: None
) -> Iterator[Entry]:
    """An entry for each sample that has a picture or a clip; it says where in the tar its bytes lie.

    `skipped` hears of each sample that has none.

    Raises OptionError for a tar that cannot be read to its end.
    """
    wanted = _wanted(options)
    try:
        with open_input(name, protocols) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            changed = -1 if is_url(name) else os.fstat(file.fileno()).st_mtime_ns
            for key, members in _samples(tar):
                if media := _media(members, wanted, exact=options.column is not None):
                    yield _entry(name, changed, key, media, _kept(tar, members, options.keep))
                else:
                    skipped(_NOTHING)
                tar.members.clear()  # type: ignore[attr-defined] # it would hold every member of the file
            _check_end(file, tar)
    except (tarfile.TarError, OSError, EOFError) as error:
        why = error.strerror if isinstance(error, OSError) else None
        raise OptionError(f"{name}: {why or f'not a whole tar ({one_line(error)})'}") from error


def split_key(name: str) -> tuple[str, str]:
    """A member's key and suffix: "a/b.c.jpg" is of sample "a/b", as its "c.jpg"."""
    folder, _, file = name.rpartition("/")
    stem, _, suffix = file.partition(".")
    return f"{folder}/{stem}" if folder else stem, suffix.lower()


def _wanted(options: InputOptions) -> frozenset[str]:
    if options.column:
        return frozenset([options.column.lower().lstrip(".")])
    suffixes = CLIP_SUFFIXES.union(IMAGE_SUFFIXES, *(MORE_SUFFIXES[name] for name in options.formats))
    return frozenset(suffix[1:] for suffix in suffixes)


def _suffix(member: tarfile.TarInfo) -> str:
    return split_key(member.name)[1]


def _media(members: list[tarfile.TarInfo], wanted: frozenset[str], *, exact: bool) -> tarfile.TarInfo | None:
    """The first member with a wanted suffix; else, unless it must be exact, with a wanted end: "2020.jpg" is a jpg."""
    found = next((member for member in members if _suffix(member) in wanted), None)
    if found is None and not exact:
        found = next((member for member in members if _suffix(member).rpartition(".")[2] in wanted), None)
    return found


def _samples(tar: tarfile.TarFile) -> Iterator[tuple[str, list[tarfile.TarInfo]]]:
    """Members that follow one another and share a key."""
    key, members = "", list[tarfile.TarInfo]()
    for member in tar:
        if not (member.isfile() or member.islnk() or member.issym()) or PurePosixPath(member.name).name.startswith("."):
            continue
        its = split_key(member.name)[0]
        if members and its != key:
            yield key, members
            members = []
        key = its
        members.append(member)
    if members:
        yield key, members


def _check_end(file: IO[bytes], tar: tarfile.TarFile) -> None:
    """Raises ReadError unless zeros stand where no member follows, up to the end: else there would be more of them."""
    file.seek(tar.offset)
    if not (part := file.read(_PART)):
        raise tarfile.ReadError("its end is missing")
    while part:
        if part.strip(b"\0"):
            raise tarfile.ReadError(f"what stands at {tar.offset} is no member")
        part = file.read(_PART)


def _entry(name: str, changed: int, key: str, media: tarfile.TarInfo, kept: dict[str, Any]) -> Entry:
    suffix = "." + _suffix(media).rpartition(".")[2]
    medium: Any = "video" if suffix in CLIP_SUFFIXES else "image"
    source = f"{name}/{media.name}"
    place = name.encode("utf-8", "surrogateescape") if is_url(name) else os.fsencode(name)
    entry = Entry(source, place, "slice", media.offset_data, media.size, changed, medium, key, kept)
    if media.issparse():
        entry.problem = f"{source}: a sparse member, whose bytes do not lie in one piece; make the tar without --sparse"
    elif not media.isfile():
        entry.problem = f"{source}: a link to {media.linkname}; a data set's tar has the files themselves"
    return entry


def _kept(tar: tarfile.TarFile, members: list[tarfile.TarInfo], keep: tuple[str, ...]) -> dict[str, Any]:
    """Text members by their suffix, and fields of the JSON member. What a sample lacks is None."""
    if not keep:
        return {}
    texts = {suffix: m for m in members if (suffix := _suffix(m)) in keep or suffix == "json"}
    fields: dict[str, Any] = {}
    if "json" in texts and not set(keep) <= set(texts):
        try:
            found = json.loads(_text(tar, texts["json"]))
            fields = found if isinstance(found, dict) else {}
        except (ValueError, RecursionError):
            fields = {}
    return {k: _text(tar, texts[k]) if k in texts else fields.get(k) for k in keep}


def _text(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    file = tar.extractfile(member) if member.isfile() else None
    return "" if file is None else file.read(_MOST_TEXT).decode("utf-8", "replace")
