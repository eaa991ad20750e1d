"""Predictions in, what a server sends out."""

from __future__ import annotations

from label_studio_sdk.label_interface.objects import PredictionValue
from pydantic import BaseModel, ConfigDict


class ModelResponse(BaseModel):
    """Predictions in the order of the tasks."""

    model_config = ConfigDict(protected_namespaces=())
    model_version: str | None = None
    predictions: list[PredictionValue]
