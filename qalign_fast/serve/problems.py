"""What keeps a request from being answered, as a status and a JSON body; every route answers with these alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qalign_fast.errors import OptionError, QAlignError, TaskError, VideoError
from qalign_fast.serve.json_answer import JsonAnswer

# The names are text-embeddings-inference's, so that its clients know them.
_KINDS = {413: "Validation", 429: "Overloaded", 500: "Backend", 503: "Unhealthy"}


class Problem(Exception):  # noqa: N818 - an answer
    """An answer that is an error. `retry_after`: whole seconds; `more`: fields beside the error's text."""

    status = 500

    def __init__(self, error: str, retry_after: int | None = None, more: Mapping[str, Any] | None = None) -> None:
        super().__init__(error)
        self.error, self.retry_after, self.more = " ".join(error.split()), retry_after, more or {}

    def response(self) -> JsonAnswer:
        """The answer."""
        return problem_response(self.status, self.error, retry_after=self.retry_after, more=self.more)


class BadRequest(Problem):
    """A body that cannot be read at all."""

    status = 400


class WrongKey(Problem):
    """No API key, or a wrong one."""

    status = 401


class NotFound(Problem):
    """A model or a route that is not there."""

    status = 404


class TooSlow(Problem):
    """A body that comes too slowly."""

    status = 408


class TooMany(Problem):
    """More bytes, pictures or pixels than a request may have."""

    status = 413


class WrongType(Problem):
    """A content type that the route does not take."""

    status = 415


class Unprocessable(Problem):
    """A body that is not what the route takes, or in which no picture can be scored."""

    status = 422


class QueueFull(Problem):
    """There is no room now."""

    status = 429


class Unavailable(Problem):
    """The server loads its models, or is about to stop."""

    status = 503


class Late(Unavailable):
    """The deadline passed while the request waited."""


def problem_response(
    status: int, error: str, *, retry_after: int | None = None, more: Mapping[str, Any] | None = None
) -> JsonAnswer:
    """The JSON answer of an error."""
    body = {"error": error, "error_type": _KINDS.get(status, "Validation"), **(more or {})}
    headers = {"retry-after": str(retry_after)} if retry_after is not None else {}
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return JsonAnswer(body, status, headers)


def of_error(error: QAlignError) -> Problem:
    """The answer for an error of ours about a whole request."""
    asked_wrongly = isinstance(error, TaskError | OptionError | VideoError)
    return (Unprocessable if asked_wrongly else Problem)(str(error))
