"""KServe's protocol v1, which is TensorFlow Serving's: instances in, predictions out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from qalign_fast.levels import Score
from qalign_fast.serve.json_answer import JsonAnswer
from qalign_fast.serve.protocols import foreign
from qalign_fast.serve.schemas import PICTURE, ErrorAnswer, problems
from qalign_fast.serve.scoring_route import ScoringRoute

if TYPE_CHECKING:
    from qalign_fast.serve.service import Service

_STATUSES = (400, 401, 404, 408, 413, 415, 422, 429, 500, 503)
_PREDICT = ":predict"
_MODEL = foreign.path_names("model")

Instance = Annotated[
    str | dict[str, Any],
    Field(description="base64 or a data: URI; or an object with it as `b64`, or with such an object as `image_bytes`."),
]


class PredictRequest(foreign.RequestBody):
    """Pictures."""

    instances: foreign.Many[Instance]
    task: str | None = Field(None, description="Ours: quality, or another task of the model. Default: quality.")


class Prediction(BaseModel):
    """One picture's; with an error the rest is null."""

    model_config = ConfigDict(extra="forbid")
    score: float | None = Field(description="1 (bad) to 5 (excellent).")
    score01: float | None
    level: str | None
    probabilities: dict[str, float] | None
    error: str | None


class Predictions(BaseModel):
    """In the order of the instances."""

    predictions: list[Prediction]


class NoPrediction(ErrorAnswer):
    """The answer where nothing could be scored."""

    predictions: list[Prediction] | None = None


class ModelStatus(BaseModel):
    """Whether a model answers."""

    name: str
    ready: bool


def make_router(service: Service) -> APIRouter:
    """The routes below /v1/models/{model}."""
    router = APIRouter(tags=["KServe v1"], route_class=ScoringRoute)

    @router.post(
        f"/v1/models/{{model}}{_PREDICT}",  # before the other route, which takes its path too
        response_model=None,
        responses={200: {"model": Predictions}, **problems(*_STATUSES, other=NoPrediction)},
        openapi_extra=foreign.shown(PredictRequest, examples=[{"instances": [{"image_bytes": {"b64": PICTURE}}]}])
        | _MODEL,
    )
    async def predict(request: Request) -> Response:
        """A score for each instance."""
        served = service.model(request.path_params["model"])
        asked = foreign.checked(PredictRequest, await foreign.read_json(service, request, served.name))
        task = foreign.one_task(served, asked.task)
        uploads = await foreign.uploads_of(service, list(map(_picture, asked.instances)), "instances")
        found = await foreign.score_each(service, request, served, uploads, task)
        rows = {"predictions": list(map(_prediction, found))}
        foreign.require_any(found, rows)
        return JsonAnswer(rows)

    @router.get(
        "/v1/models/{model}", response_model=ModelStatus, responses=problems(401, 404, 503), openapi_extra=_MODEL
    )
    async def status(request: Request) -> dict[str, Any]:
        """Whether a model answers."""
        name = request.path_params["model"]
        if name.endswith(_PREDICT):
            raise HTTPException(405, headers={"allow": "POST"})
        return {"name": service.model(name).name, "ready": True}

    return router


def _picture(instance: str | dict[str, Any]) -> Any:
    return instance if isinstance(instance, str) else instance.get("image_bytes", instance)


def _prediction(each: foreign.Scored) -> dict[str, Any]:
    if not isinstance(each, Score):
        empty = dict.fromkeys(("score", "score01", "level", "probabilities"))
        return {**empty, "error": foreign.said(each)}
    return {
        "score": each.value,
        "score01": each.unit,
        "level": each.level,
        "probabilities": each.probabilities,
        "error": None,
    }
