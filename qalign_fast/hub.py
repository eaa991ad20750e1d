"""A Hub id in, the directory of its files out: fetched once if the disk has room, or from the cache when offline.

huggingface_hub does the fetching, so its settings hold: HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_ENDPOINT, HF_TOKEN.
After a connection breaks, fetching goes on where it was. A later call fetches only the files that are not complete.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qalign_fast.errors import ArtifactError, MissingExtraError, one_line

_FILES = ["*.json", "*.safetensors", "*.bin", "*.onnx", "*.onnx_data", "tokenizer.model", "anchors/*"]
_PICKLES = "*.bin"
_NO_COPY = "non_lora_trainables.bin"  # a LoRA adapter's: no other file holds these weights


def fetch(hub_id: str, **how: Any) -> Path:
    """The directory of the files of a model on the Hub, by its id "owner/name".

    `how` goes to huggingface_hub: revision, cache_dir, token, local_files_only, force_download.

    Raises ArtifactError if the Hub refuses, cannot be reached or the disk has no room, and MissingExtraError without
    huggingface_hub.
    """
    try:
        import huggingface_hub.errors  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{hub_id}: no such directory; to fetch it from the Hub: pip install 'qalign-fast[torch]'"
        ) from error
    try:
        return Path(_fetch(hub_id, how))
    except failures() as error:
        raise ArtifactError(
            f"{hub_id}: no such directory, and it could not be fetched from the Hub "
            f"({type(error).__name__}: {one_line(error)})"
        ) from error


def _fetch(hub_id: str, how: Mapping[str, Any]) -> str:
    from huggingface_hub import constants, snapshot_download

    try:
        files = snapshot_download(hub_id, allow_patterns=_FILES, dry_run=True, **how)
    except failures() as error:
        return _cached(hub_id, how, error)
    ignored = []
    if any(file.filename.endswith(".safetensors") for file in files):  # pickles hold the same weights again
        ignored = [f.filename for f in files if f.filename.endswith(".bin") and not f.filename.endswith(_NO_COPY)]
        files = [file for file in files if file.filename not in ignored]
    needed = sum(file.file_size or 0 for file in files if file.will_download)
    _check_room(hub_id, needed, Path(how.get("cache_dir", constants.HF_HUB_CACHE)))
    return str(snapshot_download(hub_id, allow_patterns=_FILES, ignore_patterns=ignored, **how))


def _cached(hub_id: str, how: Mapping[str, Any], reason: Exception) -> str:
    """The directory that was fetched before. If there is none, raises the reason why the Hub was not reached."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import DryRunError, LocalEntryNotFoundError

    with contextlib.suppress(LocalEntryNotFoundError):
        # pickles may have been left out when the model was fetched, so their absence is no error
        offline = {**how, "local_files_only": True}
        return str(snapshot_download(hub_id, allow_patterns=_FILES, ignore_patterns=_PICKLES, **offline))
    if isinstance(reason, DryRunError) and reason.__cause__:  # DryRunError itself says only that there was no access
        raise reason.__cause__
    raise reason


def failures() -> tuple[type[Exception], ...]:
    """What huggingface_hub raises for an invalid id or address, a refusal, a broken connection or a full disk."""
    # its releases build on one of these two, and not all of their errors are OSErrors
    libraries = [module for name in ("httpx", "httpx2") if (module := sys.modules.get(name))]
    return (OSError, ValueError, RuntimeError, *(error for m in libraries for error in (m.HTTPError, m.InvalidURL)))


def _check_room(hub_id: str, needed: int, cache: Path) -> None:
    place = next(path for path in (cache.absolute(), *cache.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise ArtifactError(f"{hub_id}: needs {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB free at {place}")
