"""A manifest's content in, its sealed text out, and back: JSON whose last field is the SHA-256 of all before it.

`head -n -2 qalign.json | sha256sum` computes the seal anew. The seal shows damage, but not a change by somebody who
seals again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from math import isfinite
from typing import Any


def seal(content: Mapping[str, Any]) -> str:
    """The JSON text of `content` with its seal."""
    body = json.dumps(content, indent=2, allow_nan=False).removesuffix("\n}") + ",\n"
    return f'{body}  "sha256": "{_digest(body.encode())}"\n}}\n'


def is_sealed(text: bytes) -> bool:
    """Whether every byte is as `seal` wrote it."""
    body, _, end = text.rpartition(b'  "sha256": "')
    return end == f'{_digest(body)}"\n}}\n'.encode()


def parse_strict(text: bytes) -> Any:
    """The content of a JSON text that can be read in one way only: no name twice in an object, no NaN, no infinity.

    Raises ValueError for a text that is not, and RecursionError for one that is nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_unique, parse_float=_finite, parse_constant=_finite)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("an object has a name twice")
    return values


def _finite(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise ValueError(f"{text[:20]} is not a finite number")
    return value


def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
