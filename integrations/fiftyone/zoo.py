"""A name of manifest.json in, the model out: the four functions that FiftyOne asks of a remote source of models."""

from pathlib import Path
from typing import Any

from fiftyone.operators import types
from qalign_fast import Scorer
from qalign_fast.adapters.fiftyone_model import QAlignModel

_VIDEO = "qalign-video"
_NOTE = "Empty but for this line: FiftyOne wants a file here. The weights are where load_model's `model` says.\n"


def download_model(model_name: str, model_path: str) -> None:
    """Writes a note. The weights come with `load_model`, because which ones they are is an option of it."""
    Path(model_path).write_text(_NOTE, "utf-8")


def load_model(
    model_name: str | None = None,
    model_path: str | None = None,
    *,
    model: str | None = None,
    task: str = "quality",
    **options: Any,
) -> QAlignModel:
    """A model for `dataset.apply_model`.

    model: as `Scorer.load` takes it: a directory, a Hub id, a server's address, or None for the embedded model.
    task: one of the model's tasks.
    options: further ones of `Scorer.load`, such as device.
    """
    return QAlignModel(Scorer.load(model, **options), task, "video" if model_name == _VIDEO else "image")


def resolve_input(model_name: str, ctx: Any) -> types.Property:
    """The form in which FiftyOne's App asks for the options."""
    inputs = types.Object()
    inputs.str("model", label="Model", description="A directory, a Hub id or a server; empty: the embedded model")
    inputs.str("task", label="Task", default="quality")
    return types.Property(inputs)


def parse_parameters(model_name: str, ctx: Any, params: dict[str, Any]) -> None:
    """A form's empty field is a text, and no None."""
    params["model"], params["task"] = params.get("model") or None, params.get("task") or "quality"
