"""text-embeddings-inference's routes: levels as labels, null for a picture that cannot be scored, its own refusals."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qalign_fast.levels import Score
from qalign_fast.scorer import Scorer
from qalign_fast.version import __version__
from support.goldens import PICTURES, Golden
from support.servers import RunningServer, running_server

KEY = "a-key"
BAD = base64.b64encode(b"this is no picture").decode()
WITH_KEY = {"authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def server(narrow: Golden, kernels: Path) -> Iterator[RunningServer]:
    models = ("--name", "mini=mini", "--name", f"narrow={narrow.artifact}")
    with running_server(*models, "--api-key", KEY, "--queue", "12") as running:
        yield running


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    return [path.read_bytes() for path in sorted(PICTURES.iterdir())[:4]]


@pytest.fixture(scope="module")
def texts(pictures: list[bytes]) -> list[str]:
    first, *rest = [base64.b64encode(data).decode() for data in pictures]
    return [f"data:image/png;base64,{first}", *rest]


@pytest.fixture(scope="module")
def scores(pictures: list[bytes], kernels: Path) -> list[Score]:
    with Scorer.load() as scorer:
        return scorer.score(pictures)


def ask(server: RunningServer, path: str, **body: Any) -> Any:
    answer = server.post_json(path, body, WITH_KEY)
    assert answer.status == 200, answer.body
    return answer.json()


def refused(server: RunningServer, path: str, **body: Any) -> tuple[int, str, str]:
    answer = server.post_json(path, body, WITH_KEY)
    return answer.status, answer.json()["error_type"], answer.json()["error"]


def levels(score: Score) -> list[dict[str, Any]]:
    by_label = sorted(score.probabilities.items(), key=lambda each: -each[1])
    return [{"score": p, "label": word} for word, p in by_label]


def test_info_names_the_model_its_labels_and_the_limits(server: RunningServer) -> None:
    info = server.ask("GET", "/info", headers=WITH_KEY).json()
    assert info["model_id"] == "mini" and info["version"] == __version__ and info["max_client_batch_size"] == 12
    labels = info["model_type"]["classifier"]
    assert labels["id2label"] == {"0": "excellent", "1": "good", "2": "fair", "3": "poor", "4": "bad"}
    assert labels["label2id"] == {word: int(i) for i, word in labels["id2label"].items()}


def test_the_routes_ask_for_the_key_and_health_does_not(server: RunningServer) -> None:
    assert server.ask("GET", "/health").status == server.ask("GET", "/metrics").status == 200
    assert server.ask("GET", "/info").status == 401
    for path in ("/predict", "/rerank"):
        answer = server.post_json(path, {}, {"authorization": "Bearer another"})
        assert answer.status == 401 and answer.json()["error_type"] == "Validation"


def test_one_picture_gives_its_levels_the_most_probable_first(
    server: RunningServer, texts: list[str], scores: list[Score]
) -> None:
    for text, score in zip(texts, scores, strict=True):
        assert ask(server, "/predict", inputs=text) == levels(score)


def test_raw_scores_are_the_logits(server: RunningServer, texts: list[str], scores: list[Score]) -> None:
    found = ask(server, "/predict", inputs=texts[0], raw_scores=True)
    expected = dict(zip(scores[0].probabilities, scores[0].logits, strict=True))
    assert {each["label"]: each["score"] for each in found} == expected
    assert [each["score"] for each in found] == sorted(expected.values(), reverse=True)


def test_several_pictures_give_a_list_of_lists_in_order(
    server: RunningServer, texts: list[str], scores: list[Score]
) -> None:
    expected = [levels(score) for score in scores]
    assert ask(server, "/predict", inputs=texts) == expected
    assert ask(server, "/predict", inputs=[[text] for text in texts]) == expected
    assert ask(server, "/predict", inputs=texts[:1]) == expected[:1]
    assert ask(server, "/predict", inputs=[*texts, *texts]) == expected * 2


def test_a_bad_picture_among_good_ones_is_null_and_the_header_says_why(
    server: RunningServer, texts: list[str], scores: list[Score]
) -> None:
    body = {"inputs": [texts[0], BAD, texts[1], "%%"], "truncate": True, "unknown": 1}
    answer = server.post_json("/predict", body, WITH_KEY)
    assert answer.status == 200
    assert answer.json() == [levels(scores[0]), None, levels(scores[1]), None]
    errors = json.loads(answer.headers["x-errors"])
    assert errors["1"].startswith("inputs[1]: not an image") and errors["3"].startswith("inputs[3]: not base64")
    assert "x-errors" not in server.post_json("/predict", {"inputs": texts[0]}, WITH_KEY).headers


@pytest.mark.parametrize("inputs", [BAD, [BAD], [BAD, "%%"]])
def test_nothing_but_bad_pictures_is_422(server: RunningServer, inputs: Any) -> None:
    status, kind, said = refused(server, "/predict", inputs=inputs)
    assert (status, kind) == (422, "Validation") and said.startswith("inputs[0]: not an image")


def test_an_empty_batch_is_400_and_one_over_the_queue_413(server: RunningServer, texts: list[str]) -> None:
    assert refused(server, "/predict", inputs=[])[:2] == (400, "Empty")
    assert refused(server, "/rerank", query="quality", texts=[])[:2] == (400, "Empty")
    for path, field in (("/predict", "inputs"), ("/rerank", "texts")):
        status, kind, said = refused(server, path, query="quality", **{field: texts[1:2] * 13})
        assert (status, kind) == (413, "Validation") and "the limit is 12" in said


@pytest.mark.parametrize(
    "body",
    [{}, {"inputs": None}, {"inputs": 4}, {"inputs": [["a", "b"]]}, {"inputs": [[]]}, {"inputs": "a", "raw_scores": 1}],
)
def test_a_body_that_is_not_predicts_is_422(server: RunningServer, body: Any) -> None:
    assert refused(server, "/predict", **body)[:2] == (422, "Validation")


def test_task_and_model_are_fields_that_we_add(server: RunningServer, texts: list[str], narrow: Golden) -> None:
    with Scorer.load(str(narrow.artifact)) as scorer:
        expected = scorer.score(base64.b64decode(texts[1]), task="aesthetics")
    found = ask(server, "/predict", inputs=texts[1], task="aesthetics", model="narrow")
    assert {each["label"]: each["score"] for each in found} == pytest.approx(expected.probabilities, rel=1e-5)
    ranks = ask(server, "/rerank", query="aesthetics", texts=[texts[1]], model="narrow", raw_scores=True)
    assert ranks == [{"index": 0, "score": pytest.approx(expected.value, rel=1e-5)}]
    assert refused(server, "/predict", inputs=texts[1], model="other")[0] == 404
    assert refused(server, "/predict", inputs=texts[1], task="taste")[0] == 422
    assert refused(server, "/predict", inputs=texts[1], task="all", model="narrow")[0] == 422


def test_rerank_orders_by_score_the_best_first_and_bad_ones_last(
    server: RunningServer, texts: list[str], scores: list[Score]
) -> None:
    given = [BAD, *texts]
    order = sorted(range(4), key=lambda i: -scores[i].value)
    found = ask(server, "/rerank", query="which is the sharpest?", texts=given)
    assert [each["index"] for each in found] == [*(i + 1 for i in order), 0]
    assert [each["score"] for each in found] == [*(scores[i].unit for i in order), 0.0]
    assert [("error" in each) for each in found] == [False] * 4 + [True]
    assert found[-1]["error"].startswith("texts[0]: not an image")


def test_rerank_gives_raw_scores_on_1_to_5_and_the_texts_where_they_are_asked_for(
    server: RunningServer, texts: list[str], scores: list[Score]
) -> None:
    found = ask(server, "/rerank", query="quality", texts=texts, raw_scores=True, return_text=True)
    assert all(each["score"] == scores[each["index"]].value for each in found)
    assert all(each["text"] == texts[each["index"]] for each in found)
    assert refused(server, "/rerank", query="quality", texts=[BAD])[0] == 422


def test_equal_pictures_keep_their_order(server: RunningServer, texts: list[str]) -> None:
    found = ask(server, "/rerank", query="quality", texts=[texts[0]] * 5)
    assert [each["index"] for each in found] == list(range(5))
