"""What a caller gives in, the bytes of its file out: a path, bytes, an open file, a data: URI, a data set's dict."""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

from qalign_fast.errors import ImageError, QAlignError, one_line
from qalign_fast.pixels.limits import check_bytes

_LONGEST = 4096  # characters of a name, as of a path on most systems: an error does not repeat more of them
_PART = 16 << 20  # bytes asked of an open file at a time: a buffered file takes memory for all that it is asked for
_CONTROL = re.compile(r"[\0-\x1f\x7f\x85\u2028\u2029]")
_MEDIA_TYPE = re.compile(r"([\w.+-]+/[\w.+-]+)?")
# What this process has open already. Reading it ends, where reading a pipe that nobody writes to hangs.
_OPEN_ALREADY = re.compile(r"/dev/stdin|(?:/dev|/proc/self)/fd/(?P<number>\d+)")


def plain(media: Any, name: str | None = None, kind: type[QAlignError] = ImageError) -> tuple[Any, str]:
    """What a dict or a data: URI stands for, anything else itself; and what errors call it.

    A dict is a data set's {"bytes": ..., "path": ...}: its bytes, or its path where they are None. Raises `kind`.
    """
    if isinstance(media, Mapping):
        return _of_dict(media, name, kind)
    if isinstance(media, str) and (uri := _split_uri(media)):
        name = name or f"<data URI of {len(media)} characters>"
        return _uri_bytes(*uri, name, kind), name
    return media, name or media_name(media)


def media_name(media: object) -> str:
    """What errors call a picture or a clip: its path, or what kind of thing it is."""
    if isinstance(media, str | os.PathLike):
        name = os.fsdecode(media)
        if len(name) > _LONGEST:
            return f"<a name of {len(name)} characters>"
        return _in_one_line(name) or "<an empty name>"
    with suppress(TypeError, ValueError, RuntimeError):  # a shape of another kind; a memoryview that was released
        if isinstance(media, bytes | bytearray | memoryview):
            return f"<{memoryview(media).nbytes} bytes>"
        if hasattr(media, "shape"):
            return f"<array {list(media.shape)}>"
    named = media.name if hasattr(media, "name") else getattr(media, "filename", None)  # an open file; a PIL picture
    return _in_one_line(os.fsdecode(named)) if named and isinstance(named, str | bytes) else f"<{type(media).__name__}>"


def is_encoded(media: object) -> bool:
    """Whether it is a file's bytes in some form, and not pixels."""
    return isinstance(media, str | os.PathLike | bytes | bytearray | memoryview) or hasattr(media, "read")


def read_bytes(media: Any, name: str, most: int, kind: type[QAlignError] = ImageError) -> bytes:
    """The bytes of a path's or an open file's content, not over the limit. Raises `kind`."""
    if isinstance(media, str | os.PathLike):
        with open_path(media, name, most, kind) as file:
            size = os.fstat(file.fileno()).st_size  # 0 of a pipe
            data = read_all(file, name, most, kind, size + 1 if size else _PART)
    elif isinstance(media, bytes | bytearray | memoryview):
        try:
            data = bytes(media)
        except ValueError as error:  # a memoryview that was released
            raise kind(f"{name}: cannot be read ({one_line(error)})") from error
    else:
        data = read_all(media, name, most, kind)
    check_bytes(len(data), name, most, kind)
    return data


def open_path(path: str | os.PathLike[str], name: str, most: int | None, kind: type[QAlignError] = ImageError) -> Any:
    """A regular file, opened, and nothing else: no device, no pipe, no address. Raises `kind`.

    What this process has open already, such as /dev/stdin, may be a pipe or a socket.
    """
    file = Path(os.fsdecode(path))  # a path of a caller's own kind may be bytes
    try:
        status = file.stat()
        if stat.S_ISREG(status.st_mode):
            check_bytes(status.st_size, name, most, kind)
            return file.open("rb")
        if stat.S_ISDIR(status.st_mode):
            raise kind(f"{name}: a folder, not a file")
        has_open = _OPEN_ALREADY.fullmatch(str(file))
        if has_open and (stat.S_ISFIFO(status.st_mode) or stat.S_ISSOCK(status.st_mode)):
            return os.fdopen(os.dup(int(has_open["number"] or 0)), "rb")  # opened by name, it may wait for a writer
        raise kind(f"{name}: not a regular file")
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise kind(f"{name}: {getattr(error, 'strerror', None) or one_line(error)}") from error


def read_all(file: Any, name: str, most: int, kind: type[QAlignError] = ImageError, part: int = _PART) -> bytes:
    """From where the file stands to its end, at most `most` + 1 bytes. Raises `kind` whatever reading it raises.

    `part` is how many bytes are asked for at a time. A raw file and a socket may give less than they are asked for.
    """
    parts: list[bytes] = []
    left = most + 1
    while left > 0:
        try:
            read = file.read(min(left, part))
        except Exception as error:  # the file's own: a lost connection, a damaged archive, a closed file
            raise kind(f"{name}: cannot be read ({one_line(error)})") from error
        if isinstance(read, str):
            raise kind(f"{name}: the file is open as text; open it in binary mode ('rb')")
        if not isinstance(read, bytes | bytearray | memoryview):
            raise kind(f"{name}: cannot be read (its read returned {type(read).__name__}, not bytes)")
        if not read:
            break
        parts.append(bytes(read))
        left -= len(parts[-1])
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _in_one_line(name: str) -> str:
    """A name may hold line ends, which an error must not."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], name)


def _of_dict(media: Mapping[Any, Any], name: str | None, kind: type[QAlignError]) -> tuple[Any, str]:
    data, path = media.get("bytes"), media.get("path")
    if data is None and not path:
        keys = ", ".join(map(str, media)) or "none"
        raise kind(f"{name or '<dict>'}: its keys are: {keys}; expected 'bytes' or 'path' with a value")
    if isinstance(data, str | Mapping):
        raise kind(f"{name or '<dict>'}: its 'bytes' are {type(data).__name__}; expected bytes")
    return plain(path if data is None else data, name or (media_name(path) if path else None), kind)


def _split_uri(text: str) -> tuple[str, bool] | None:
    """The data of a data: URI (RFC 2397), and whether it is base64. None for a name of a file."""
    if text[:5].lower() != "data:":
        return None
    head, comma, data = text[5:].partition(",")
    media_type, *parameters = head.split(";")
    if not comma or not _MEDIA_TYPE.fullmatch(media_type):
        return None
    return data, "base64" in (parameter.strip().lower() for parameter in parameters)


def _uri_bytes(text: str, encoded: bool, name: str, kind: type[QAlignError]) -> bytes:
    try:
        data = unquote_to_bytes(text)
        if not encoded:
            return data
        data = b"".join(data.split())  # line ends come from mail and from configuration files
        return base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise kind(f"{name}: damaged ({one_line(error)})") from error
