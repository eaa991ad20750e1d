"""The Open Inference Protocol v2, by Triton's client and by hand: its scores are the scorer's, its errors are told."""

from __future__ import annotations

import base64
import gzip
import json
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from qalign_fast.levels import Score
from qalign_fast.scorer import Scorer
from qalign_fast.serve.protocols.open_inference_tensors import Column, write_reply
from support.goldens import PICTURES, ROOT, Golden
from support.servers import Answer, RunningServer, running_server

TWO = "two tasks"  # a name that a path has to quote
INFER = "/v2/models/mini/infer"
LENGTH = "inference-header-content-length"
BAD = b"this is no picture"
OUTPUTS = {"score": (), "score01": (), "probabilities": (5,), "status": ()}


@pytest.fixture(scope="module")
def server(narrow: Golden, kernels: Path) -> Iterator[RunningServer]:
    with running_server("--name", "mini=mini", "--name", f"{TWO}={narrow.artifact}") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}", concurrency=4) as made:
        yield made


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    return [path.read_bytes() for path in sorted(PICTURES.iterdir())[:3]]


@pytest.fixture(scope="module")
def scores(pictures: list[bytes], kernels: Path) -> list[Score]:
    with Scorer.load() as scorer:
        return scorer.score(pictures)


def image(elements: Sequence[bytes | str], *, binary: bool = True) -> triton.InferInput:
    tensor = triton.InferInput("image", [len(elements)], "BYTES")
    return tensor.set_data_from_numpy(np.array(elements, dtype=object), binary_data=binary)


def task_input(task: str, *, binary: bool = True) -> triton.InferInput:
    return triton.InferInput("task", [1], "BYTES").set_data_from_numpy(np.array([task], dtype=object), binary)


def base64_of(pictures: Sequence[bytes]) -> list[str]:
    return [base64.b64encode(data).decode() for data in pictures]


def assert_scores(result: triton.InferResult, scores: Sequence[Score]) -> None:
    """Every number is the scorer's, to the last bit of float32."""
    expected = {
        "score": [score.value for score in scores],
        "score01": [score.unit for score in scores],
        "probabilities": [list(score.probabilities.values()) for score in scores],
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(result.as_numpy(name), np.array(values, np.float32), strict=True)
    assert result.as_numpy("status").tolist() == [b""] * len(scores)


def json_body(**changed: Any) -> dict[str, Any]:
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": ["AAAA"]} | changed.pop("tensor", {})
    return {"inputs": [tensor], **changed}


def post_binary(server: RunningServer, head: Any, rest: bytes, length: int | str | None = None) -> Answer:
    text = json.dumps(head).encode()
    return server.ask("POST", INFER, text + rest, {LENGTH: str(len(text) if length is None else length)})


def binary_head(size: Any, shape: Sequence[int] = (1,)) -> dict[str, Any]:
    tensor = {"name": "image", "shape": list(shape), "datatype": "BYTES", "parameters": {"binary_data_size": size}}
    return {"inputs": [tensor]}


def element(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


def test_health_and_metadata_are_as_tritonclient_asks(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("mini") and client.is_model_ready(TWO) and client.is_model_ready(TWO, "1")
    assert not client.is_model_ready("mini", "2") and not client.is_model_ready("other")
    server = client.get_server_metadata()
    assert server["name"] == "qalign-fast" and "binary_tensor_data" in server["extensions"]
    for version in ("", "1"):
        model = client.get_model_metadata(TWO, version)
        assert model["name"] == TWO and model["versions"] == ["1"] and model["platform"] == "qalign_onnx"
        assert [(t["name"], t["datatype"], t["shape"]) for t in model["inputs"]] == [
            ("image", "BYTES", [-1]),
            ("task", "BYTES", [1]),
        ]
        assert [(t["name"], t["datatype"], t["shape"]) for t in model["outputs"]] == [
            ("score", "FP32", [-1]),
            ("score01", "FP32", [-1]),
            ("probabilities", "FP32", [-1, 5]),
            ("status", "BYTES", [-1]),
        ]


def test_binary_pictures_without_outputs_named_give_all_outputs_in_binary(
    client: triton.InferenceServerClient, pictures: list[bytes], scores: list[Score]
) -> None:
    result = client.infer("mini", [image(pictures)], request_id="a 42")
    assert_scores(result, scores)
    answer = result.get_response()
    assert answer["id"] == "a 42" and answer["model_name"] == "mini" and answer["model_version"] == "1"
    assert [output["name"] for output in answer["outputs"]] == list(OUTPUTS)
    assert all("data" not in output and output["parameters"]["binary_data_size"] for output in answer["outputs"])


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
def test_pictures_in_json_are_base64_or_a_data_uri(
    client: triton.InferenceServerClient, pictures: list[bytes], scores: list[Score], prefix: str
) -> None:
    given = image([prefix + text for text in base64_of(pictures)], binary=False)
    assert_scores(client.infer("mini", [given]), scores)


def test_outputs_are_those_named_each_binary_or_not(
    client: triton.InferenceServerClient, pictures: list[bytes], scores: list[Score]
) -> None:
    wishes = [
        triton.InferRequestedOutput("probabilities", binary_data=False),
        triton.InferRequestedOutput("status", binary_data=False),
        triton.InferRequestedOutput("score", binary_data=True),
    ]
    result = client.infer("mini", [image(pictures)], outputs=wishes)
    answer = {output["name"]: output for output in result.get_response()["outputs"]}
    assert list(answer) == ["probabilities", "status", "score"]
    assert answer["score"]["parameters"] == {"binary_data_size": 4 * len(pictures)} and "data" not in answer["score"]
    assert answer["status"]["data"] == [""] * len(pictures) and "parameters" not in answer["status"]
    np.testing.assert_array_equal(result.as_numpy("score"), np.array([s.value for s in scores], np.float32))
    np.testing.assert_array_equal(
        result.as_numpy("probabilities"), np.array([list(s.probabilities.values()) for s in scores], np.float32)
    )
    assert result.as_numpy("score01") is None


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_requests_and_replies_may_be_packed(
    client: triton.InferenceServerClient, pictures: list[bytes], scores: list[Score], algorithm: str, binary: bool
) -> None:
    given = image(pictures if binary else base64_of(pictures), binary=binary)
    packed = {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
    assert_scores(client.infer("mini", [given], **packed), scores)


@pytest.mark.parametrize(
    ("accepted", "expected"),
    [
        ("gzip", "gzip"),
        ("deflate;q=0.5, br", "deflate"),
        ("gzip;q=0, deflate", "deflate"),
        ("gzip;q=0.0", None),
        ("br", None),
        ("", None),
        ("identity", None),
    ],
)
def test_a_reply_is_packed_as_accept_encoding_says(server: RunningServer, accepted: str, expected: str | None) -> None:
    body = json_body(tensor={"shape": [30], "data": ["AAAA"] * 30})
    answer = server.post_json(INFER, body, {"accept-encoding": accepted})
    assert answer.status == 200 and answer.headers.get("content-encoding") == expected
    unpack = {"gzip": gzip.decompress, "deflate": zlib.decompress, None: bytes}[expected]
    assert json.loads(unpack(answer.body))["outputs"][0]["shape"] == [30]


@pytest.mark.parametrize("binary", [True, False])
def test_a_bad_picture_among_good_ones_is_nan_and_has_its_error_in_status(
    client: triton.InferenceServerClient, pictures: list[bytes], scores: list[Score], binary: bool
) -> None:
    wishes = [triton.InferRequestedOutput(name, binary_data=binary) for name in OUTPUTS]
    result = client.infer("mini", [image([pictures[0], BAD, pictures[1]])], outputs=wishes)
    for name, values in (("score", [s.value for s in scores[:2]]), ("score01", [s.unit for s in scores[:2]])):
        expected = np.array([values[0], np.nan, values[1]], np.float32)
        np.testing.assert_array_equal(result.as_numpy(name), expected, strict=True)
    probabilities = result.as_numpy("probabilities")
    assert probabilities.shape == (3, 5) and np.isnan(probabilities[1]).all() and not np.isnan(probabilities[::2]).any()
    status = [text.decode() if isinstance(text, bytes) else text for text in result.as_numpy("status")]
    assert status[0] == status[2] == "" and status[1].startswith("image[1]: not an image")


def test_only_bad_pictures_are_an_answer_too(client: triton.InferenceServerClient) -> None:
    result = client.infer("mini", [image([BAD, b""])])
    assert np.isnan(result.as_numpy("score")).all() and all(result.as_numpy("status"))


@pytest.mark.parametrize("how", ["binary", "json", "parameter"])
def test_the_task_is_an_input_or_a_parameter(
    client: triton.InferenceServerClient, pictures: list[bytes], narrow: Golden, how: str
) -> None:
    with Scorer.load(str(narrow.artifact)) as scorer:
        expected = scorer.score_tasks(pictures, ("quality", "aesthetics"))
    for task in ("quality", "aesthetics"):
        inputs, parameters = [image(pictures)], None
        if how == "parameter":
            parameters = {"task": task}
        else:
            inputs.append(task_input(task, binary=how == "binary"))
        assert_scores(client.infer(TWO, inputs, parameters=parameters), [each[task] for each in expected])
    assert_scores(client.infer(TWO, [image(pictures)]), [each["quality"] for each in expected])


def test_many_at_a_time_by_async_infer_each_get_their_own(
    client: triton.InferenceServerClient, pictures: list[bytes], scores: list[Score]
) -> None:
    given = [image([pictures[i % 3]]) for i in range(12)]
    asked = [client.async_infer("mini", [tensor], request_id=str(i)) for i, tensor in enumerate(given)]
    for i, request in enumerate(asked):
        result = request.get_result()
        assert result.get_response()["id"] == str(i)
        assert_scores(result, [scores[i % 3]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: c.infer("other", [image([BAD])]), "model 'other' is not here"),
        (lambda c: c.infer("mini", [image([BAD])], model_version="7"), "version '7' is not here; there is: 1"),
        (lambda c: c.infer(TWO, [image([BAD]), task_input("all")]), "one task a request"),
        (lambda c: c.infer(TWO, [image([BAD]), task_input("taste")]), "task 'taste' is not in this model"),
        (
            lambda c: c.infer("mini", [image([BAD])], outputs=[triton.InferRequestedOutput("mos")]),
            "no output 'mos'; there are: score, score01, probabilities, status",
        ),
        (
            lambda c: c.infer("mini", [image([BAD])], outputs=[triton.InferRequestedOutput("score", class_count=2)]),
            "does not have classification",
        ),
        (lambda c: c.infer("mini", [triton.InferInput("image", [1], "BYTES")]), "input 'image' has no data"),
        (
            lambda c: c.infer("mini", [triton.InferInput("image", [1], "BYTES").set_shared_memory("here", 8)]),
            "does not have shared_memory_region",
        ),
        (lambda c: c.get_model_config("mini"), "no route /v2/models/mini/config"),
        (lambda c: c.get_inference_statistics(), "model 'stats' is not here"),
        (lambda c: c.get_model_repository_index(), "no route /v2/repository/index"),
        (lambda c: c.load_model("mini"), "no route /v2/repository/models/mini/load"),
        (lambda c: c.get_system_shared_memory_status(), "no route /v2/systemsharedmemory/status"),
        (lambda c: c.get_cuda_shared_memory_status(), "no route /v2/cudasharedmemory/status"),
        (lambda c: c.get_trace_settings(), "no route /v2/trace/setting"),
        (lambda c: c.get_log_settings(), "no route /v2/logging"),
    ],
)
def test_the_client_raises_what_the_server_says(client: triton.InferenceServerClient, call: Any, message: str) -> None:
    with pytest.raises(InferenceServerException) as raised:
        call(client)
    assert message in raised.value.message() and raised.value.status() in ("400", "404")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "inputs: Field required"),
        ([], "body: Input should be"),
        ({"inputs": []}, "no picture"),
        (json_body(tensor={"name": "x"}), "no input 'x'; there are: image, task"),
        (json_body(tensor={"datatype": "FP32"}), "FP32"),
        (json_body(tensor={"shape": [1, 1]}), "[1, 1]; expected BYTES"),
        (json_body(tensor={"shape": []}), "expected BYTES"),
        (json_body(tensor={"shape": [2]}), "2 elements, its data has 1"),
        (json_body(tensor={"shape": [0]}), "0 elements, its data has more"),
        (json_body(tensor={"shape": [-1]}), "greater than or equal to 0"),
        (json_body(tensor={"shape": [1.5]}), "valid integer"),
        (json_body(tensor={"shape": [10**30]}), "less than or equal to"),
        (json_body(tensor={"data": [7]}), "image[0]: expected a text"),
        (json_body(tensor={"data": [None]}), "image[0]: expected a text"),
        (json_body(tensor={"data": [[[[[[[[["AAAA"]]]]]]]]]}), "more than 8 lists"),
        (json_body(tensor={"parameters": {"binary_data_size": 4}}), "there is no binary data"),
        (json_body(parameters={"task": 5}), "task: expected one text"),
        (json_body(parameters={"task": ""}), "task: none is given"),
        (json_body(parameters={"timeout": "1"}), "microseconds"),
        (json_body(parameters={"timeout": True}), "microseconds"),
        (json_body(parameters={"timeout": -1}), "microseconds"),
        (json_body(parameters={"binary_data_output": "yes"}), "expected true or false"),
        (json_body(outputs=[{"name": "score", "parameters": {"binary_data": 1}}]), "expected true or false"),
        (json_body(outputs=[{"name": "score"}, {"name": "score"}]), "output 'score' is there twice"),
        (json_body(id=4), "id: Input should be a valid string"),
        ({"inputs": [json_body()["inputs"][0]] * 2}, "input 'image' is there twice"),
        (
            {
                "inputs": [
                    *json_body()["inputs"],
                    {"name": "task", "shape": [2], "datatype": "BYTES", "data": ["a", "b"]},
                ]
            },
            "task: expected one text",
        ),
    ],
)
def test_a_body_that_is_not_the_protocols_is_400(server: RunningServer, body: Any, said: str) -> None:
    answer = server.post_json(INFER, body)
    assert answer.status == 400 and said in answer.json()["error"], answer.body


@pytest.mark.parametrize(
    ("head", "rest", "length", "said"),
    [
        (binary_head(8), element(BAD), None, "breaks off"),
        (binary_head(3), b"\1\0\0", None, "breaks off"),
        (binary_head(4), b"\xff\xff\xff\xff", None, "breaks off"),
        (binary_head(len(BAD) + 4), element(BAD) + b"more", None, "4 bytes behind the JSON belong to no input"),
        (binary_head(len(BAD) + 5), element(BAD), None, f"{len(BAD) + 4} bytes are left"),
        (binary_head(len(BAD) + 4, [2]), element(BAD), None, "2 elements, its data has 1"),
        (binary_head(8, [1]), element(b"") * 2, None, "1 elements, its data has more"),
        (binary_head(-1), b"", None, "binary_data_size is -1"),
        (binary_head("4"), element(b""), None, "binary_data_size is '4'"),
        (binary_head(True), b"x", None, "binary_data_size is True"),
        (binary_head([]), b"x", None, "binary_data_size is list"),
        (json_body(), b"left over", None, "9 bytes behind the JSON belong to no input"),
        (binary_head(4), element(b""), 0, "expected the bytes of the JSON"),
        (binary_head(4), element(b""), 10**6, "expected the bytes of the JSON"),
        (binary_head(4), element(b""), "-5", "expected the bytes of the JSON"),
        (binary_head(4), element(b""), "five", "expected the bytes of the JSON"),
        (binary_head(4), element(b""), "9" * 30, "expected the bytes of the JSON"),
        (binary_head(4), element(b""), 5, "not JSON"),
    ],
)
def test_binary_data_that_does_not_fit_its_json_is_400(
    server: RunningServer, head: Any, rest: bytes, length: int | str | None, said: str
) -> None:
    answer = post_binary(server, head, rest, length)
    assert answer.status == 400 and said in answer.json()["error"], answer.body


def test_data_may_be_nested(server: RunningServer, pictures: list[bytes], scores: list[Score]) -> None:
    one, two, three = base64_of(pictures)
    body = json_body(tensor={"shape": [3], "data": [[one, [two]], [], [three]]}, outputs=[{"name": "score"}])
    answer = server.post_json(INFER, body)
    assert answer.json()["outputs"][0]["data"] == [score.value for score in scores]
    assert answer.headers["content-type"] == "application/json" and answer.json()["id"]


def test_binary_data_of_two_inputs_is_in_the_order_of_the_inputs(
    server: RunningServer, pictures: list[bytes], scores: list[Score]
) -> None:
    task, picture = element(b"quality"), element(pictures[0])
    inputs = [
        {"name": "task", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(task)}},
        *binary_head(len(picture))["inputs"],
    ]
    wish = [{"name": "score", "parameters": {"binary_data": True}}]
    answer = post_binary(server, {"inputs": inputs, "outputs": wish}, task + picture)
    assert answer.status == 200 and answer.headers["content-type"] == "application/octet-stream"
    assert answer.body[int(answer.headers[LENGTH]) :] == struct.pack("<f", scores[0].value)


def test_a_task_that_is_no_utf8_is_400(server: RunningServer) -> None:
    inputs = [*json_body()["inputs"], {"name": "task", "shape": [1], "datatype": "BYTES"}]
    inputs[1]["parameters"] = {"binary_data_size": 6}
    answer = post_binary(server, {"inputs": inputs}, element(b"\xff\xfe"))
    assert answer.status == 400 and answer.json()["error"] == "task: expected one text"


def test_the_parameter_timeout_is_a_deadline_in_microseconds(server: RunningServer) -> None:
    large = (ROOT / "samples" / "astronaut_12mp.jpg").read_bytes()
    body = json_body(tensor={"shape": [8], "data": base64_of([large]) * 8}, parameters={"timeout": 1})
    answer = server.post_json(INFER, body)
    assert answer.status == 503 and answer.json()["error_type"] == "Unhealthy" and answer.headers["retry-after"]
    body["parameters"]["timeout"] = 60_000_000
    assert server.post_json(INFER, body).status == 200


def test_more_pictures_than_the_queue_are_413(server: RunningServer) -> None:
    answer = server.post_json(INFER, json_body(tensor={"shape": [300], "data": ["AAAA"] * 300}))
    assert answer.status == 413 and "the limit is 256" in answer.json()["error"]


def test_a_body_of_another_type_is_415(server: RunningServer) -> None:
    answer = server.ask("POST", INFER, b"{}", {"content-type": "text/plain"})
    assert answer.status == 415 and "text/plain" in answer.json()["error"]


def test_texts_of_a_reply_are_written_whatever_they_hold() -> None:
    texts = Column("status", ["", 'ü\n"', "\ud800"])
    body, length = write_reply({}, [(texts, False)])
    assert length is None and json.loads(body)["outputs"][0]["data"] == list(texts.values)
    body, length = write_reply({}, [(texts, True)])
    assert body[length:] == element(b"") + element('ü\n"'.encode()) + element(b"?")
    assert json.loads(body[:length])["outputs"][0]["parameters"]["binary_data_size"] == len(body[length or 0 :])
