"""A request's body in, the pictures or clips that it brings out: raw, multipart, or JSON with base64.

A picture that cannot be had is an error in its place. A body that is none of the three is a `Problem`.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from qalign_fast.errors import ImageError, QAlignError, one_line
from qalign_fast.pixels.encoded import plain
from qalign_fast.serve.problems import BadRequest, TooMany, Unprocessable, WrongType

if TYPE_CHECKING:
    from qalign_fast.serve.urls import UrlGuard

_QUICK = 256 << 10  # bytes of JSON or multipart that are parsed on the loop
_MOST_FIELDS = 64
_MOST_FRAMES = 1 << 16  # of a clip in JSON; fewer are scored
_DEEPEST = 2  # objects within one another that name one picture
_PART = 1 << 20  # bytes of a field that is no file


@dataclass(frozen=True, slots=True)
class Upload:
    """A picture or a clip: its name, its bytes or the error why there are none, or what fetches them."""

    source: str
    data: bytes | QAlignError = b""
    fetch: Callable[[], bytes] | None = None
    is_frame: bool = False  # of a clip that is sent frame by frame

    @property
    def media(self) -> Any:
        """As an item takes it."""
        return self.data if isinstance(self.data, QAlignError) else {"bytes": self.data, "path": self.source}


@dataclass(frozen=True)
class Asked:
    """What a body has: files in its order, and other fields by name."""

    uploads: list[Upload]
    fields: Mapping[str, Any] = field(default_factory=dict)


class _Parser(MultiPartParser):
    """Keeps files in memory: a body is within the limit already."""

    spool_max_size = 1 << 40


async def parse_multipart(body: bytes, headers: Headers, most: int) -> Asked:
    """Every part with a file name is a picture. Raises BadRequest, TooMany for more than `most` files."""
    parse = partial(_parse, body, headers, most)
    return await asyncio.to_thread(parse) if len(body) > _QUICK else parse()


def _parse(body: bytes, headers: Headers, most: int) -> Asked:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body
        yield b""

    parser = _Parser(headers, stream(), max_files=most, max_fields=_MOST_FIELDS, max_part_size=_PART)
    try:
        form = _result(parser.parse())
    except MultiPartException as error:
        if "Too many files" in error.message:
            raise TooMany(f"more than {most} files in one request") from error
        raise BadRequest(f"the body is not multipart/form-data ({one_line(error)})") from error
    except (KeyError, ValueError, AssertionError) as error:  # no boundary, a wrong charset
        raise BadRequest(f"the body is not multipart/form-data ({one_line(error)})") from error
    uploads: list[Upload] = []
    fields: dict[str, Any] = {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            source = value.filename or f"files[{len(uploads)}]"
            uploads.append(Upload(source, value.file.read(), is_frame=name == "frames"))
            value.file.close()
        elif name in fields:
            fields[name] = [*([fields[name]] if isinstance(fields[name], str) else fields[name]), value]
        else:
            fields[name] = value
    return Asked(uploads, fields)


def _result(parsing: Coroutine[Any, Any, FormData]) -> FormData:
    """What it returns. It waits for nothing: files are kept in memory."""
    try:
        parsing.send(None)
    except StopIteration as done:
        form: FormData = done.value
        return form
    raise AssertionError("files are not kept in memory")


async def parse_json(body: bytes) -> Any:
    """The content of a JSON body. Raises BadRequest."""
    return await asyncio.to_thread(_loads, body) if len(body) > _QUICK else _loads(body)


def _loads(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON ({one_line(error)})") from error


async def json_uploads(values: Sequence[Any], guard: UrlGuard, where: str, most: int = _MOST_FRAMES) -> list[Upload]:
    """Pictures of a JSON body. `where` is what an unnamed one is called, with its number.

    Raises TooMany for more than `most`, before any of them is looked at; as `json_upload`.
    """
    if len(values) > most:
        raise TooMany(f"{len(values)} pictures in one request; the limit is {most}")
    make = partial(_many, values, guard, where)
    quick = sum(len(value) if isinstance(value, str) else 1 << 16 for value in values) < _QUICK
    return make() if quick else await asyncio.to_thread(make)


def _many(values: Sequence[Any], guard: UrlGuard, where: str) -> list[Upload]:
    return [json_upload(value, guard, f"{where}[{i}]") for i, value in enumerate(values)]


def json_upload(value: Any, guard: UrlGuard, source: str, *, depth: int = 0) -> Upload:
    """A picture in JSON: base64, a data: URI, an address, or an object that has one of them.

    Objects: {"b64": ..}, {"image": ..}, {"url": ..}, {"image_url": {"url": ..}}, with "source" for its name. Raises
    Unprocessable for anything else.
    """
    if isinstance(value, Mapping) and depth < _DEEPEST:
        name = value.get("source")
        if name is not None and not isinstance(name, str):
            raise Unprocessable(f"{source}: its source is no text")
        for key in ("b64", "image", "url", "image_url", "data"):
            if key in value:
                return json_upload(value[key], guard, name or source, depth=depth + 1)
        raise Unprocessable(f"{source}: an object without 'b64' or 'url'")
    if not isinstance(value, str):
        raise Unprocessable(f"{source}: expected base64, a data: URI, or an object with 'b64' or 'url'")
    if value[:8].lower().startswith(("http://", "https://")):
        return Upload(source, fetch=partial(guard.fetch, value))
    try:
        if value[:5].lower() == "data:":
            data, _ = plain(value, source)
            return Upload(source, data if isinstance(data, bytes) else ImageError(f"{source}: not a data: URI"))
        return Upload(source, base64.b64decode(value, validate=True))
    except QAlignError as error:
        return Upload(source, error)
    except (binascii.Error, ValueError) as error:
        return Upload(source, ImageError(f"{source}: not base64 ({one_line(error)})"))


def check_type(content_type: str, taken: Sequence[str]) -> str:
    """The media type without its parameters. Raises WrongType unless it is one of `taken`, where "image/*" is each."""
    found = content_type.partition(";")[0].strip().lower()
    for each in taken:
        if found == each or (each.endswith("/*") and found.startswith(each[:-1])):
            return found
    raise WrongType(f"content-type {found[:80]!r}; this route takes {', '.join(taken)}")
