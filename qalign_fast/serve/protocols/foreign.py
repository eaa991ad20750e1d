"""What the routes of others' protocols share: a JSON body in, checked; its pictures in, a score or an error for each.

A protocol's file has its bodies as pydantic models, which check a request and are shown by OpenAPI, and its routes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qalign_fast.errors import InternalError, QAlignError
from qalign_fast.levels import Score
from qalign_fast.serve.problems import Problem, TooMany, Unprocessable
from qalign_fast.serve.uploads import check_type, json_uploads, parse_json

if TYPE_CHECKING:
    from starlette.requests import Request

    from qalign_fast.serve.served import Served
    from qalign_fast.serve.service import Service
    from qalign_fast.serve.uploads import Upload

# Clients that name no type, and curl -d, which names a form's, send JSON to these routes all the same.
JSON_TYPES = ("application/json", "", "application/x-www-form-urlencoded")
_SHOWN_FAULTS = 3  # of a body that is not what the route takes
_SHOWN_ERRORS, _LONGEST_ERROR = 16, 160  # in a header, all of which clients bound to 8 KiB and more
ERRORS_HEADER = "x-errors"
ERRORS_SHOWN = {
    "schema": {"type": "string"},
    "description": "Only where there are any: the errors of pictures, in JSON, by their numbers from 0.",
}

Scored: TypeAlias = Score | QAlignError
Body = TypeVar("Body", bound="RequestBody")
Element = TypeVar("Element")
# A list's check ends at its first fault: millions of faults would take more memory than there is.
Many = Annotated[list[Element], Field(fail_fast=True)]


class RequestBody(BaseModel):
    """A body as a protocol has it. Fields that it does not know are let through, as the protocols' servers do."""

    model_config = ConfigDict(strict=True, extra="ignore")


class PictureBody(RequestBody):
    """With the two fields that we add to every protocol."""

    model: str | None = Field(None, description="A name of /v1/models. Default: the first.")
    task: str | None = Field(None, description="Ours: quality, or another task of the model. Default: quality.")


async def read_body(
    service: Service, request: Request, model: str | None = None, types: Sequence[str] = JSON_TYPES
) -> bytes:
    """A request's body. `model`: the path's. Raises Problem; before it is read, where there is no room."""
    if model is None and len(service.models) > 1:
        service.model(None)  # the body may name another one, which has room
    else:
        service.check_room(model)
    check_type(request.headers.get("content-type", ""), types)
    return await service.bodies.read(request)


async def read_json(service: Service, request: Request, model: str | None = None) -> Any:
    """The JSON of a request's body. Raises as `read_body`; BadRequest, and TooMany for a list of too many pictures."""
    content = await parse_json(await read_body(service, request, model))
    fields = content.values() if isinstance(content, dict) else ()
    longest = max((len(each) for each in fields if isinstance(each, list)), default=0)
    if longest > service.settings.queue:
        raise TooMany(f"{longest} pictures in one request; the limit is {service.settings.queue}")
    return content


def checked(kind: type[Body], content: Any) -> Body:
    """The content as the protocol has it. Raises Unprocessable."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        said = [f"{'.'.join(map(str, fault['loc'])) or 'body'}: {fault['msg']}" for fault in faults[:_SHOWN_FAULTS]]
        raise Unprocessable("; ".join(said)) from error


def one_task(served: Served, task: str | None) -> str:
    """The one task of a request. Raises Unprocessable for several, TaskError for one that the model does not have."""
    tasks = served.tasks("quality" if task is None else task, "image")
    if len(tasks) > 1:
        raise Unprocessable(f"task: {', '.join(tasks)[:200]}; this protocol has one task a request")
    return tasks[0]


async def uploads_of(service: Service, values: Sequence[Any], where: str) -> list[Upload]:
    """Pictures of a JSON body. Raises Problem."""
    return await json_uploads(values, service.guard, where, service.settings.queue)


async def score_each(
    service: Service,
    request: Request,
    served: Served,
    uploads: Sequence[Upload],
    task: str,
    *,
    timeout: float | None = None,
) -> list[Scored]:
    """For each picture, in order, its score or why it has none. Raises Problem; 500 where the model failed for all."""
    answers = await service.score(request, served, uploads, (task,), timeout=timeout)
    found = [answer.scored.error or answer.scored.get()[task] for answer in answers]
    if all(isinstance(each, InternalError) for each in found):
        raise Problem(str(found[0]))
    return found


def require_any(found: Sequence[Scored], more: Mapping[str, Any] | None = None) -> None:
    """Raises Unprocessable where no picture could be scored; `more`: what the answer has beside the error."""
    if all(isinstance(each, QAlignError) for each in found):
        raise Unprocessable(str(found[0]), more=more)


def said(error: QAlignError) -> str:
    """A picture's error in one line."""
    return " ".join(str(error).split())


def errors_header(found: Sequence[Scored]) -> dict[str, str]:
    """The header x-errors, where there are errors: an object in JSON, of a picture's number and its error."""
    errors = {i: said(each)[:_LONGEST_ERROR] for i, each in enumerate(found) if isinstance(each, QAlignError)}
    first = dict(list(errors.items())[:_SHOWN_ERRORS])
    return {ERRORS_HEADER: json.dumps(first)} if errors else {}


def shown(*kinds: type[RequestBody], examples: Sequence[Mapping[str, Any]], also: Sequence[str] = ()) -> dict[str, Any]:
    """A request's body for OpenAPI: each form that it may have with an example, which the tests send.

    also: media types beside JSON.
    """
    schemas = [_whole(kind.model_json_schema()) for kind in kinds]
    content: dict[str, Any] = {
        "application/json": {
            "schema": schemas[0] if len(schemas) == 1 else {"anyOf": schemas},
            "examples": {kind.__name__: {"value": example} for kind, example in zip(kinds, examples, strict=True)},
        }
    }
    binary = {"schema": {"type": "string", "format": "binary"}}
    return {"requestBody": {"required": True, "content": content | dict.fromkeys(also, binary)}}


def path_names(*names: str) -> dict[str, Any]:
    """A path's parameters for OpenAPI. FastAPI's own way would document an answer 422 that no route gives."""
    text = {"model": "A name of /v1/models.", "version": "Always 1."}
    example = {"model": "mini", "version": "1"}
    return {
        "parameters": [
            {
                "name": name,
                "in": "path",
                "required": True,
                "schema": {"type": "string"},
                "description": text[name],
                "example": example[name],
            }
            for name in names
        ]
    }


def _whole(schema: dict[str, Any]) -> Any:
    """A schema with each part of it in its place, since parts would be looked for elsewhere in the document."""
    parts = schema.pop("$defs", {})

    def fill(value: Any) -> Any:
        if isinstance(value, list):
            return list(map(fill, value))
        if not isinstance(value, dict):
            return value
        if "$ref" in value:
            return fill(parts[value["$ref"].rpartition("/")[2]])
        return {key: fill(each) for key, each in value.items()}

    return fill(schema)
