"""A value in, an answer in JSON out: in ASCII, because it may repeat text that has no form in UTF-8."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import JSONResponse


class JsonAnswer(JSONResponse):
    """As starlette's, which cannot write half of a surrogate pair, such as a client may name its picture."""

    def render(self, content: Any) -> bytes:
        """The JSON. NaN is no JSON, and is a fault of ours."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")
