"""A Hub id in, the directory of its files out: fetched once, resumed where it was cut off, from the cache when offline.

huggingface_hub does the fetching, so its settings hold: HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_ENDPOINT, HF_TOKEN.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from qalign_fast.errors import ArtifactError, MissingExtraError, one_line

_FILES = ("*.json", "*.safetensors", "*.bin", "*.onnx", "*.onnx_data", "tokenizer.model")


def fetch(hub_id: str) -> Path:
    """Raises ArtifactError where it cannot be fetched or the disk has no room, MissingExtraError."""
    try:
        import huggingface_hub
        from huggingface_hub import constants
        from huggingface_hub.errors import HfHubHTTPError
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{hub_id}: no such directory; to fetch it from the Hub: pip install 'qalign-fast[torch]'"
        ) from error
    unreachable: tuple[type[Exception], ...] = (HfHubHTTPError, OSError, *_connection_errors())
    refused: tuple[type[Exception], ...] = (ValueError, RuntimeError, *unreachable)
    try:
        listed: list[Any] = huggingface_hub.snapshot_download(hub_id, allow_patterns=list(_FILES), dry_run=True)
    except unreachable:  # not to be reached: what is cached must do
        listed = []
    # the same weights in pickles are not needed; nor, unlisted, may their absence from the cache be an error
    ignored = ["*.bin"] if not listed or any(file.filename.endswith(".safetensors") for file in listed) else []
    missing = [f for f in listed if f.will_download and not (ignored and f.filename.endswith(".bin"))]
    _check_room(hub_id, sum(file.file_size or 0 for file in missing), Path(constants.HF_HUB_CACHE))
    try:
        found = huggingface_hub.snapshot_download(hub_id, allow_patterns=list(_FILES), ignore_patterns=ignored)
    except refused as error:
        raise ArtifactError(
            f"{hub_id}: no such directory, and it could not be fetched from the Hub ({one_line(error)})"
        ) from error
    return Path(found)


def _connection_errors() -> tuple[type[Exception], ...]:
    """What a connection that breaks raises through huggingface_hub: its releases build on one or the other of these."""
    return tuple(module.HTTPError for name in ("httpx", "httpx2") if (module := sys.modules.get(name)))


def _check_room(hub_id: str, needed: int, cache: Path) -> None:
    place = next(path for path in (cache.absolute(), *cache.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise ArtifactError(f"{hub_id}: {needed / 1e9:.1f} GB are to be fetched; {place} has {free / 1e9:.1f} GB free")
