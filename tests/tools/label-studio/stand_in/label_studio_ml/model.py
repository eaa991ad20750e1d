"""A project and its label config in, an object that a request's tasks are given to."""

from __future__ import annotations

from typing import Any

from label_studio_sdk._extensions.label_studio_tools.core.utils.io import get_local_path
from label_studio_sdk.label_interface import LabelInterface

from label_studio_ml.response import ModelResponse

_VALUES: dict[tuple[str, str], str] = {}


class LabelStudioMLBase:
    """The server makes one for each request, and keeps texts of each project."""

    def __init__(self, project_id: str | None = None, label_config: str | None = None) -> None:
        self.project_id = project_id or ""
        if label_config is not None:
            self.label_interface = LabelInterface(config=label_config)
        self.setup()

    def setup(self) -> None:
        """For subclasses."""

    def get(self, key: str) -> str | None:
        return _VALUES.get((self.project_id, key))

    def set(self, key: str, value: str) -> None:
        assert isinstance(value, str)
        _VALUES[self.project_id, key] = value

    def get_local_path(self, url: str, task_id: Any = None) -> str:
        return get_local_path(url, task_id=task_id)

    def predict(self, tasks: list[dict], context: dict | None = None, **kwargs: Any) -> ModelResponse:
        raise NotImplementedError
