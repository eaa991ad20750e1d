"""vLLM's /classify: pictures in, the five levels as a classifier's classes out. Its /rerank is in `rerank.py`."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from qalign_fast.levels import Score
from qalign_fast.serve.json_answer import JsonAnswer
from qalign_fast.serve.problems import TooMany, Unprocessable
from qalign_fast.serve.protocols import foreign
from qalign_fast.serve.schemas import PICTURE, problems
from qalign_fast.serve.scoring_route import ScoringRoute

if TYPE_CHECKING:
    from qalign_fast.serve.service import Service

_MOST_PARTS = 1 << 16  # of a message, texts included
_STATUSES = (400, 401, 404, 408, 413, 415, 422, 429, 500, 503)

Picture = Annotated[
    str | dict[str, Any],
    Field(description="base64, a data: URI, or a content part such as {type: image_url, image_url: {url: ..}}."),
]


class ClassifyRequest(foreign.PictureBody):
    """Pictures by themselves, or those of a chat's messages; texts of messages are left out."""

    input: Picture | foreign.Many[Picture] | None = None
    messages: foreign.Many[dict[str, Any]] | None = None


class Usage(BaseModel):
    """Clients look for it. A picture has no tokens of text."""

    prompt_tokens: int = 0
    total_tokens: int = 0


class Classified(BaseModel):
    """One picture: its most probable level as `label`; `score` on 1..5 is ours. With an error they are null."""

    model_config = ConfigDict(extra="forbid")
    index: int
    label: str | None
    probs: list[float] | None = Field(description="Of each level, excellent first.")
    num_classes: int
    score: float | None
    error: str | None = None


class Classification(BaseModel):
    """The pictures in their order."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Classified]
    usage: Usage


def make_router(service: Service) -> APIRouter:
    """The route /classify."""
    router = APIRouter(tags=["vLLM"], route_class=ScoringRoute)

    @router.post(
        "/classify",
        response_model=None,
        responses={200: {"model": Classification}, **problems(*_STATUSES)},
        openapi_extra=foreign.shown(ClassifyRequest, examples=[{"model": "mini", "input": [PICTURE, PICTURE]}]),
    )
    async def classify(request: Request) -> Response:
        """The most probable level of each picture, and the probability of every level."""
        asked = foreign.checked(ClassifyRequest, await foreign.read_json(service, request))
        served = service.model(asked.model)
        task = foreign.one_task(served, asked.task)
        uploads = await foreign.uploads_of(service, _pictures(asked), "input")
        found = await foreign.score_each(service, request, served, uploads, task)
        foreign.require_any(found)
        classes = len(served.facts["levels"])
        return JsonAnswer(
            {
                "id": f"classify-{uuid.uuid4().hex}",
                "object": "list",
                "created": int(time.time()),
                "model": served.name,
                "data": [_classified(i, each, classes) for i, each in enumerate(found)],
                "usage": Usage().model_dump(),
            }
        )

    return router


def parts_of(message: Mapping[str, Any]) -> list[Any]:
    """The pictures of a message, whose texts are left out. Raises TooMany."""
    content = message.get("content")
    parts = content if isinstance(content, list) else [content]
    if len(parts) > _MOST_PARTS:
        raise TooMany(f"a message of {len(parts)} parts; the limit is {_MOST_PARTS}")
    return [part for part in parts if isinstance(part, Mapping) and part.get("type") != "text"]


def _pictures(asked: ClassifyRequest) -> list[Any]:
    if (asked.input is None) == (asked.messages is None):
        raise Unprocessable("expected 'input' or 'messages'")
    if asked.messages is not None:
        return [part for message in asked.messages for part in parts_of(message)]
    given = asked.input if isinstance(asked.input, list) else [asked.input]
    found: list[Any] = []
    for each in given:
        if isinstance(each, Mapping):
            found += parts_of(each if "content" in each else {"content": each})
        else:
            found.append(each)
    return found


def _classified(index: int, each: foreign.Scored, classes: int) -> dict[str, Any]:
    row: dict[str, Any] = {"index": index, "label": None, "probs": None, "num_classes": classes, "score": None}
    if not isinstance(each, Score):
        return {**row, "error": foreign.said(each)}
    likely = max(each.probabilities, key=each.probabilities.__getitem__)
    return {**row, "label": likely, "probs": list(each.probabilities.values()), "score": each.value}
