"""The OpenAPI document, held against the server: its examples are answered, and no answer is other than it says.

QALIGN_FULL=1 draws 200 requests for each route, where 50 are drawn else.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from qalign_fast.serve.app import make_app
from qalign_fast.serve.gate import OPEN
from qalign_fast.serve.schemas import PICTURE
from qalign_fast.serve.settings import Settings
from support.amount import FULL
from support.servers import RunningServer, running_server

DOCUMENT = make_app(Settings()).openapi()
METHODS = ("get", "post", "put", "delete", "patch")
OPERATIONS = [(method, path) for path, item in DOCUMENT["paths"].items() for method in METHODS if method in item]
CASES = 200 if FULL else 50
HELD = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
    checks.unsupported_method,
    checks.allow_header_conformance,
    checks.missing_required_header,
]
# where a body has pictures; of the texts that are drawn for them, every other one becomes a picture
PICTURES = {
    "image",
    "images",
    "video",
    "frames",
    "b64",
    "url",
    "files",
    "inputs",
    "texts",
    "input",
    "data",
    "instances",
}
PNG = base64.b64decode(PICTURE)
FILES = st.one_of(st.just(PNG), st.binary(max_size=64), st.integers(0, len(PNG)).map(lambda size: PNG[:size]))
for kind in ("image/*", "video/*", "application/octet-stream"):
    schemathesis.openapi.media_type(kind, FILES)
schema = schemathesis.openapi.from_dict(DOCUMENT, config=schemathesis.Config())


@pytest.fixture(scope="module")
def server(kernels: Path) -> Iterator[RunningServer]:
    with running_server() as running:
        yield running
        assert "internal error" not in running.log.read_text("utf-8")
        assert running.ask("GET", "/v2/health/ready").status == 200


def with_pictures(value: Any, *, here: bool = False) -> Any:
    if isinstance(value, dict) and isinstance(value.get("data"), list) and value.get("shape"):  # a tensor that fits
        texts = [PICTURE if i % 2 else str(each) for i, each in enumerate(value["data"])]
        return {**value, "shape": [len(texts)], "data": texts}
    if isinstance(value, dict):
        return {
            key: with_pictures(each, here=key in PICTURES or (here and key == "image_url"))
            for key, each in value.items()
        }
    if isinstance(value, list):
        return [with_pictures(each, here=here) for each in value]
    if here and isinstance(value, str | bytes) and len(value) % 2 == 0:
        return PICTURE if isinstance(value, str) else PNG
    return value


@schema.hook
def map_body(_: schemathesis.HookContext, body: Any) -> Any:
    return with_pictures(body)


@schema.hook
def map_path_parameters(_: schemathesis.HookContext, path_parameters: dict[str, Any] | None) -> Any:
    """Most of them are of a model that is there."""
    known = {"model": "mini", "version": "1"}
    return {name: known[name] if len(str(each)) < 5 else each for name, each in (path_parameters or {}).items()}


@schema.parametrize()
@settings(
    max_examples=CASES,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
def test_every_answer_is_as_the_document_says(case: schemathesis.Case, server: RunningServer) -> None:
    case.call_and_validate(base_url=server.url, checks=HELD, timeout=60)


def validate(answer: Any, operation: Mapping[str, Any], status: int) -> None:
    content = operation["responses"][str(status)].get("content", {})
    media = answer.headers["content-type"].partition(";")[0]
    assert media in content, (media, list(content))
    if media == "application/json" and (said := content[media].get("schema")):
        Draft202012Validator({**said, "components": DOCUMENT["components"]}).validate(answer.json())


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_the_examples_of_the_document_are_answered_as_it_says(server: RunningServer, method: str, path: str) -> None:
    operation = DOCUMENT["paths"][path][method]
    for parameter in operation.get("parameters", ()):
        if parameter["in"] == "path":
            path = path.replace(f"{{{parameter['name']}}}", quote(parameter["example"]))
    content = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if content is None:
        answer = server.ask(method.upper(), path)
        assert answer.status == 200, answer.body
        validate(answer, operation, 200)
        return
    examples = [content["example"]] if "example" in content else [e["value"] for e in content["examples"].values()]
    assert examples
    for example in examples:
        Draft202012Validator(content["schema"]).validate(example)
        answer = server.post_json(path, example)
        assert answer.status == 200, answer.body
        validate(answer, operation, 200)


def test_the_document_says_which_routes_ask_for_a_key_and_they_do() -> None:
    with running_server("--api-key", "one") as running:
        document = running.ask("GET", "/openapi.json", headers={"authorization": "Bearer one"}).json()
        assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
        for path, item in document["paths"].items():
            for method, operation in item.items():
                answer = running.ask(method.upper(), path.replace("{model}", "mini").replace("{version}", "1"))
                assert (answer.status == 401) == ("security" in operation) == (path not in OPEN), path
                if answer.status == 401:
                    assert "401" in operation["responses"] and answer.headers["www-authenticate"] == "Bearer"
