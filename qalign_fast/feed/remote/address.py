"""A server's address as a user gives it in, its parts out: http://host:8000/prefix#model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeGuard
from urllib.parse import quote, unquote, urlsplit

from qalign_fast.errors import OptionError

_BEGIN = re.compile(r"https?://", re.IGNORECASE)
_BLANK = re.compile(r"[\0-\x20\x7f]")
_IN_A_PATH = "/%:@!$&'()*+,;=~"  # what stays as it is


@dataclass(frozen=True)
class Address:
    """Where a server is. prefix: stands before every path; model: the name of one of its models, None: the first."""

    scheme: str
    host: str
    port: int | None
    prefix: str
    model: str | None

    @property
    def url(self) -> str:
        """The server's own address, without the model."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}{'' if self.port is None else f':{self.port}'}{self.prefix}"


def is_address(model: object) -> TypeGuard[str]:
    """Whether a reference to a model is a server's address."""
    return isinstance(model, str) and _BEGIN.match(model) is not None


def parse_address(text: str) -> Address:
    """The parts of an address. Raises OptionError, which repeats nothing that may be a password."""
    if "@" in text:
        raise OptionError("a server's address with a user or a password; give its key as api_key")
    try:
        parts = urlsplit(text)
        host, port = (parts.hostname or "").encode("idna").decode("ascii"), parts.port
    except ValueError as error:  # a port that is none, a bracket too many, a label of a name that is too long
        raise OptionError(f"{text}: not a server's address; expected http://host:8000") from error
    if not host or _BLANK.search(text):
        raise OptionError(f"{text!r}: not a server's address; expected http://host:8000")
    if parts.query:
        raise OptionError(f"{text}: an address with a query; expected http://host:8000, and #name to pick a model")
    return Address(
        parts.scheme, host, port, quote(parts.path.rstrip("/"), safe=_IN_A_PATH), unquote(parts.fragment) or None
    )
