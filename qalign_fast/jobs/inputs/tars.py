"""A WebDataset's tar in, entries out: one for each sample, whose members share a name up to its first dot."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from qalign_fast.errors import OptionError, one_line
from qalign_fast.jobs.entries import Entry
from qalign_fast.jobs.inputs.stores import is_url, open_input
from qalign_fast.sources import CLIP_SUFFIXES, IMAGE_SUFFIXES, MORE_SUFFIXES

if TYPE_CHECKING:
    from qalign_fast.jobs.inputs.taking import InputOptions

_MOST_TEXT = 16 << 20  # bytes of a text or JSON member


def entries_of_tar(name: str, options: InputOptions, protocols: tuple[str, ...]) -> Iterator[Entry]:
    """An entry for each sample that has a picture or a clip; it says where in the tar its bytes lie.

    Raises OptionError for a tar that cannot be read to its end.
    """
    wanted = _wanted(options)
    try:
        with open_input(name, protocols) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for key, members in _samples(tar):
                if media := next((m for m in members if _suffix(m) in wanted), None):
                    yield _entry(name, tar, key, media, members, options.keep)
                tar.members.clear()  # type: ignore[attr-defined] # it would hold every member of the file
    except (tarfile.TarError, OSError, EOFError) as error:
        raise OptionError(f"{name}: not a whole tar ({one_line(error)})") from error


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


def _samples(tar: tarfile.TarFile) -> Iterator[tuple[str, list[tarfile.TarInfo]]]:
    """Members that follow one another and share a key."""
    key, members = "", list[tarfile.TarInfo]()
    for member in tar:
        if not member.isfile() or PurePosixPath(member.name).name.startswith("."):
            continue
        its = split_key(member.name)[0]
        if members and its != key:
            yield key, members
            members = []
        key = its
        members.append(member)
    if members:
        yield key, members


def _entry(
    name: str,
    tar: tarfile.TarFile,
    key: str,
    media: tarfile.TarInfo,
    members: list[tarfile.TarInfo],
    keep: tuple[str, ...],
) -> Entry:
    medium: Any = "video" if f".{_suffix(media)}" in CLIP_SUFFIXES else "image"
    kept = _kept(tar, members, keep) if keep else {}
    place = name.encode() if is_url(name) else os.fsencode(name)
    return Entry(f"{name}/{media.name}", place, "slice", media.offset_data, media.size, -1, medium, key, kept)


def _kept(tar: tarfile.TarFile, members: list[tarfile.TarInfo], keep: tuple[str, ...]) -> dict[str, Any]:
    """Text members by their suffix, and fields of the JSON member. What a sample lacks is None."""
    texts = {suffix: m for m in members if (suffix := _suffix(m)) in keep or suffix == "json"}
    fields: dict[str, Any] = {}
    if "json" in texts and not set(keep) <= set(texts):
        try:
            found = json.loads(_text(tar, texts["json"]))
            fields = found if isinstance(found, dict) else {}
        except ValueError:
            fields = {}
    return {k: _text(tar, texts[k]) if k in texts else fields.get(k) for k in keep}


def _text(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    file = tar.extractfile(member)
    assert file is not None
    return file.read(_MOST_TEXT).decode("utf-8", "replace")
