"""A reference to a model in, the directory of its files out. It is a path, a Hub id, or None for the embedded model."""

from __future__ import annotations

import re
from pathlib import Path

from qalign_fast.errors import ArtifactError

EMBEDDED = Path(__file__).parent / "mini"
_HUB_ID = r"[A-Za-z0-9][\w.-]*/[\w.-]+"


def find_model(model: str | Path | None) -> Path:
    """The directory of a model, which is fetched from the Hub if `model` is an id.

    Raises ArtifactError for a file, a path that does not exist and an id that cannot be fetched, and MissingExtraError
    if huggingface_hub is needed and not installed.
    """
    if model is None:
        return EMBEDDED
    try:
        if Path(model).is_dir():
            return Path(model)
        if Path(model).exists():
            raise ArtifactError(f"{model}: a file; expected an artifact or checkpoint directory, or a Hub id")
    except OSError as error:
        raise ArtifactError(f"{str(model)[:256]}: {error.strerror}") from error
    if isinstance(model, str) and re.fullmatch(_HUB_ID, model):
        from qalign_fast.hub import fetch

        return fetch(model)
    raise ArtifactError(f"{model}: no such directory, and not a Hub id (owner/name)")


def from_anywhere(model: str | Path | None) -> str | Path | None:
    """The reference to a model that was found, for a process in another folder: a path becomes absolute."""
    return str(Path(model).absolute()) if model is not None and Path(model).exists() else model


def name_of(directory: Path) -> str:
    """The name of the model in a directory: the folder's, or in the Hub's cache, models--OWNER--NAME, the model's."""
    path = directory.resolve()
    if path.parent.name == "snapshots" and path.parents[1].name.startswith("models--"):
        return path.parents[1].name.rpartition("--")[2]
    return path.name
