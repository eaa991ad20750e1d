"""vLLM's /classify and /rerank: pictures by themselves, as content parts or in messages, and the answer's shapes."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qalign_fast.levels import LEVELS, Score
from qalign_fast.scorer import Scorer
from support.goldens import PICTURES
from support.servers import RunningServer, running_server

BAD = base64.b64encode(b"this is no picture").decode()
TEXT = {"type": "text", "text": "Rate this picture."}


@pytest.fixture(scope="module")
def server(kernels: Path) -> Iterator[RunningServer]:
    with running_server() as running:
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


def part(text: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{text}"}}


def ask(server: RunningServer, path: str, **body: Any) -> Any:
    answer = server.post_json(path, body)
    assert answer.status == 200, answer.body
    return answer.json()


def test_classify_gives_each_picture_its_most_probable_level_and_all_probabilities(
    server: RunningServer, texts: list[str], scores: list[Score]
) -> None:
    answer = ask(server, "/classify", model="mini", input=texts, user="somebody")
    assert answer["object"] == "list" and answer["model"] == "mini" and answer["id"].startswith("classify-")
    assert abs(answer["created"] - time.time()) < 60 and answer["usage"] == {"prompt_tokens": 0, "total_tokens": 0}
    for i, (row, score) in enumerate(zip(answer["data"], scores, strict=True)):
        assert row == {
            "index": i,
            "label": LEVELS[max(range(5), key=lambda level, p=row["probs"]: p[level])],
            "probs": list(score.probabilities.values()),
            "num_classes": 5,
            "score": score.value,
        }


@pytest.mark.parametrize("form", ["part", "parts", "texts among parts", "content", "messages", "object"])
def test_pictures_may_be_content_parts_or_in_messages(
    server: RunningServer, texts: list[str], scores: list[Score], form: str
) -> None:
    one, two = part(texts[0]), part(texts[1])
    system = {"role": "system", "content": "You judge pictures."}
    body, count = {
        "part": ({"input": one}, 1),
        "parts": ({"input": [one, two]}, 2),
        "texts among parts": ({"input": [TEXT, one, TEXT, texts[1]]}, 2),
        "content": ({"input": {"content": [TEXT, one, two]}}, 2),
        "messages": ({"messages": [system, {"role": "user", "content": [one, TEXT, two]}]}, 2),
        "object": ({"input": [{"b64": texts[0]}, {"image_url": one["image_url"]["url"]}]}, 2),
    }[form]
    data = ask(server, "/classify", **body)["data"]
    expected = [scores[0], scores[0 if form == "object" else 1]][:count]
    assert [row["score"] for row in data] == [score.value for score in expected]


def test_a_bad_picture_among_good_ones_has_nulls_and_its_error(
    server: RunningServer, texts: list[str], scores: list[Score]
) -> None:
    data = ask(server, "/classify", input=[texts[0], BAD, part(BAD), texts[1]])["data"]
    assert [row["score"] for row in data] == [scores[0].value, None, None, scores[1].value]
    assert [row["index"] for row in data] == [0, 1, 2, 3]
    for row in data[1:3]:
        assert row["label"] is row["probs"] is None and row["num_classes"] == 5
        assert row["error"].startswith(f"input[{row['index']}]: not an image")


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (422, {"input": BAD}),
        (422, {}),
        (422, {"input": []}),
        (422, {"input": 5}),
        (422, {"input": [5]}),
        (422, {"input": {"type": "image_url"}}),
        (422, {"input": {"b64": {"b64": {"b64": "AAAA"}}}}),
        (422, {"input": "AAAA", "messages": []}),
        (422, {"messages": [{"role": "user", "content": "no picture"}]}),
        (422, {"input": "AAAA", "task": "taste"}),
        (404, {"input": "AAAA", "model": "other"}),
        (413, {"input": ["AAAA"] * 257}),
    ],
)
def test_what_classify_refuses(server: RunningServer, status: int, body: Any) -> None:
    answer = server.post_json("/classify", body)
    assert answer.status == status and set(answer.json()) == {"error", "error_type"}


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_rerank_names_documents_the_best_first(
    server: RunningServer, texts: list[str], scores: list[Score], path: str
) -> None:
    documents = [texts[0], part(texts[1]), {"content": [TEXT, part(texts[2])]}, BAD]
    order = sorted(range(3), key=lambda i: -scores[i].value)
    answer = ask(server, path, model="mini", query="quality", documents=documents)
    assert answer["model"] == "mini" and answer["id"].startswith("rerank-") and "usage" in answer
    assert [each["index"] for each in answer["results"]] == [*order, 3]
    assert [each["relevance_score"] for each in answer["results"]] == [*(scores[i].unit for i in order), 0.0]
    assert "error" in answer["results"][-1] and not any("document" in each for each in answer["results"])
    best = ask(server, path, query="quality", documents=documents, top_n=2, return_documents=True)["results"]
    assert [each["index"] for each in best] == order[:2]
    shown = {0: {"text": texts[0]}, 1: documents[1], 2: documents[2]}
    assert all(each["document"] == shown[each["index"]] for each in best)


def test_rerank_takes_the_content_of_one_message(server: RunningServer, texts: list[str], scores: list[Score]) -> None:
    query = {"content": [TEXT]}
    answer = ask(server, "/rerank", query=query, documents={"content": list(map(part, texts))}, top_n=0)
    assert {each["index"]: each["relevance_score"] for each in answer["results"]} == {
        i: score.unit for i, score in enumerate(scores)
    }


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"query": "quality"}, "documents: Field required"),
        ({"query": "quality", "documents": []}, "no picture"),
        ({"query": "quality", "documents": [{"content": [TEXT]}]}, "documents[0]: 0 pictures; expected one"),
        ({"query": "quality", "documents": ["AAAA"], "top_n": -1}, "top_n"),
        ({"query": "quality", "documents": [BAD]}, "documents[0]: not an image"),
        ({"query": 5, "documents": ["AAAA"]}, "query"),
        ({"documents": ["AAAA"]}, "query: Field required"),
    ],
)
def test_what_rerank_refuses(server: RunningServer, body: Any, said: str) -> None:
    answer = server.post_json("/v1/rerank", body)
    assert answer.status == 422 and said in answer.json()["error"]
