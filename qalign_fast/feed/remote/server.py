"""Requests to a server in, rows out: asked again where the server is busy, and each failure as an error of ours."""

from __future__ import annotations

import json
import random
import socket
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException, IncompleteRead
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from qalign_fast.errors import ArtifactError, OptionError, QAlignError, ServerError, one_line
from qalign_fast.feed.remote.connections import ANSWER_SECONDS, Answer, Connections, UnreachableError
from qalign_fast.version import __version__

if TYPE_CHECKING:
    from qalign_fast.feed.remote.address import Address

PATIENCE = 120.0  # seconds from a request's first try to its last
_BUSY = (429, 502, 503, 504)  # the second and the last are a proxy's, whose server is not there now
_BROKEN = 4  # times that a request is sent again whose connection broke
_FIRST_WAIT, _LONGEST_WAIT, _SHORTEST_WAIT = 0.25, 8.0, 0.05  # seconds
_SLICE = 0.1  # seconds between two looks at whether anybody still wants the answer
_MOST_SAID = 500  # characters of what a server says
_SECRET = 6  # characters of a key


class ApiKey(str):
    """A key whose `repr` does not show it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<API key>"


class TooLargeError(Exception):
    """The server has a limit that the request is over; the text says which."""


class Server:
    """A server of ours; several threads may ask it.

    Raises ServerError for what it or the connection does wrong, after it was asked again within `patience` seconds.
    """

    def __init__(self, address: Address, api_key: str | None, patience: float = PATIENCE) -> None:
        if api_key is not None and not (api_key and api_key.isascii() and api_key.isprintable()):
            raise OptionError("api_key: expected printable ASCII characters, at least one")
        self.url = address.url
        self._prefix, self._patience = address.prefix, patience
        self.api_key = ApiKey(api_key) if api_key else None
        self._connections = Connections(address)
        self._has_answered = False

    def models(self) -> list[dict[str, Any]]:
        """What it says of each of its models. Waits until it has loaded them."""
        answer = self.ask("GET", "/v1/models")
        content = _json(answer)
        found = content.get("data") if isinstance(content, dict) else None
        if answer.status != 200:
            raise self.problem(answer)
        if not isinstance(found, list) or not all(isinstance(facts, dict) for facts in found):
            raise self.error("what answers is not a server of qalign-fast")
        return found

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        kind: str = "application/octet-stream",
        unwanted: Callable[[], bool] = bool,
    ) -> Answer:
        """Any answer but "busy". `kind` is the body's; `unwanted` says that it need not go on. Raises ServerError."""
        headers = {"User-Agent": f"qalign-fast/{__version__}"}
        if body is not None:
            headers["Content-Type"] = kind
        if self.api_key:
            headers["Authorization"] = "Bearer " + self.api_key
        end = time.monotonic() + self._patience
        busy = broken = 0
        while True:
            cause: BaseException | None = None
            try:
                answer = self._connections.ask(method, self._prefix + path, body, headers)
            except (UnreachableError, OSError, HTTPException) as error:
                found, cause = self._failure(error), error.__cause__ or error
                wait = _backoff(broken) if broken < _BROKEN and self._may_pass(error) else None
                broken += 1
            else:
                self._has_answered = True
                if answer.status not in _BUSY:
                    return answer
                found = self.error(f"{answer.status}, {_said(answer)}")
                wait = _asked_wait(answer, busy)
                busy += 1
            if wait is None or time.monotonic() + wait > end or not _pause(wait, unwanted):
                raise found from cause

    def problem(self, answer: Answer) -> QAlignError:
        """The error of an answer that has no rows."""
        status, said = answer.status, _said(answer)
        if status == 401:
            what = "does not take this API key" if self.api_key else "asks for an API key"
            return self.error(f"{what}; give it as api_key, --api-key or QALIGN_API_KEY")
        if status == 403:
            return self.error(f"refuses the request (403, {said}); is the API key right?")
        if 300 <= status < 400:
            return self.error(f"answers with a redirect to {answer.headers.get('location', 'nowhere')[:_MOST_SAID]}")
        error = self.error(f"{status}, {said}")
        return ArtifactError(str(error)) if status == 404 else error

    def error(self, what: str) -> ServerError:
        """An error that names the server."""
        return ServerError(f"{self.url}: {self.without_key(what)}")

    def without_key(self, text: str) -> str:
        """What a server has said, should it have repeated the key. One of a few letters is a word, and no secret."""
        return text.replace(self.api_key, "...") if self.api_key and len(self.api_key) >= _SECRET else text

    def close(self) -> None:
        """Closes its idle connections. It can be asked again."""
        self._connections.close()

    def _failure(self, error: Exception) -> ServerError:
        if isinstance(error, UnreachableError):
            return self.error(f"cannot be reached ({_why(error.__cause__)})")
        if isinstance(error, TimeoutError):
            return self.error(f"no answer within {ANSWER_SECONDS:g} s")
        if isinstance(error, OSError | IncompleteRead):
            return self.error(f"the connection broke before the answer was whole ({one_line(error)})")
        return self.error(f"what answers does not speak HTTP as it should ({one_line(error)[:_MOST_SAID]})")

    def _may_pass(self, error: Exception) -> bool:
        """Whether it may go better the next time: a server that has answered before may be starting again."""
        if isinstance(error, UnreachableError):
            cause = error.__cause__
            return self._has_answered and not isinstance(cause, ssl.SSLCertVerificationError | socket.gaierror)
        return isinstance(error, OSError | IncompleteRead) and not isinstance(error, TimeoutError)


@dataclass(frozen=True)
class ServedModel:
    """One of a server's models. most_body: bytes of a request at most, as the server says."""

    server: Server
    name: str
    most_body: int

    def rows(
        self, path: str, options: Sequence[tuple[str, str]], body: bytes, kind: str, unwanted: Callable[[], bool]
    ) -> list[dict[str, Any]]:
        """The rows of an answer. Raises TooLargeError, ServerError, and ArtifactError where the model is gone."""
        query = urlencode([("model", self.name), ("logits", "true"), *options], quote_via=quote)
        answer = self.server.ask("POST", f"{path}?{query}", body, kind, unwanted)
        content = _json(answer)
        rows = content.get("rows") if isinstance(content, dict) else None
        if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows):
            return rows  # also of 422 and of 500, where nothing could be scored
        if answer.status == 413:
            raise TooLargeError(self.server.without_key(_said(answer)))
        if answer.status == 200:
            raise self.server.error("what answers is not a server of qalign-fast")
        raise self.server.problem(answer)


def retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """The seconds that a Retry-After header asks for, in seconds or as a date. None for one that cannot be read."""
    text = (value or "").strip()
    if text.isascii() and text.isdecimal() and len(text) < 10:
        return float(text)
    with suppress(ValueError):
        when = parsedate_to_datetime(text)
        when = when if when.tzinfo else when.replace(tzinfo=UTC)
        return max(0.0, (when - (now or datetime.now(UTC))).total_seconds())
    return None


def _backoff(attempt: int) -> float:
    """Longer each time, and not the same for all who wait."""
    return random.uniform(0.5, 1.0) * min(_LONGEST_WAIT, _FIRST_WAIT * 2.0 ** min(attempt, 16))


def _asked_wait(answer: Answer, busy: int) -> float:
    """The seconds to wait that a busy server asks for, or what was waited before, doubled."""
    asked = retry_after(answer.headers.get("retry-after"))
    return _backoff(busy) if asked is None else max(asked, _SHORTEST_WAIT)


def _pause(seconds: float, unwanted: Callable[[], bool]) -> bool:
    """Waits. Returns False, early, when nobody wants the answer any more."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and not unwanted():
        time.sleep(min(left, _SLICE))
    return not unwanted()


def _json(answer: Answer) -> Any:
    try:
        return json.loads(answer.body)
    except (ValueError, RecursionError):
        return None


def _said(answer: Answer) -> str:
    """An answer's own words, in one line."""
    content = _json(answer)
    found = content.get("error") if isinstance(content, Mapping) else None
    return " ".join((found if isinstance(found, str) else answer.reason).split())[:_MOST_SAID] or "without a reason"


def _why(cause: BaseException | None) -> str:
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {cause.verify_message}; SSL_CERT_FILE names the authorities"
    if isinstance(cause, TimeoutError):
        return "no answer to the connection"
    return getattr(cause, "strerror", None) or one_line(cause or Exception("unknown"))
