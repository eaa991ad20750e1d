"""Other stores through fsspec: URLs in, entries out. `s3://`, `gs://`, `hf://`, `https://`, `zip://` and more."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING, Any
from weakref import finalize

from qalign_fast.errors import MissingExtraError, OptionError, QAlignError, one_line
from qalign_fast.jobs.entries import Entry
from qalign_fast.sources import CLIP_SUFFIXES, IMAGE_SUFFIXES, MORE_SUFFIXES, is_video

if TYPE_CHECKING:
    from qalign_fast.jobs.inputs.taking import InputOptions


def is_url(name: str) -> bool:
    """Whether a name is for another store, as "s3://bucket/key" is, or "zip://a.jpg::https://host/b.zip"."""
    return "://" in name


def suffix_of(name: str) -> str:
    """A file's, in lower case; of a URL without what follows a question mark, and without the archive around it."""
    if is_url(name):
        name = name.partition("::")[0].partition("?")[0]
    return PurePosixPath(name).suffix.lower()


def protocols_of(url: str) -> tuple[str, ...]:
    """ "s3" of "s3://bucket/key"; zip and https of "zip://a.jpg::https://host/b.zip"."""
    return tuple(part.partition("://")[0].lower() for part in url.split("::"))


def refusal(url: str, protocols: tuple[str, ...]) -> str | None:
    """Why a URL that a list or a table names is not opened; None if all of its protocols are allowed.

    A list may come from anywhere, and a URL may lead to a machine that only this one can reach.
    """
    for protocol in protocols_of(url):
        if protocol not in protocols:
            return f"{url}: {protocol}:// is not opened unless --allow {protocol} says so"
    return None


def store_of(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path in it.

    Raises MissingExtraError where its package is not installed, OptionError for a protocol that fsspec does not have.
    """
    try:
        from fsspec.core import url_to_fs
    except ModuleNotFoundError as missing:
        raise MissingExtraError(f"{url} needs fsspec: pip install 'qalign-fast[jobs]'") from missing
    try:
        found: tuple[Any, str] = url_to_fs(url)
    except ImportError as missing:  # fsspec says which package it is
        raise MissingExtraError(f"{url}: {one_line(missing)}") from missing
    except ValueError as error:
        raise OptionError(f"{url}: {one_line(error)}") from error
    return found


def open_input(name: str, protocols: tuple[str, ...]) -> IO[bytes]:
    """A local file or a URL, opened. Raises OptionError for a protocol that is not allowed, OSError."""
    if not is_url(name):
        return open(name, "rb")  # noqa: PTH123 (the caller closes it)
    if problem := refusal(name, protocols):
        raise OptionError(problem)
    store, path = store_of(name)
    try:
        opened: IO[bytes] = store.open(path, "rb")
    except Exception as error:  # of any store's own kind
        raise OptionError(f"{name}: cannot be opened ({type(error).__name__}: {one_line(error)})") from error
    finalize(opened, _keep, store)  # an archive's file is closed when its store is gone
    return opened


def _keep(_: object) -> None:
    """For as long as `finalize` may call this, it holds what it would pass."""


def matching_urls(pattern: str) -> list[str]:
    """The URLs of the files that a pattern matches, sorted. Raises QAlignError where the store cannot be listed."""
    store, path = store_of(pattern)
    try:
        found = sorted(store.glob(path))
    except Exception as error:  # of any store's own kind
        raise QAlignError(f"{pattern}: cannot be listed ({type(error).__name__}: {one_line(error)})") from error
    if not found:
        raise OptionError(f"{pattern}: nothing matches it")
    return [_url_of(store, name, pattern) for name in found]


def entry_of_url(source: str, url: str, protocols: tuple[str, ...]) -> Entry:
    """A URL that a list or a table names. Its size is not asked for: that would be a request for each."""
    path = url.partition("?")[0]
    medium: Any = "video" if is_video(path) else "image"
    return Entry(source, url.encode("utf-8", "surrogateescape"), medium=medium, problem=refusal(url, protocols))


def entries_of_urls(url: str, options: InputOptions, protocols: tuple[str, ...]) -> Iterator[Entry]:
    """A file, what a pattern matches, or all pictures and clips below a folder, in the order of their sorted names.

    Raises QAlignError where the store cannot be listed, OptionError where there is nothing.
    """
    assert refusal(url, protocols) is None
    store, path = store_of(url)
    wanted = CLIP_SUFFIXES.union(IMAGE_SUFFIXES, *(MORE_SUFFIXES[name] for name in options.formats))
    try:
        if any(sign in path for sign in "*?["):
            found = store.glob(path, detail=True)
        elif store.isfile(path):
            found = {path: store.info(path)}
        else:
            everything = store.find(path, detail=True) if options.recursive else _in_folder(store, path)
            found = {name: about for name, about in everything.items() if PurePosixPath(name).suffix.lower() in wanted}
    except Exception as error:  # of any store's own kind
        raise QAlignError(f"{url}: cannot be listed ({type(error).__name__}: {one_line(error)})") from error
    if not found:
        raise OptionError(f"{url}: no picture and no clip is there")
    for name in sorted(found):
        if found[name].get("type") != "directory":
            yield _entry(_url_of(store, name, url), found[name])


def _in_folder(store: Any, path: str) -> dict[str, dict[str, Any]]:
    return {about["name"]: about for about in store.ls(path, detail=True) if about.get("type") != "directory"}


def _url_of(store: Any, name: str, url: str) -> str:
    """A file's URL. In an archive it is the member, with what follows "::" in the URL that was given."""
    inner, chain, outer = url.partition("::")
    if chain:
        return f"{protocols_of(inner)[0]}://{name}::{outer}"
    return str(store.unstrip_protocol(name))


def _entry(url: str, about: dict[str, Any]) -> Entry:
    entry = Entry(
        url, url.encode("utf-8", "surrogateescape"), medium="video" if is_video(url.partition("::")[0]) else "image"
    )
    entry.size = int(about.get("size") or -1)
    changed = about.get("LastModified") or about.get("mtime") or about.get("created")
    if isinstance(changed, datetime):
        entry.mtime_ns = int(changed.timestamp() * 1e9)
    elif isinstance(changed, int | float):
        entry.mtime_ns = int(changed * 1e9)
    return entry
