"""What the OpenAPI document says of all routes alike: who needs a key, and the header for a request's deadline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qalign_fast.serve.gate import OPEN

if TYPE_CHECKING:
    from fastapi import FastAPI

_KEY = {"type": "http", "scheme": "bearer", "description": "A key of --api-key."}
_DEADLINE = {
    "name": "x-request-timeout",
    "in": "header",
    "schema": {"type": "string"},
    "description": "Seconds that the request may wait, fewer than the server's --timeout. What is no number above 0 is "
    "ignored.",
}


def complete(app: FastAPI, *, with_keys: bool) -> None:
    """Adds it to the document that FastAPI makes of the routes."""
    of_routes = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _complete(of_routes(), with_keys)
        return of_routes()

    app.openapi = openapi  # type: ignore[method-assign]


def _complete(document: dict[str, Any], with_keys: bool) -> None:
    if with_keys:
        document["components"]["securitySchemes"] = {"key": _KEY}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if with_keys and path not in OPEN:
                operation["security"] = [{"key": []}]
            if method == "post":
                operation.setdefault("parameters", []).append(_DEADLINE)
