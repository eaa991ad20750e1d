"""Artifacts that are changed on purpose."""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from qalign_fast.artifact.manifest import MANIFEST
from qalign_fast.artifact.seal import seal


def change_manifest(copy: Path, **fields: object) -> None:
    """Writes the changed manifest with a valid seal."""
    path = copy / MANIFEST
    content = json.loads(path.read_text()) | fields
    content.pop("sha256")
    path.write_text(seal(content))


def seal_files(copy: Path) -> None:
    """Writes the manifest's hashes and sizes anew, of its files as they are now."""
    files = {name: (copy / name).read_bytes() for name in json.loads((copy / MANIFEST).read_text())["files"]}
    change_manifest(
        copy, files={name: {"sha256": sha256(data).hexdigest(), "bytes": len(data)} for name, data in files.items()}
    )


ODD_VALUES: tuple[Any, ...] = (None, True, -1, 0, 7, 1 << 70, 1e300, "", "x", "../x", [], [[]], {}, {"x": None})


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a JSON value: the container and the key in it."""
    for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(item, dict | list):
            yield from places(item)
