"""What FiftyOne calls in, qalign_fast's answers out: a remote source of models, and a plugin with one operator."""

from typing import Any

from .scoring import ScoreWithQAlign
from .zoo import download_model, load_model, parse_parameters, resolve_input

__all__ = ["download_model", "load_model", "parse_parameters", "register", "resolve_input"]


def register(plugin: Any) -> None:
    """FiftyOne calls it when it loads the folder as a plugin."""
    plugin.register(ScoreWithQAlign)
