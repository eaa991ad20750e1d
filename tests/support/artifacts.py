"""Artifacts that are changed on purpose."""

from __future__ import annotations

import json
from collections.abc import Iterator
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


ODD_VALUES: tuple[Any, ...] = (None, True, -1, 0, 7, 1 << 70, 1e300, "", "x", "../x", [], [[]], {}, {"x": None})


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a JSON value: the container and the key in it."""
    for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(item, dict | list):
            yield from places(item)
