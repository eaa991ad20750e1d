"""text-embeddings-inference's routes: pictures in, the five levels as a classifier's labels out.

`/predict` takes base64, data: URIs or allowed addresses as its texts. Of several, one that cannot be scored is null in
its place; the header x-errors says why. Its `/rerank` is in `rerank.py`, its /health and /metrics in `operations.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from qalign_fast.levels import Score
from qalign_fast.serve.json_answer import JsonAnswer
from qalign_fast.serve.problems import BadRequest
from qalign_fast.serve.protocols import foreign
from qalign_fast.serve.schemas import PICTURE, problems
from qalign_fast.serve.scoring_route import ScoringRoute
from qalign_fast.version import __version__

if TYPE_CHECKING:
    from qalign_fast.serve.service import Service

_STATUSES = (400, 401, 404, 408, 413, 415, 422, 429, 500, 503)

Text = Annotated[str, Field(description="base64, a data: URI, or an address that the server allows.")]


class PredictRequest(foreign.PictureBody):
    """One picture, or several."""

    inputs: Text | foreign.Many[Text | Annotated[foreign.Many[Text], Field(min_length=1, max_length=1)]]
    raw_scores: bool = Field(False, description="Logits in place of probabilities.")


class Prediction(BaseModel):
    """A level and its probability, or its logit."""

    model_config = ConfigDict(extra="forbid")
    score: float
    label: str


class Info(BaseModel):
    """The model that answers, and the server's limits; what texts have and pictures do not is given in characters."""

    model_id: str
    model_sha: str | None
    model_dtype: str
    model_type: dict[str, Any]
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int
    max_batch_requests: int | None
    max_client_batch_size: int
    auto_truncate: bool
    tokenization_workers: int
    version: str
    sha: str | None
    docker_label: str | None


def make_router(service: Service) -> APIRouter:
    """The routes /info and /predict."""
    router = APIRouter(tags=["text-embeddings-inference"], route_class=ScoringRoute)

    @router.get("/info", response_model=Info, responses=problems(401, 503))
    async def info() -> dict[str, Any]:
        """What the server is, as text-embeddings-inference says it."""
        return _info(service)

    @router.post(
        "/predict",
        response_model=None,
        responses={
            200: {
                "model": list[Prediction] | list[list[Prediction] | None],
                "description": "The levels of one picture, the most probable first; or a list of such lists.",
                "headers": {foreign.ERRORS_HEADER: foreign.ERRORS_SHOWN},
            },
            **problems(*_STATUSES),
        },
        openapi_extra=foreign.shown(PredictRequest, examples=[{"inputs": [PICTURE, PICTURE]}]),
    )
    async def predict(request: Request) -> Response:
        """The levels of each picture with their probabilities."""
        asked = foreign.checked(PredictRequest, await foreign.read_json(service, request))
        served = service.model(asked.model)
        task = foreign.one_task(served, asked.task)
        alone = isinstance(asked.inputs, str)
        texts = [asked.inputs] if isinstance(asked.inputs, str) else list(map(_text, asked.inputs))
        if not texts:
            raise empty("inputs")
        uploads = await foreign.uploads_of(service, texts, "inputs")
        found = await foreign.score_each(service, request, served, uploads, task)
        foreign.require_any(found)
        rows = [_levels(each, asked.raw_scores) if isinstance(each, Score) else None for each in found]
        return JsonAnswer(rows[0] if alone else rows, headers=foreign.errors_header(found))

    return router


def empty(field: str) -> BadRequest:
    """The protocol's answer to a batch of nothing."""
    return BadRequest(f"{field}: it is empty", more={"error_type": "Empty"})


def _text(each: str | list[str]) -> str:
    return each if isinstance(each, str) else each[0]


def _levels(score: Score, raw: bool) -> list[dict[str, Any]]:
    values: Sequence[float] = score.logits if raw else list(score.probabilities.values())
    rows = [{"score": value, "label": word} for word, value in zip(score.probabilities, values, strict=True)]
    return sorted(rows, key=lambda row: row["score"], reverse=True)


def _info(service: Service) -> dict[str, Any]:
    served, settings = service.model(None), service.settings
    words = served.facts["levels"]
    labels = {
        "id2label": {str(i): word for i, word in enumerate(words)},
        "label2id": {w: i for i, w in enumerate(words)},
    }
    return {
        "model_id": served.name,
        "model_sha": served.facts["hash"],
        "model_dtype": served.facts["precision"],
        "model_type": {"classifier": labels},
        "max_concurrent_requests": settings.queue,
        "max_input_length": settings.max_body,
        "max_batch_tokens": settings.max_body,
        "max_batch_requests": settings.max_batch,
        "max_client_batch_size": settings.queue,
        "auto_truncate": False,
        "tokenization_workers": 1,
        "version": __version__,
        "sha": None,
        "docker_label": None,
    }
