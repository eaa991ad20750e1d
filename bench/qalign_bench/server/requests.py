"""A picture's file in, a request's bytes out, ready to be sent many times.

A request is a JSON object: {"file": a path, or a list of paths, "form": "raw" | "multipart", "query": str,
"headers": {}, "expected": [the score of each row, or null for an error], "leaves": null | "half" | "sent"}.
Only "file" and "expected" are needed. `leaves` is a client that goes away, with half of its bytes or all of them sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

Request: TypeAlias = Mapping[str, Any]

MARK = 16  # bytes behind a picture's file that make two requests of one file two different pictures to a server
_BOUNDARY = "qalign-bench-boundary-0123456789"
_END = f"\r\n--{_BOUNDARY}--\r\n".encode()


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request's bytes. A mark of its own goes between the two parts where requests are marked."""

    before: memoryview
    after: bytes
    leaves: str | None = None

    def pieces(self, mark: bytes) -> list[memoryview]:
        """What is sent, in order. `mark` is empty where requests are not marked."""
        if self.leaves == "half":
            return [self.before[: len(self.before) // 2]]
        return [piece for piece in (self.before, memoryview(mark), memoryview(self.after)) if piece]


def prepare(request: Request, host: str, *, marked: bool) -> Prepared:
    """Reads the request's files and writes its head. `host` is the server's name and port."""
    files = [Path(name) for name in files_of(request)]
    multipart = request.get("form", "raw") == "multipart"
    kind = f"multipart/form-data; boundary={_BOUNDARY}" if multipart else "application/octet-stream"
    body, after = (_parts(files), _END) if multipart else (files[0].read_bytes(), b"")
    query = f"?{request['query']}" if request.get("query") else ""
    headers = {"Host": host, "Content-Type": kind, **request.get("headers", {})}
    headers["Content-Length"] = str(len(body) + len(after) + MARK * marked)
    lines = [f"POST /v1/score{query} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    head = "\r\n".join([*lines, "", ""]).encode()
    return Prepared(memoryview(head + body), after, request.get("leaves"))


def files_of(request: Request) -> Sequence[str]:
    """The request's files: one for each row of its answer, where it asks for one task."""
    given: str | Sequence[str] = request["file"]
    return [given] if isinstance(given, str) else given


def mark_of(number: int) -> bytes:
    """The mark of a request. What reads pictures ignores bytes behind their end."""
    return f"{number:0{MARK}d}".encode()


def _parts(files: Sequence[Path]) -> bytes:
    """A multipart body up to its last part's end, for the mark belongs to the last picture."""
    parts = []
    for file in files:
        head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="images"; filename="{file.name}"\r\n'
        parts.append(f"{head}Content-Type: application/octet-stream\r\n\r\n".encode() + file.read_bytes())
    return b"\r\n".join(parts)
