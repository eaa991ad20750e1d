"""Our own routes: pictures, clips and pairs of pictures in, rows out, as the command line's."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse

from qalign_fast.feed.items import ClipOptions
from qalign_fast.levels import Score, probability_better
from qalign_fast.pixels.limits import MAX_FPS
from qalign_fast.records import Row, make_row
from qalign_fast.serve import schemas
from qalign_fast.serve.batcher import Answer
from qalign_fast.serve.json_answer import JsonAnswer
from qalign_fast.serve.problems import Problem, Unprocessable, problem_response
from qalign_fast.serve.scoring_route import ScoringRoute
from qalign_fast.serve.uploads import Asked, Upload, check_type, json_uploads, parse_json, parse_multipart

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from qalign_fast.serve.served import Served
    from qalign_fast.serve.service import Service

_ROWS = "application/x-ndjson"
_MULTIPART, _JSON = "multipart/form-data", "application/json"
# bodies without a type, and curl's own for --data-binary, are taken as a file's bytes
_RAW = ("image/*", "application/octet-stream", "", "application/x-www-form-urlencoded")
_CLIP: dict[str, Any] = {"fps": 1.0, "max_frames": None, "sampling": "index", "timeline": False}


class _Rows(StreamingResponse):
    """Rows, a line each. `ended` is called at their end, also where the client went before the first one."""

    def __init__(self, lines: AsyncIterator[bytes], ended: Callable[[], None]) -> None:
        super().__init__(lines, media_type=_ROWS)
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ended()


def make_router(service: Service) -> APIRouter:
    """The routes below /v1 that are ours."""
    router = APIRouter(tags=["scores"], route_class=ScoringRoute)

    @router.post(
        "/v1/score",
        response_model=None,
        responses={
            200: {"model": schemas.Scores, "content": {_ROWS: {"schema": {"type": "string"}}}},
            **schemas.problems(*schemas.ALL_PROBLEMS, other=schemas.Unscored),
        },
        openapi_extra=schemas.SCORE_BODY,
    )
    async def score(request: Request) -> Response:
        """Scores pictures. With `Accept: application/x-ndjson` rows come a line each, as they are ready."""
        asked = await read_pictures(service, request)
        served, tasks, with_logits = _common(service, asked, "image")
        if _ROWS in request.headers.get("accept", ""):
            tickets = await service.submit(request, served, asked.uploads, tasks)
            lines = _lines(service.stream(request, served, tickets), tasks, with_logits)
            return _Rows(lines, partial(served.batcher.cancel, tickets))
        answers = await service.score(request, served, asked.uploads, tasks)
        return _answer(served, answers, tasks, with_logits)

    @router.post(
        "/v1/score/video",
        response_model=None,
        responses={
            200: {"model": schemas.ClipScores},
            **schemas.problems(*schemas.ALL_PROBLEMS, other=schemas.Unscored),
        },
        openapi_extra=schemas.CLIP_BODY,
    )
    async def score_video(request: Request) -> Response:
        """Scores a clip: a video file, an animated picture, or its frames."""
        asked = await _read_clip(service, request)
        served, tasks, with_logits = _common(service, asked, "video")
        clip = _clip_options(asked.fields)
        if clip.timeline:
            served.scorer.require(tasks, "image")
        if len(asked.uploads) > 1 or asked.uploads[0].is_frame:
            answers = await service.score_frames(request, served, asked.uploads, tasks, clip)
        else:
            answers = await service.score(request, served, asked.uploads, tasks, clip=clip)
        more = {"timeline": _timeline(answers[0], tasks)} if clip.timeline else {}
        return _answer(served, answers, tasks, with_logits, more)

    @router.post(
        "/v1/compare",
        response_model=None,
        responses={
            200: {"model": schemas.Comparisons},
            **schemas.problems(*schemas.ALL_PROBLEMS, other=schemas.Unscored),
        },
        openapi_extra=schemas.COMPARE_BODY,
    )
    async def compare(request: Request) -> Response:
        """Compares two pictures, A and B."""
        asked = await read_pictures(service, request, raw=False)
        if len(asked.uploads) != 2:
            raise Unprocessable(f"{len(asked.uploads)} pictures; expected two, A and B")
        served, tasks, with_logits = _common(service, asked, "image")
        a, b = answers = await service.score(request, served, asked.uploads, tasks)
        if a.scored.scores is None or b.scored.scores is None:
            return _none(served, answers, tasks)
        found = [compare_scores(a.scored.scores[task], b.scored.scores[task]) for task in tasks]
        return _answer(served, answers, tasks, with_logits, {"comparisons": found})

    @router.get("/v1/models", response_model=schemas.Models, responses=schemas.problems(401, 503))
    async def models() -> dict[str, Any]:
        """What the server has loaded; the first model answers where none is named."""
        if not service.ready:
            raise service.unavailable()
        return {"object": "list", "data": [served.facts for served in service.models.values()]}

    return router


async def read_pictures(service: Service, request: Request, *, raw: bool = True) -> Asked:
    """The pictures of a request's body, and the fields of its address and its body. Raises Problem."""
    query = _query(request)
    kind = check_type(request.headers.get("content-type", ""), (_JSON, _MULTIPART, *(_RAW if raw else ())))
    content = await _read(service, request, kind, query)
    if isinstance(content, Asked):
        return content
    if not ("images" in content or "image" in content):
        raise Unprocessable("the body has no 'images'")
    if "images" in content and "image" in content:
        raise Unprocessable("the body has both 'images' and 'image'")
    images = content.get("images", [content.get("image")])
    if not isinstance(images, list):
        raise Unprocessable("'images' is not a list")
    uploads = await json_uploads(images, service.guard, "images", service.settings.queue)
    return Asked(uploads, query | content)


async def _read_clip(service: Service, request: Request) -> Asked:
    query = _query(request)
    kind = check_type(request.headers.get("content-type", ""), (_JSON, _MULTIPART, "video/*", *_RAW))
    content = await _read(service, request, kind, query)
    if isinstance(content, Asked):
        asked = content
    elif "video" in content and "frames" in content:
        raise Unprocessable("the body has both a 'video' and 'frames'")
    elif "video" in content:
        asked = Asked(await json_uploads([content["video"]], service.guard, "video"), query | content)
    elif isinstance(content.get("frames"), list):
        frames = await json_uploads(content["frames"], service.guard, "frames")
        asked = Asked([replace(frame, is_frame=True) for frame in frames], query | content)
    else:
        raise Unprocessable("the body has neither a 'video' nor a list of 'frames'")
    if not asked.uploads:
        raise Unprocessable("there is no clip in the body")
    return asked


def _query(request: Request) -> dict[str, Any]:
    """The fields of the address. Raises Unprocessable.

    FastAPI's own way to them takes a quarter of a millisecond, which is much beside a small model's score.
    """
    query = request.query_params
    if not query:
        return {}
    found: dict[str, Any] = {name: query[name] for name in ("model", "source", *_CLIP) if name in query}
    _clip_options(found)
    if "task" in query:
        found["task"] = query.getlist("task")
    if "logits" in query:
        found["logits"] = _flag("logits", query["logits"])
    return found


async def _read(service: Service, request: Request, kind: str, query: dict[str, Any]) -> Asked | dict[str, Any]:
    """The body by its type: files, a file, or an object in JSON, which is as it was sent."""
    service.check_room(query.get("model"))
    body = await service.bodies.read(request)
    if kind == _MULTIPART:
        asked = await parse_multipart(body, request.headers, service.settings.queue)
        return Asked(asked.uploads, {**query, **asked.fields})
    if kind != _JSON:
        return Asked([Upload(query.get("source") or "body", body)], query)
    content = await parse_json(body)
    if not isinstance(content, dict):
        raise Unprocessable("the body is not a JSON object")
    return content


def _common(service: Service, asked: Asked, medium: str) -> tuple[Served, tuple[str, ...], bool]:
    """Model, tasks and whether logits are wanted."""
    name = asked.fields.get("model")
    if name is not None and not isinstance(name, str):
        raise Unprocessable("model: expected a text")
    served = service.model(name)
    found = asked.fields.get("task", "quality")
    if not isinstance(found, str | list):
        raise Unprocessable("task: expected a text or a list of texts")
    return served, served.tasks(found, medium), _flag("logits", asked.fields.get("logits", False))


def _flag(name: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "1", "false", "0"):
        return value.lower() in ("true", "1")
    raise Unprocessable(f"{name}: expected true or false")


def _clip_options(fields: Mapping[str, Any]) -> ClipOptions:
    given = {name: fields.get(name, usual) for name, usual in _CLIP.items()}
    try:
        fps = float(given["fps"])
        most = None if given["max_frames"] is None else int(given["max_frames"])
    except (TypeError, ValueError, OverflowError) as error:
        raise Unprocessable("fps and max_frames: expected numbers") from error
    is_odd = isinstance(given["fps"], bool) or isinstance(given["max_frames"], bool | float)  # of JSON
    if is_odd or not 0 < fps <= MAX_FPS or (most is not None and most < 1):
        raise Unprocessable(
            f"fps and max_frames: expected positive numbers, fps at most {MAX_FPS:g}, and max_frames whole"
        )
    if given["sampling"] not in ("index", "time"):
        raise Unprocessable("sampling: expected index or time")
    return ClipOptions(fps, most, given["sampling"], _flag("timeline", given["timeline"]))


def rows_of(answer: Answer, tasks: Sequence[str], *, logits: bool = False) -> list[Row]:
    """A row for each task."""
    return [_row(answer.scored.key, task, answer.scored.error or answer.scored.get()[task], logits) for task in tasks]


def _row(source: str, task: str, result: Score | Exception, logits: bool) -> Row:
    row = make_row(source, task, result)
    if isinstance(result, Exception):
        row["error_type"] = type(result).__name__
    elif logits:
        row["logits"] = list(result.logits)
    return row


def compare_scores(a: Score, b: Score) -> dict[str, Any]:
    """Two scores of one task, side by side."""
    difference = a.value - b.value
    return {
        "task": a.task,
        "difference": round(difference, 4),
        "better": "A" if difference > 0 else "B" if difference < 0 else None,
        "probability_a_better": round(probability_better(a, b), 6),
    }


def _answer(
    served: Served,
    answers: Sequence[Answer],
    tasks: Sequence[str],
    logits: bool,
    more: Mapping[str, Any] | None = None,
) -> Response:
    if all(answer.scored.error for answer in answers):
        return _none(served, answers, tasks)
    rows = [row for answer in answers for row in rows_of(answer, tasks, logits=logits)]
    return JsonAnswer({"model": served.name, "rows": rows, **(more or {})})


def _none(served: Served, answers: Sequence[Answer], tasks: Sequence[str]) -> Response:
    """The answer where nothing can be scored: the client's fault, unless the model itself failed."""
    errors = [answer.scored.error for answer in answers if answer.scored.error]
    failed = all(type(error).__name__ == "InternalError" for error in errors)
    rows = [row for answer in answers for row in rows_of(answer, tasks)]
    return problem_response(
        500 if failed else 422, rows[0]["error"] or str(errors[0]), more={"model": served.name, "rows": rows}
    )


def _timeline(answer: Answer, tasks: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {"index": moment.index, "time": moment.time, "task": task, "score": round(moment.scores[task].value, 4)}
        for moment in answer.scored.timeline
        for task in tasks
    ]


async def _lines(
    found: AsyncIterator[tuple[str, Answer | Problem]], tasks: Sequence[str], logits: bool
) -> AsyncIterator[bytes]:
    async for source, answer in found:
        if isinstance(answer, Problem):
            rows = [_row(source, task, answer, False) for task in tasks]
        else:
            rows = rows_of(answer, tasks, logits=logits)
        for row in rows:
            yield json.dumps(row).encode() + b"\n"
