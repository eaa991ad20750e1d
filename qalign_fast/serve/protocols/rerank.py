"""/rerank as text-embeddings-inference and as vLLM have it: pictures in, their order out, the best first.

Both have this path, and are told apart by their fields: `texts` or `documents`. The query is a task's name; any other
query is for quality. A picture that cannot be scored comes last, with 0 for its score and an `error`.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from qalign_fast.levels import Score
from qalign_fast.serve.json_answer import JsonAnswer
from qalign_fast.serve.problems import Unprocessable
from qalign_fast.serve.protocols import foreign
from qalign_fast.serve.protocols.text_embeddings import Text, empty
from qalign_fast.serve.protocols.vllm import Picture, Usage, parts_of
from qalign_fast.serve.schemas import PICTURE, problems
from qalign_fast.serve.scoring_route import ScoringRoute

if TYPE_CHECKING:
    from qalign_fast.serve.served import Served
    from qalign_fast.serve.service import Service
    from qalign_fast.serve.uploads import Upload

_STATUSES = (400, 401, 404, 408, 413, 415, 422, 429, 500, 503)
Query = Annotated[
    str | dict[str, Any], Field(description="A task's name, such as aesthetics; anything else asks for quality.")
]


class TextsRequest(foreign.PictureBody):
    """text-embeddings-inference's form."""

    query: Query
    texts: foreign.Many[Text]
    raw_scores: bool = Field(False, description="Scores on 1..5 in place of 0..1.")
    return_text: bool = False


class DocumentsRequest(foreign.PictureBody):
    """vLLM's form."""

    query: Query
    documents: foreign.Many[Picture] | dict[str, Any] = Field(
        description="Pictures; or an object with them as `content`."
    )
    top_n: int = Field(0, ge=0, description="How many of the best to name. 0: all.")
    return_documents: bool = False


class Rank(BaseModel):
    """A picture's place is its place in the list; `index` is its number in the request."""

    model_config = ConfigDict(extra="forbid")
    index: int
    score: float
    text: str | None = None
    error: str | None = None


class Result(BaseModel):
    """As `Rank`."""

    model_config = ConfigDict(extra="forbid")
    index: int
    relevance_score: float
    document: dict[str, Any] | None = None
    error: str | None = None


class Results(BaseModel):
    """vLLM's answer."""

    id: str
    model: str
    usage: Usage
    results: list[Result]


def make_router(service: Service) -> APIRouter:
    """The routes /rerank, /v1/rerank and /v2/rerank. All of them take both forms."""
    router = APIRouter(tags=["text-embeddings-inference", "vLLM"], route_class=ScoringRoute)

    async def rerank(request: Request) -> Response:
        """Orders pictures by their scores: with `texts` as text-embeddings-inference, with `documents` as vLLM."""
        content = await foreign.read_json(service, request)
        if isinstance(content, Mapping) and "texts" in content:
            return await _texts(service, request, foreign.checked(TextsRequest, content))
        return await _documents(service, request, foreign.checked(DocumentsRequest, content))

    examples = [{"query": "quality", name: [PICTURE, PICTURE]} for name in ("texts", "documents")]
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        router.post(
            path,
            response_model=None,
            responses={200: {"model": list[Rank] | Results}, **problems(*_STATUSES)},
            openapi_extra=foreign.shown(TextsRequest, DocumentsRequest, examples=examples),
        )(rerank)
    return router


async def _texts(service: Service, request: Request, asked: TextsRequest) -> Response:
    if not asked.texts:
        raise empty("texts")
    served = service.model(asked.model)
    uploads = await foreign.uploads_of(service, asked.texts, "texts")
    found = await _score(service, request, served, uploads, asked)
    rows = [
        {
            "index": i,
            "score": _relevance(found[i], asked.raw_scores),
            **({"text": asked.texts[i]} if asked.return_text else {}),
            **_error(found[i]),
        }
        for i in _order(found)
    ]
    return JsonAnswer(rows)


async def _documents(service: Service, request: Request, asked: DocumentsRequest) -> Response:
    documents = asked.documents
    if isinstance(documents, dict):
        documents = parts_of(documents)
    served = service.model(asked.model)
    uploads = await foreign.uploads_of(service, [_one(i, each) for i, each in enumerate(documents)], "documents")
    found = await _score(service, request, served, uploads, asked)
    results = [
        {
            "index": i,
            "relevance_score": _relevance(found[i], False),
            **({"document": _echo(documents[i])} if asked.return_documents else {}),
            **_error(found[i]),
        }
        for i in _order(found)[: asked.top_n or None]
    ]
    name = f"rerank-{uuid.uuid4().hex}"
    return JsonAnswer({"id": name, "model": served.name, "usage": Usage().model_dump(), "results": results})


async def _score(
    service: Service,
    request: Request,
    served: Served,
    uploads: Sequence[Upload],
    asked: TextsRequest | DocumentsRequest,
) -> list[foreign.Scored]:
    """In the task that the query names. Raises Problem, also where nothing can be scored."""
    named = isinstance(asked.query, str) and asked.query in served.scorer.tasks()
    task = foreign.one_task(served, asked.task or (str(asked.query) if named else None))
    found = await foreign.score_each(service, request, served, uploads, task)
    foreign.require_any(found)
    return found


def _order(found: Sequence[foreign.Scored]) -> list[int]:
    """Numbers of pictures: the best first, equal ones as they came, those without a score last."""
    return sorted(range(len(found)), key=lambda i: -_value(found[i]))


def _value(each: foreign.Scored) -> float:
    return each.value if isinstance(each, Score) else float("-inf")


def _relevance(each: foreign.Scored, raw: bool) -> float:
    """The protocols have no null here; `error` tells a 0 that is none."""
    return (each.value if raw else each.unit) if isinstance(each, Score) else 0.0


def _error(each: foreign.Scored) -> dict[str, str]:
    return {} if isinstance(each, Score) else {"error": foreign.said(each)}


def _one(number: int, document: str | dict[str, Any]) -> Any:
    """The picture of a document, which may be a message's content."""
    if isinstance(document, str) or "content" not in document:
        return document
    parts = parts_of(document)
    if len(parts) != 1:
        raise Unprocessable(f"documents[{number}]: {len(parts)} pictures; expected one")
    return parts[0]


def _echo(document: str | dict[str, Any]) -> dict[str, Any]:
    return {"text": document} if isinstance(document, str) else document
