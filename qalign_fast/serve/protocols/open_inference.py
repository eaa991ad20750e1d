"""The Open Inference Protocol v2, as KServe and Triton speak it: tensors of pictures in, tensors of scores out.

A request that is not understood is 400 here, where other routes of ours answer 422: the protocol's clients expect it. A
picture that cannot be scored has NaN (in JSON null) for its numbers and its error in the output `status`. The answer is
200 even where there are only such pictures.
"""

from __future__ import annotations

import gzip
import re
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response

from qalign_fast.errors import TaskError
from qalign_fast.levels import Score
from qalign_fast.serve.problems import BadRequest, NotFound, Unprocessable
from qalign_fast.serve.protocols import foreign
from qalign_fast.serve.protocols import open_inference_schemas as bodies
from qalign_fast.serve.protocols.open_inference_tensors import (
    LENGTH_HEADER,
    Column,
    choose,
    read_inputs,
    split,
    write_reply,
)
from qalign_fast.serve.schemas import problems
from qalign_fast.serve.scoring_route import ScoringRoute
from qalign_fast.serve.uploads import Upload, parse_json
from qalign_fast.version import __version__

if TYPE_CHECKING:
    from qalign_fast.serve.served import Served
    from qalign_fast.serve.service import Service

_VERSION = "1"
_BINARY = "application/octet-stream"
_INPUTS = ("image", "task")
_LONGEST = 10**12  # microseconds; more is no deadline
_SMALL = 512  # bytes of an answer that are not worth packing
_OUTPUTS = ("score", "score01", "probabilities", "status")
_RULED_OUT = re.compile(r"q=0(\.0*)?")
_PATHS = {
    "/v2/models/{model}": foreign.path_names("model"),
    "/v2/models/{model}/versions/{version}": foreign.path_names("model", "version"),
}
_BODY = foreign.shown(bodies.InferRequest, examples=[bodies.EXAMPLE], also=[_BINARY])
_LENGTH = {
    "name": LENGTH_HEADER,
    "in": "header",
    "schema": {"type": "integer", "minimum": 1},
    "description": "Bytes of the JSON, where binary data follows it.",
}
_SCORES: dict[int | str, dict[str, Any]] = {
    200: {
        "model": bodies.InferAnswer,
        "content": {_BINARY: {"schema": {"type": "string", "format": "binary"}}},
        "headers": {LENGTH_HEADER: {"schema": {"type": "integer"}, "description": _LENGTH["description"]}},
    },
    **problems(400, 401, 404, 408, 413, 415, 429, 500, 503),
}


def make_router(service: Service) -> APIRouter:
    """The routes below /v2, except health."""
    router = APIRouter(tags=["Open Inference Protocol v2"], route_class=ScoringRoute)

    @router.get("/v2", response_model=bodies.ServerFacts)
    async def server() -> dict[str, Any]:
        """What the server is."""
        return {"name": "qalign-fast", "version": __version__, "extensions": ["binary_tensor_data", "parameters"]}

    async def metadata(request: Request) -> dict[str, Any]:
        """A model's tensors."""
        return _facts(_served(service, request))

    async def ready(request: Request) -> dict[str, Any]:
        """Whether a model answers."""
        return {"name": _served(service, request).name, "ready": True}

    async def infer(request: Request) -> Response:
        """Scores pictures: base64 or a data: URI in JSON, or files in the binary extension."""
        served = _served(service, request)
        with _as_bad_request():
            return await _infer(service, request, served)

    for path, names in _PATHS.items():
        facts: dict[str, Any] = {"responses": problems(401, 404, 503), "openapi_extra": names}
        router.get(path, response_model=bodies.ModelFacts, **facts)(metadata)
        router.get(f"{path}/ready", response_model=bodies.ModelReady, **facts)(ready)
        extra = {**_BODY, "parameters": [*names["parameters"], _LENGTH]}
        router.post(f"{path}/infer", response_model=None, responses=_SCORES, openapi_extra=extra)(infer)
    return router


async def _infer(service: Service, request: Request, served: Served) -> Response:
    body = await foreign.read_body(service, request, served.name, (*foreign.JSON_TYPES, _BINARY))
    text, binary = split(body, request.headers.get(LENGTH_HEADER))
    asked = foreign.checked(bodies.InferRequest, await parse_json(text))
    parameters = asked.parameters or {}
    inputs = read_inputs(asked.inputs, binary, _INPUTS)
    wanted = choose(_OUTPUTS, asked.outputs, parameters.get("binary_data_output", False))
    task = foreign.one_task(served, _task(inputs.get("task"), parameters))
    uploads = await _uploads(service, inputs.get("image", []))
    found = await foreign.score_each(service, request, served, uploads, task, timeout=_timeout(parameters))
    columns = _columns(found, len(served.facts["levels"]))
    head = {"model_name": served.name, "model_version": _VERSION, "id": asked.id or uuid.uuid4().hex}
    reply, length = write_reply(head, [(columns[name], is_binary) for name, is_binary in wanted])
    return _packed(reply, length, request.headers.get("accept-encoding", ""))


def _served(service: Service, request: Request) -> Served:
    """The path's model. Raises Unavailable, NotFound."""
    version = request.path_params.get("version", _VERSION)
    if version != _VERSION:
        raise NotFound(f"version {version[:40]!r} is not here; there is: {_VERSION}")
    return service.model(request.path_params["model"])


@contextmanager
def _as_bad_request() -> Iterator[None]:
    try:
        yield
    except (Unprocessable, TaskError) as error:
        raise BadRequest(str(error)) from error


def _facts(served: Served) -> dict[str, Any]:
    levels = len(served.facts["levels"])
    outputs = [("score", "FP32", [-1]), ("score01", "FP32", [-1]), ("probabilities", "FP32", [-1, levels])]
    tensors = {
        "inputs": [("image", "BYTES", [-1]), ("task", "BYTES", [1])],
        "outputs": [*outputs, ("status", "BYTES", [-1])],
    }
    described = {
        kind: [{"name": name, "datatype": datatype, "shape": shape} for name, datatype, shape in rows]
        for kind, rows in tensors.items()
    }
    return {"name": served.name, "versions": [_VERSION], "platform": f"qalign_{served.facts['engine']}", **described}


def _task(given: list[Any] | None, parameters: Mapping[str, Any]) -> str:
    """The input `task`, or else the parameter of this name."""
    task = parameters.get("task", "quality") if given is None else given[0] if len(given) == 1 else None
    with suppress(UnicodeDecodeError):
        task = task.decode() if isinstance(task, bytes) else task
        if isinstance(task, str):
            return task
    raise BadRequest("task: expected one text")


def _timeout(parameters: Mapping[str, Any]) -> float | None:
    """Seconds; the parameter is in microseconds, and 0 is the server's own."""
    timeout = parameters.get("timeout", 0)
    if type(timeout) is not int or timeout < 0:
        raise BadRequest("timeout: expected a whole number of microseconds")
    return min(timeout, _LONGEST) / 1e6 or None


async def _uploads(service: Service, elements: Sequence[Any]) -> list[Upload]:
    """Texts are base64 and the like; binary elements are a picture's file."""
    if elements and all(isinstance(element, bytes) for element in elements):
        return [Upload(f"image[{i}]", element) for i, element in enumerate(elements)]
    for i, element in enumerate(elements):
        if not isinstance(element, str):
            raise BadRequest(f"image[{i}]: expected a text: base64 or a data: URI")
    return await foreign.uploads_of(service, elements, "image")


def _columns(found: Sequence[foreign.Scored], levels: int) -> dict[str, Column]:
    """The outputs, of which `_OUTPUTS` has the names."""
    nothing = [np.nan] * levels
    scores = [each if isinstance(each, Score) else None for each in found]
    status = ["" if isinstance(each, Score) else foreign.said(each) for each in found]
    value = [score.value if score else np.nan for score in scores]
    unit = [score.unit if score else np.nan for score in scores]
    probabilities = [list(score.probabilities.values()) if score else nothing for score in scores]
    return {
        "score": Column("score", np.array(value, np.float32)),
        "score01": Column("score01", np.array(unit, np.float32)),
        "probabilities": Column("probabilities", np.array(probabilities, np.float32)),
        "status": Column("status", status),
    }


def _packed(reply: bytes, length: int | None, accepted: str) -> Response:
    """The answer, packed where the client asks for it."""
    headers = {"vary": "accept-encoding"}
    if length is not None:
        headers[LENGTH_HEADER] = str(length)  # of the JSON as it is unpacked
    encoding = _encoding(accepted) if len(reply) >= _SMALL else None
    if encoding:
        headers["content-encoding"] = encoding
        reply = gzip.compress(reply, 1, mtime=0) if encoding == "gzip" else zlib.compress(reply, 1)
    return Response(reply, media_type="application/json" if length is None else _BINARY, headers=headers)


def _encoding(accepted: str) -> str | None:
    """gzip or deflate, if Accept-Encoding names it and does not rule it out."""
    for each in accepted.lower().split(","):
        name, _, weight = each.partition(";")
        if name.strip() in ("gzip", "deflate") and not _RULED_OUT.fullmatch(weight.strip()):
            return name.strip()
    return None
