"""KServe's protocol v1: instances in each of their forms, and a prediction or an error for each."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qalign_fast.levels import Score
from qalign_fast.scorer import Scorer
from support.goldens import PICTURES, Golden
from support.servers import RunningServer, running_server

PREDICT = "/v1/models/mini:predict"
BAD = base64.b64encode(b"this is no picture").decode()


@pytest.fixture(scope="module")
def server(narrow: Golden, kernels: Path) -> Iterator[RunningServer]:
    with running_server("--name", "mini=mini", "--name", f"two tasks={narrow.artifact}") as running:
        yield running


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    return [path.read_bytes() for path in sorted(PICTURES.iterdir())[:3]]


@pytest.fixture(scope="module")
def texts(pictures: list[bytes]) -> list[str]:
    return [base64.b64encode(data).decode() for data in pictures]


@pytest.fixture(scope="module")
def scores(pictures: list[bytes], kernels: Path) -> list[Score]:
    with Scorer.load() as scorer:
        return scorer.score(pictures)


def prediction(score: Score) -> dict[str, Any]:
    return {
        "score": score.value,
        "score01": score.unit,
        "level": score.level,
        "probabilities": score.probabilities,
        "error": None,
    }


@pytest.mark.parametrize("form", ["image_bytes", "b64", "text", "data URI"])
def test_every_form_of_an_instance_gives_the_scorers_score(
    server: RunningServer, texts: list[str], scores: list[Score], form: str
) -> None:
    made = {
        "image_bytes": lambda text: {"image_bytes": {"b64": text}, "key": "1"},
        "b64": lambda text: {"b64": text},
        "text": lambda text: text,
        "data URI": lambda text: {"image_bytes": f"data:image/png;base64,{text}"},
    }[form]
    answer = server.post_json(PREDICT, {"instances": list(map(made, texts)), "signature_name": "serving_default"})
    assert answer.status == 200 and answer.json() == {"predictions": list(map(prediction, scores))}


def test_curls_own_content_type_is_taken(server: RunningServer, texts: list[str]) -> None:
    body = f'{{"instances": ["{texts[0]}"]}}'
    answer = server.ask("POST", PREDICT, body, {"content-type": "application/x-www-form-urlencoded"})
    assert answer.status == 200 and answer.json()["predictions"][0]["error"] is None


def test_a_bad_instance_among_good_ones_has_nulls_and_its_error(
    server: RunningServer, texts: list[str], scores: list[Score]
) -> None:
    instances = [texts[0], {"b64": BAD}, texts[1]]
    first, bad, last = server.post_json(PREDICT, {"instances": instances}).json()["predictions"]
    assert first == prediction(scores[0]) and last == prediction(scores[1])
    assert bad.pop("error").startswith("instances[1]: not an image") and set(bad.values()) == {None}


def test_nothing_but_bad_instances_is_422_with_their_errors(server: RunningServer) -> None:
    answer = server.post_json(PREDICT, {"instances": [BAD, "%%"]})
    assert answer.status == 422 and answer.json()["error"].startswith("instances[0]: not an image")
    assert [bool(each["error"]) for each in answer.json()["predictions"]] == [True, True]


def test_a_model_is_ready_by_its_quoted_name_and_takes_its_tasks(
    server: RunningServer, texts: list[str], narrow: Golden
) -> None:
    ready = server.ask("GET", "/v1/models/two%20tasks")
    assert ready.status == 200 and ready.json() == {"name": "two tasks", "ready": True}
    with Scorer.load(str(narrow.artifact)) as scorer:
        expected = scorer.score(base64.b64decode(texts[0]), task="aesthetics").value
    body = {"instances": [texts[0]], "task": "aesthetics"}
    found = server.post_json("/v1/models/two%20tasks:predict", body).json()["predictions"][0]
    assert found["score"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("status", "path", "body"),
    [
        (404, "/v1/models/other:predict", {"instances": ["AAAA"]}),
        (405, "/v1/models/mini:explain", {"instances": ["AAAA"]}),
        (422, PREDICT, {}),
        (422, PREDICT, {"instances": []}),
        (422, PREDICT, {"instances": [5]}),
        (422, PREDICT, {"instances": [{"pixels": [1, 2]}]}),
        (422, PREDICT, {"instances": ["AAAA"], "task": "all,taste"}),
        (413, PREDICT, {"instances": ["AAAA"] * 257}),
    ],
)
def test_what_is_refused(server: RunningServer, status: int, path: str, body: Any) -> None:
    answer = server.post_json(path, body)
    assert answer.status == status and {"error", "error_type"} <= set(answer.json())


def test_an_unknown_model_is_404(server: RunningServer) -> None:
    assert server.ask("GET", "/v1/models/other").status == 404
