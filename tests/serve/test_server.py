"""A real server: what it answers to whom, that a batch never changes a score, and what its operator sees."""

from __future__ import annotations

import base64
import gzip
import io
import json
import socket
import ssl
import subprocess
import threading
import time
import urllib.request
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qalign_fast import Scorer
from qalign_fast.feed.items import ClipOptions, Item
from qalign_fast.levels import probability_better
from support.clips import animation, film
from support.command_line import run
from support.goldens import ROOT
from support.served_models import faults, log_lines, multipart, two_tasks
from support.servers import Answer, RunningServer, free_port, running_server

SAMPLES = sorted((ROOT / "samples").glob("*.jpg"))
COFFEE, NOISY, ROCKET = (ROOT / "samples" / f"{name}.jpg" for name in ("coffee", "coffee_noisy", "rocket"))
SECRET = "name-that-no-log-may-have"
BROKEN = b"no picture at all"
TASKS = ("quality", "aesthetics")
JPEG = {"content-type": "image/jpeg"}
KINDS = {413: "Validation", 429: "Overloaded", 500: "Backend", 503: "Unhealthy"}


@pytest.fixture(scope="module")
def model(kernels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_tasks(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def scorer(model: Path) -> Iterator[Scorer]:
    """The default model of `server`."""
    with Scorer.load(model) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[RunningServer]:
    with running_server("--name", f"two={model}", "--name", "mini=mini") as running:
        yield running
        lines = log_lines(running.log)
        assert faults(lines) == []
        text = running.log.read_text("utf-8")
        assert SECRET not in text
        assert "coffee" not in text


@pytest.fixture(scope="module")
def strict(kernels: Path) -> Iterator[RunningServer]:
    """With keys and low limits, all given by the environment."""
    environment = {
        "QALIGN_API_KEY": "first-key second-key",
        "QALIGN_QUEUE": "4",
        "QALIGN_MAX_BODY": "3000000",
        "QALIGN_MAX_PIXELS": "1000000",
        "QALIGN_CACHE": "50",
        "QALIGN_TIMEOUT": "20",
        "QALIGN_NAME": "small=mini",
        "QALIGN_LOG_LEVEL": "debug",
    }
    with running_server(environment=environment) as running:
        yield running
        lines = log_lines(running.log)
        assert faults(lines) == []
        text = running.log.read_text("utf-8")
        assert [key for key in ("first-key", "schl", "wrong-key") if key in text] == []


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def noise(seed: int, width: int = 96, height: int = 64) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).save(out, "PNG")
    return out.getvalue()


def large() -> bytes:
    """A picture that takes a while to read."""
    noise_of = np.random.default_rng(0).integers(0, 256, (900, 1100, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise_of).save(out, "JPEG", quality=90)
    return out.getvalue()


def logits(answer: Answer) -> dict[tuple[str, str], tuple[float, ...]]:
    return {(row["source"], row["task"]): tuple(row["logits"]) for row in answer.json()["rows"]}


def check_problem(answer: Answer, status: int) -> str:
    """Holds the form of an error, and returns its text."""
    assert answer.status == status, answer.body
    assert answer.headers["content-type"] == "application/json"
    content = answer.json()
    assert content["error_type"] == KINDS.get(status, "Validation")
    assert "\n" not in content["error"]
    assert content["error"]
    if status in (429, 503):
        assert int(answer.headers["retry-after"]) >= 1
    assert answer.headers["x-request-id"]
    return str(content["error"])


def raw(server: RunningServer, data: bytes, seconds: float = 20) -> bytes:
    """What comes back on a socket, until the server closes it."""
    with socket.create_connection(("127.0.0.1", server.port), seconds) as connection:
        connection.sendall(data)
        found = b""
        while more := connection.recv(1 << 16):
            found += more
        return found


# scores


def test_a_row_is_the_command_lines(server: RunningServer, model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(BROKEN)
    files = [*SAMPLES[1:4], broken]
    done = run("score", *files, "--model", model, "--task", "all", "--format", "jsonl")
    expected = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(expected) == 8
    body, headers = multipart(*(("files", str(path), path.read_bytes()) for path in files), ("task", None, b"all"))
    answer = server.ask("POST", "/v1/score", body, headers)
    assert answer.status == 200
    content = answer.json()
    assert content["model"] == "two"
    kinds = [row.pop("error_type", None) for row in content["rows"]]
    assert content["rows"] == expected
    assert kinds == [None] * 6 + ["ImageError"] * 2


def test_every_way_to_send_a_picture_gives_its_score(server: RunningServer, scorer: Scorer) -> None:
    data = COFFEE.read_bytes()
    expected = scorer.score(data).logits
    base = {"images": [{"b64": b64(data), "source": SECRET}], "logits": True}
    as_json = json.dumps(base).encode()
    one, headers = multipart(("file", SECRET, data), ("logits", None, b"true"))
    long = data + bytes(300_000)  # which is taken apart in a thread
    ways = [
        server.ask("POST", "/v1/score?logits=true", *multipart(("file", "body", long))),
        server.post_json("/v1/score", {"images": [{"b64": b64(long), "source": "body"}], "logits": True}),
        server.ask("POST", "/v1/score?logits=true", data, JPEG),
        server.ask("POST", "/v1/score?logits=1", data, {"content-type": "application/octet-stream"}),
        server.ask("POST", "/v1/score?logits=true", data, {"content-type": "IMAGE/X-anything; q=1"}),
        server.ask("POST", "/v1/score?logits=true", data),
        server.ask("POST", f"/v1/score?logits=true&source={SECRET}", data, JPEG),
        server.ask("POST", "/v1/score", one, headers),
        server.post_json("/v1/score", base),
        server.post_json("/v1/score", {"image": b64(data), "logits": True}),
        server.post_json("/v1/score?logits=true", {"images": [b64(data)]}),
        server.post_json("/v1/score", {"images": [f"data:image/jpeg;base64,{b64(data)}"], "logits": True}),
        server.ask("POST", "/v1/score?logits=true", gzip.compress(data), {**JPEG, "content-encoding": "gzip"}),
        server.ask("POST", "/v1/score?logits=true", zlib.compress(data), {**JPEG, "content-encoding": "deflate"}),
        server.ask(
            "POST",
            "/v1/score",
            gzip.compress(as_json),
            {"content-type": "application/json; charset=utf-8", "content-encoding": "gzip"},
        ),
    ]
    for answer in ways:
        assert answer.status == 200, answer.body
        (row,) = answer.json()["rows"]
        assert tuple(row["logits"]) == expected
        assert row["task"] == "quality"
    sources = [answer.json()["rows"][0]["source"] for answer in ways]
    assert sources == [
        *["body"] * 6,
        *[SECRET] * 3,
        "images[0]",
        "images[0]",
        "images[0]",
        "body",
        "body",
        SECRET,
    ]


def test_names_are_given_back_whatever_they_are(server: RunningServer) -> None:
    picture = noise(1)
    named = ["bild \u00e4\u00f6\u4e2d.png", "../../etc/passwd", "a%22b", "\u200f\u202eabc"]
    body, headers = multipart(*(("files", name, picture) for name in [*named, ""]))
    answer = server.ask("POST", "/v1/score", body, headers)
    assert answer.status == 200
    assert [row["source"] for row in answer.json()["rows"]] == [*named, "files[4]"]
    odd = ["\ud800 half a pair", "two\nlines", "\0", "x" * 5000, ""]
    images = [{"b64": b64(picture), "source": name} for name in odd]
    answer = server.post_json("/v1/score", {"images": images})
    assert answer.status == 200
    assert [row["source"] for row in answer.json()["rows"]] == [*odd[:-1], "images[4]"]
    broken = server.post_json("/v1/score", {"images": [{"b64": b64(BROKEN), "source": name} for name in odd]})
    assert check_problem(broken, 422)
    assert [row["source"] for row in broken.json()["rows"]] == [*odd[:-1], "images[4]"]


def test_tasks_are_asked_for_in_every_way(server: RunningServer, scorer: Scorer) -> None:
    data = noise(2)
    expected = scorer.score_tasks(data, TASKS)

    def tasks(answer: Answer) -> list[str]:
        assert answer.status == 200, answer.body
        rows = answer.json()["rows"]
        assert all(row["score"] == round(expected[row["task"]].value, 4) for row in rows)
        assert all("logits" not in row for row in rows)
        return [row["task"] for row in rows]

    def asked(query: str) -> list[str]:
        return tasks(server.ask("POST", f"/v1/score?{query}", data, {"content-type": "image/png"}))

    assert asked("") == ["quality"]
    assert asked("task=aesthetics") == ["aesthetics"]
    assert asked("task=aesthetics&task=quality") == ["aesthetics", "quality"]
    assert asked("task=aesthetics,quality") == ["aesthetics", "quality"]
    assert asked("task=quality&task=quality") == ["quality"]
    assert asked("task=all") == ["quality", "aesthetics"]
    assert tasks(server.post_json("/v1/score", {"image": b64(data), "task": "all"})) == ["quality", "aesthetics"]
    assert tasks(server.post_json("/v1/score", {"image": b64(data), "task": ["aesthetics"]})) == ["aesthetics"]
    assert tasks(server.post_json("/v1/score?task=quality", {"image": b64(data), "task": "aesthetics"})) == [
        "aesthetics"
    ]
    body, headers = multipart(("f", "a", data), ("task", None, b"quality"), ("task", None, b"aesthetics"))
    assert tasks(server.ask("POST", "/v1/score", body, headers)) == ["quality", "aesthetics"]
    said = check_problem(server.ask("POST", "/v1/score?task=beauty", data, JPEG), 422)
    assert "beauty" in said
    assert "aesthetics" in said
    for odd in ([], "", " , ", None, 5, [5], {"a": 1}):
        check_problem(server.post_json("/v1/score", {"image": b64(data), "task": odd}), 422)


def test_models_have_names_of_which_the_first_is_the_default(server: RunningServer, scorer: Scorer) -> None:
    data = noise(3)
    with Scorer.load() as mini:
        expected = {"two": scorer.score(data).logits, "mini": mini.score(data).logits}
    assert expected["two"] != expected["mini"]
    for query, name in (("", "two"), ("&model=two", "two"), ("&model=mini", "mini"), ("&model=", "two")):
        answer = server.ask("POST", f"/v1/score?logits=true{query}", data, JPEG)
        assert answer.json()["model"] == name
        assert tuple(answer.json()["rows"][0]["logits"]) == expected[name]
    in_body = server.post_json("/v1/score?model=two", {"image": b64(data), "model": "mini", "logits": True})
    assert in_body.json()["model"] == "mini"
    said = check_problem(server.ask("POST", "/v1/score?model=other", data, JPEG), 404)
    assert "two, mini" in said
    check_problem(server.post_json("/v1/score", {"image": b64(data), "model": "other"}), 404)
    check_problem(server.post_json("/v1/score", {"image": b64(data), "model": "\ud800"}), 404)
    check_problem(server.post_json("/v1/score", {"image": b64(data), "model": ["two"]}), 422)
    check_problem(server.ask("POST", "/v1/score?model=mini&task=aesthetics", data, JPEG), 422)  # the other one has it
    listed = server.ask("GET", "/v1/models").json()
    assert listed["object"] == "list"
    two, mini_facts = listed["data"]
    assert (two["id"], mini_facts["id"]) == ("two", "mini")
    assert {"quality", "aesthetics"} <= set(two["tasks"])
    assert mini_facts["tasks"] == ["quality"]
    assert two["engine"] == scorer.engine.name
    assert two["kernels"] == scorer.engine.kernels
    assert two["limits"] == {"max_body": 64 << 20, "max_pixels": 50_000_000, "max_pictures": 256}
    assert len(two["hash"]) == 64


def test_one_bad_picture_is_a_row_and_nothing_but_bad_ones_are_an_error(server: RunningServer) -> None:
    good = noise(4)
    images = [b64(BROKEN), b64(good), "not base64!", "", {"b64": b64(good[:60])}, "data:,%20"]
    answer = server.post_json("/v1/score", {"images": images})
    assert answer.status == 200
    rows = answer.json()["rows"]
    assert [row["error"] is None for row in rows] == [False, True, False, False, False, False]
    for row in rows:
        if row["error"]:
            assert row["error"].startswith(row["source"])
            assert (row["score"], row["level"], row["probabilities"], row["error_type"]) == (
                None,
                None,
                None,
                "ImageError",
            )
    bad = server.post_json("/v1/score", {"images": [images[0], images[2]], "task": "all"})
    check_problem(bad, 422)
    assert bad.json()["model"] == "two"
    assert [row["task"] for row in bad.json()["rows"]] == ["quality", "aesthetics"] * 2
    assert all(row["error"] for row in bad.json()["rows"])
    url = server.post_json("/v1/score", {"images": [{"url": "http://127.0.0.1:1/a.png"}, b64(good)]})
    assert [row["error"] is None for row in url.json()["rows"]] == [False, True]
    assert "--allow-url-host" in url.json()["rows"][0]["error"]


def test_a_bomb_is_refused_before_its_pixels_are_read(server: RunningServer) -> None:
    """A PNG of 60000 x 60000 in a few bytes, of which 10 GB would be read."""
    huge = io.BytesIO()
    Image.new("1", (60000, 100)).save(huge, "PNG")
    data = bytearray(huge.getvalue())
    data[20:24] = (60000).to_bytes(4, "big")  # the height
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    worker = Path(f"/proc/{server.workers()[0]}")

    def memory() -> int:
        return int(worker.joinpath("statm").read_text().split()[1]) * 4096

    before = memory()
    answer = server.post_json("/v1/score", {"images": [b64(bytes(data)), b64(noise(5))]})
    assert answer.status == 200
    bomb, good = answer.json()["rows"]
    assert "60000" in bomb["error"]
    assert bomb["error_type"] == "ImageError"
    assert good["error"] is None
    assert float(answer.headers["x-total-time"]) < 2000
    assert memory() - before < 200 << 20


def test_batches_never_change_a_score(server: RunningServer, scorer: Scorer) -> None:
    """Logits to the bit, of 200 requests at a time, that have pictures, tasks and clips in common or not."""
    drawn = Random(3)
    pictures = [path.read_bytes() for path in SAMPLES if path.stat().st_size < 500_000]
    pictures += [noise(seed, 60 + 31 * seed, 400 - 7 * seed) for seed in range(12)]
    expected = [scorer.score_tasks(data, TASKS) for data in pictures]
    requests = [
        ([drawn.randrange(len(pictures)) for _ in range(drawn.choice((1, 1, 1, 2, 5)))], drawn.choice((*TASKS, "all")))
        for _ in range(200)
    ]

    def ask(number: int) -> Answer:
        chosen, task = requests[number]
        images = [{"b64": b64(pictures[i]), "source": f"{k} {i}"} for k, i in enumerate(chosen)]
        return server.post_json("/v1/score", {"images": images, "task": task, "logits": True})

    before = server.metric("qalign_batch_size_count")
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(ask, range(len(requests))))
    for (chosen, task), answer in zip(requests, answers, strict=True):
        if answer.status == 429:  # so many pictures are over the bound of the queue
            check_problem(answer, 429)
            continue
        assert answer.status == 200, answer.body
        wanted = {
            (f"{k} {i}", each): expected[i][each].logits
            for k, i in enumerate(chosen)
            for each in (TASKS if task == "all" else (task,))
        }
        assert logits(answer) == wanted
    assert sum(answer.status == 200 for answer in answers) > 150
    batches = server.metric("qalign_batch_size_count") - before
    assert 0 < batches < sum(len(chosen) for chosen, _ in requests) / 2  # they were computed together


def test_rows_come_a_line_each_in_order_and_before_all_is_done(server: RunningServer, scorer: Scorer) -> None:
    images = [b64(noise(seed, 400, 300)) for seed in range(60)]
    images[1] = b64(BROKEN)
    body = json.dumps({"images": images, "logits": True})
    connection = HTTPConnection("127.0.0.1", server.port, timeout=60)
    headers = {"content-type": "application/json", "accept": "application/x-ndjson"}
    connection.request("POST", "/v1/score", body, headers)
    response = connection.getresponse()
    assert response.status == 200
    assert response.getheader("content-type") == "application/x-ndjson"
    first = json.loads(response.readline())
    pending = server.metric("qalign_queue_size")
    rows = [first, *(json.loads(line) for line in response.read().splitlines())]
    connection.close()
    assert pending > 0
    assert [row["source"] for row in rows] == [f"images[{i}]" for i in range(60)]
    assert rows[1]["error_type"] == "ImageError"
    for i in (0, 2, 59):
        assert tuple(rows[i]["logits"]) == scorer.score(base64.b64decode(images[i])).logits


def test_nothing_but_bad_pictures_a_line_each(server: RunningServer) -> None:
    headers = {"accept": "application/x-ndjson"}
    answer = server.post_json("/v1/score", {"images": [b64(BROKEN)] * 3}, headers)
    assert answer.status == 200
    assert [json.loads(line)["error_type"] for line in answer.body.splitlines()] == ["ImageError"] * 3
    check_problem(server.post_json("/v1/score", {"images": []}, headers), 422)


def test_pictures_are_compared(server: RunningServer, scorer: Scorer) -> None:
    a, b = COFFEE.read_bytes(), NOISY.read_bytes()
    body, headers = multipart(("a", "a.jpg", a), ("b", "b.jpg", b), ("task", None, b"all"))
    in_files = server.ask("POST", "/v1/compare", body, headers)
    in_json = server.post_json("/v1/compare?task=all", {"images": [b64(a), b64(b)]})
    for answer in (in_files, in_json):
        assert answer.status == 200, answer.body
        for found, task in zip(answer.json()["comparisons"], TASKS, strict=True):
            of_a, of_b = scorer.score(a, task), scorer.score(b, task)
            assert found == {
                "task": task,
                "difference": round(of_a.value - of_b.value, 4),
                "better": "A" if of_a.value > of_b.value else "B",
                "probability_a_better": round(probability_better(of_a, of_b), 6),
            }
        assert len(answer.json()["rows"]) == 4
    same = server.post_json("/v1/compare", {"images": [b64(a), b64(a)]}).json()["comparisons"]
    assert same == [{"task": "quality", "difference": 0.0, "better": None, "probability_a_better": 0.5}]
    for count in (0, 1, 3):
        check_problem(server.post_json("/v1/compare", {"images": [b64(a)] * count}), 422)
    check_problem(server.post_json("/v1/compare", {"images": [b64(a), b64(BROKEN)]}), 422)
    check_problem(server.ask("POST", "/v1/compare", a, JPEG), 415)


def film_of(kind: str) -> bytes:
    return animation(kind) if kind in ("GIF", "WEBP") else film("libx264", ".mp4").read_bytes()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "mp4"])
def test_a_clip_gets_its_score(server: RunningServer, scorer: Scorer, kind: str) -> None:
    data = film_of(kind)
    expected = scorer.score_video(data)
    content_type = {"content-type": "video/mp4" if kind == "mp4" else f"image/{kind.lower()}"}
    answers = [
        server.ask("POST", "/v1/score/video?logits=true", data, content_type),
        server.post_json("/v1/score/video", {"video": b64(data), "logits": True}),
        server.ask("POST", "/v1/score/video?logits=true", *multipart(("file", "a clip", data))),
    ]
    for answer in answers:
        (row,) = answer.json()["rows"]
        assert tuple(row["logits"]) == expected.logits
        assert row["frames"] == expected.frames == 3
    more = scorer.score_video_tasks(data, TASKS, fps=5.0, max_frames=4, sampling="time")
    options = {"fps": 5, "max_frames": 4, "sampling": "time"}
    query = "&".join(f"{name}={value}" for name, value in options.items())
    form = [(name, None, str(value).encode()) for name, value in options.items()]
    for answer in (
        server.ask("POST", f"/v1/score/video?logits=true&task=all&{query}", data, content_type),
        server.post_json("/v1/score/video", {"video": b64(data), "logits": True, "task": "all", **options}),
        server.ask("POST", "/v1/score/video?logits=true&task=all", *multipart(("file", "a", data), *form)),
    ):
        rows = answer.json()["rows"]
        assert {row["task"]: tuple(row["logits"]) for row in rows} == {task: more[task].logits for task in TASKS}
        assert [row["frames"] for row in rows] == [4, 4]
        assert rows[0].get("warnings", []) == list(more["quality"].warnings)


def test_frames_get_a_clips_score(server: RunningServer, scorer: Scorer) -> None:
    frames = [path.read_bytes() for path in (COFFEE, NOISY, ROCKET)]
    expected = scorer.score_video(frames)
    in_json = server.post_json("/v1/score/video", {"frames": [b64(frame) for frame in frames], "logits": True})
    files = [("files", f"{i}.jpg", frame) for i, frame in enumerate(frames)]
    in_files = server.ask("POST", "/v1/score/video?logits=true", *multipart(*files))
    for answer in (in_json, in_files):
        (row,) = answer.json()["rows"]
        assert tuple(row["logits"]) == expected.logits
        assert row["frames"] == 3
    alone = scorer.score_video(frames[:1])
    for answer in (
        server.post_json("/v1/score/video", {"frames": [b64(frames[0])], "logits": True}),
        server.ask("POST", "/v1/score/video?logits=true", *multipart(("frames", "a", frames[0]))),
    ):
        assert tuple(answer.json()["rows"][0]["logits"]) == alone.logits
    check_problem(server.post_json("/v1/score/video", {"frames": [b64(frames[0]), b64(BROKEN)]}), 422)
    check_problem(server.post_json("/v1/score/video", {"frames": []}), 422)


def test_a_timeline_has_each_frame_as_a_picture(server: RunningServer, scorer: Scorer) -> None:
    data = film_of("mp4")
    clip = ClipOptions(2.0, timeline=True)
    scored = scorer.feed.score(Item(None, data, "video", clip), TASKS)
    answer = server.ask("POST", "/v1/score/video?timeline=true&fps=2&task=all", data, {"content-type": "video/mp4"})
    moments = answer.json()["timeline"]
    assert moments == [
        {"index": m.index, "time": m.time, "task": task, "score": round(m.scores[task].value, 4)}
        for m in scored.timeline
        for task in TASKS
    ]
    assert len(moments) == 12
    frames = [COFFEE.read_bytes(), NOISY.read_bytes()]
    listed = server.post_json("/v1/score/video", {"frames": [b64(frame) for frame in frames], "timeline": True})
    found = [(moment["index"], moment["time"], moment["score"]) for moment in listed.json()["timeline"]]
    assert found == [(i, None, round(scorer.score(frame).value, 4)) for i, frame in enumerate(frames)]


def test_a_clip_that_cannot_be_scored(server: RunningServer) -> None:
    data = animation("GIF")
    gif = {"content-type": "image/gif"}
    for query in ("fps=0", "fps=-1", "fps=nan", "fps=inf", "fps=x", "max_frames=0", "sampling=odd", "timeline=2"):
        check_problem(server.ask("POST", f"/v1/score/video?{query}", data, gif), 422)
    for most in ("1" + "0" * 400, "1000000000"):
        assert "max_frames" in check_problem(server.ask("POST", f"/v1/score/video?max_frames={most}", data, gif), 422)
    body = {"video": b64(data)}
    for odd in ({"fps": "x"}, {"fps": None}, {"max_frames": 1e400}, {"sampling": []}, {"timeline": "perhaps"}):
        content = json.dumps({**body, **odd})
        check_problem(server.ask("POST", "/v1/score/video", content, {"content-type": "application/json"}), 422)
    check_problem(server.ask("POST", "/v1/score/video", BROKEN, {"content-type": "video/mp4"}), 422)
    check_problem(server.post_json("/v1/score/video", {"images": [b64(data)]}), 422)
    assert server.ask("POST", "/v1/score/video", data, gif).status == 200  # the server is as it was


# what is refused, and how


def test_what_is_not_there(server: RunningServer) -> None:
    check_problem(server.ask("GET", "/nothing"), 404)
    check_problem(server.ask("GET", "/v1/score/"), 404)
    check_problem(server.ask("GET", "/%ff%00%0d%0a"), 404)
    check_problem(server.ask("GET", "/page/../../server.py"), 404)
    check_problem(server.ask("GET", "/page/%2e%2e/%2e%2e/server.py"), 404)
    for method, path in (("GET", "/v1/score"), ("PUT", "/v1/compare"), ("POST", "/health"), ("DELETE", "/v1/models")):
        answer = server.ask(method, path)
        check_problem(answer, 405)
        assert answer.headers["allow"]
    assert server.ask("HEAD", "/v1/score").status == 405


def test_bodies_that_cannot_be_read(server: RunningServer) -> None:
    as_json = {"content-type": "application/json"}
    for body in (b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"images": [1' + b"0" * 5000 + b"]}", b"nul"):
        check_problem(server.ask("POST", "/v1/score", body, as_json), 400)
    for headers in ({"content-type": "multipart/form-data"}, {"content-type": "multipart/form-data; boundary=x"}):
        check_problem(server.ask("POST", "/v1/score", b"--y\r\nodd", headers), 400)
    whole = gzip.compress(noise(1))
    for damaged in (b"", b"odd", whole[:-9], whole[: len(whole) // 2]):
        check_problem(server.ask("POST", "/v1/score", damaged, {**JPEG, "content-encoding": "gzip"}), 400)
    check_problem(server.ask("POST", "/v1/score", whole, {**JPEG, "content-encoding": "br"}), 415)
    check_problem(server.ask("POST", "/v1/score", b"x", {"content-type": "text/plain"}), 415)
    check_problem(server.ask("POST", "/v1/score", b"x", {"content-type": "video/mp4"}), 415)


def test_bodies_that_are_not_what_the_route_takes(server: RunningServer) -> None:
    deep: Any = "YQ=="
    for _ in range(900):
        deep = {"image": deep}
    contents: list[Any] = [
        [],
        5,
        None,
        {},
        {"images": []},
        {"images": {}},
        {"images": "YQ=="},
        {"images": [5]},
        {"images": [None]},
        {"images": [{}]},
        {"images": [{"b64": 5}]},
        {"images": [{"b64": "YQ==", "source": 5}]},
        {"images": [deep]},
        {"images": [deep], "padding": "x" * 300_000},  # which is parsed in a thread, where it may be deeper
        {"image": "YQ==", "logits": "perhaps"},
    ]
    for content in contents:
        check_problem(server.post_json("/v1/score", content), 422)
    body, headers = multipart(("task", None, b"quality"))
    check_problem(server.ask("POST", "/v1/score", body, headers), 422)
    check_problem(server.ask("POST", "/v1/score?logits=perhaps", noise(1), JPEG), 422)
    many, headers = multipart(*[("f", "a", b"")] * 257)
    check_problem(server.ask("POST", "/v1/score", many, headers), 413)
    check_problem(server.post_json("/v1/score", {"images": [""] * 257}), 413)
    fields, headers = multipart(*[("odd", None, b"")] * 100, ("f", "a", noise(1)))
    check_problem(server.ask("POST", "/v1/score", fields, headers), 400)


def test_keys(strict: RunningServer) -> None:
    picture = noise(6)

    def ask(**headers: str) -> Answer:
        return strict.ask("POST", "/v1/score", picture, {**JPEG, **headers})

    def with_key(key: bytes) -> int:
        head = b"POST /v1/score HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: image/png\r\n"
        head += b"Authorization: Bearer " + key + b"\r\nContent-Length: %d\r\n\r\n" % len(picture)
        return int(raw(strict, head + picture).split(b" ", 2)[1])

    assert ask(authorization="Bearer first-key").status == 200
    assert ask(authorization="bearer  first-key ").status == 200
    assert with_key(b"second-key") == 200
    assert with_key("schlüssel-2".encode()) == 401
    for wrong in ("Bearer wrong-key", "Bearer ", "Bearer", "", "first-key", "Basic first-key", "Bearer first-ke"):
        answer = ask(authorization=wrong)
        check_problem(answer, 401)
        assert answer.headers["www-authenticate"] == "Bearer"
    check_problem(ask(), 401)
    for path in ("/v1/models", "/nothing", "/page", "/v1/score"):
        check_problem(strict.ask("GET", path), 401)
    open_paths = ("/", "/page/main.js", "/openapi.json", "/health", "/ping", "/metrics")
    for path in (*open_paths, "/v2/health/live", "/v2/health/ready"):
        assert strict.ask("GET", path).status == 200
        assert strict.ask("HEAD", path).status == 200
    wrong = {"authorization": "Bearer wrong-key"}
    rejected = strict.ask("POST", "/v1/score", b"x" * 100_000, {**JPEG, **wrong})  # its body is taken, not broken off
    check_problem(rejected, 401)


def test_limits(strict: RunningServer) -> None:
    key = {"authorization": "Bearer first-key"}
    over = 3_000_001
    check_problem(strict.ask("POST", "/v1/score", b"x" * over, {**JPEG, **key}), 413)
    bomb = gzip.compress(b"x" * over)
    check_problem(strict.ask("POST", "/v1/score", bomb, {**JPEG, **key, "content-encoding": "gzip"}), 413)
    check_problem(strict.post_json("/v1/score", {"images": [b64(noise(1))] * 5}, key), 413)
    body, headers = multipart(*[("f", "a", noise(1))] * 5)
    check_problem(strict.ask("POST", "/v1/score", body, {**headers, **key}), 413)
    row = strict.ask("POST", "/v1/score", noise(1, 1600, 800), {**JPEG, **key}).json()["rows"][0]
    assert "1000000" in row["error"] or "1 mega" in row["error"], row
    facts = strict.ask("GET", "/v1/models", headers=key).json()["data"][0]
    assert facts["id"] == "small"
    assert facts["limits"] == {"max_body": 3_000_000, "max_pixels": 1_000_000, "max_pictures": 4}


def test_deadlines_and_a_full_queue(strict: RunningServer) -> None:
    key = {"authorization": "Bearer first-key"}
    picture = large()
    late = strict.ask("POST", "/v1/score", picture, {**JPEG, **key, "x-request-timeout": "0.001"})
    check_problem(late, 503)
    for odd in ("x", "-1", "0", "nan", "inf", "", "1e400"):
        assert strict.ask("POST", "/v1/score", noise(7), {**JPEG, **key, "x-request-timeout": odd}).status == 200
    answers: list[Answer] = []
    ready = threading.Barrier(24)

    def ask(i: int) -> None:
        ready.wait(30)
        answers.append(strict.ask("POST", "/v1/score", picture + bytes([i]), {**JPEG, **key}))

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted({answer.status for answer in answers}) == [200, 429]
    assert len(answers) == 24
    for answer in answers:
        if answer.status == 429:
            check_problem(answer, 429)
    assert strict.metric("qalign_queue_size") == 0
    assert strict.metric("qalign_rejected_total") >= 2


def test_the_cache_answers_again_with_the_same_row(strict: RunningServer) -> None:
    key = {"authorization": "Bearer first-key"}
    picture = noise(8)
    before = strict.metric("qalign_cache_hits_total")
    first = strict.ask("POST", "/v1/score?source=a&logits=true", picture, {**JPEG, **key})
    second = strict.ask("POST", "/v1/score?source=a&logits=true", picture, {**JPEG, **key})
    assert first.json() == second.json()
    assert strict.metric("qalign_cache_hits_total") == before + 1
    assert float(second.headers["x-inference-time"]) == 0
    clip = strict.ask("POST", "/v1/score/video", animation("GIF"), {"content-type": "image/gif", **key})
    again = strict.ask("POST", "/v1/score/video", animation("GIF"), {"content-type": "image/gif", **key})
    assert clip.json() == again.json()
    other = strict.ask("POST", "/v1/score/video?fps=5", animation("GIF"), {"content-type": "image/gif", **key})
    assert other.json()["rows"][0]["frames"] != clip.json()["rows"][0]["frames"]


# what its operator sees


def test_every_answer_has_its_times_and_its_name(server: RunningServer) -> None:
    answer = server.ask("POST", "/v1/score", large(), {**JPEG, "x-request-id": "abc-123"})
    times = {name: float(answer.headers[f"x-{name}-time"]) for name in ("total", "queue", "inference")}
    assert times["total"] >= times["inference"] > 0
    assert times["total"] >= times["queue"] >= 0
    assert answer.headers["x-request-id"] == "abc-123"
    plain = server.ask("GET", "/health")
    assert float(plain.headers["x-total-time"]) >= 0
    assert "x-queue-time" not in plain.headers
    ids = {server.ask("GET", "/health").headers["x-request-id"] for _ in range(5)}
    assert len(ids) == 5
    assert server.ask("GET", "/health", headers={"x-request-id": "x" * 200}).headers["x-request-id"] != "x" * 200


def test_the_log_says_what_came_of_a_request(server: RunningServer) -> None:
    mark = "mark-of-this-request"
    images = [{"b64": b64(noise(9)), "source": SECRET}, {"b64": b64(BROKEN), "source": SECRET}]
    server.post_json(f"/v1/score?source={SECRET}", {"images": images}, {"x-request-id": mark})
    line = logged(server, mark)
    expected = {"event": "request", "route": "/v1/score", "status": 200, "scored": 1, "bad": 1, "method": "POST"}
    assert line.items() >= expected.items()
    assert line["client"] == "127.0.0.1"
    assert line["ms"] >= line["inference_ms"] > 0
    server.ask("GET", f"/{SECRET}", headers={"x-request-id": "mark-2"})
    assert logged(server, "mark-2")["route"] == "unknown"


def logged(server: RunningServer, mark: str) -> dict[str, Any]:
    """The line of a request, which is written after its answer."""
    end = time.monotonic() + 10
    while not (found := [line for line in log_lines(server.log) if line.get("request_id") == mark]):
        assert time.monotonic() < end
        time.sleep(0.01)
    (line,) = found
    return line


def test_metrics_have_the_names_that_were_agreed_and_count_right(server: RunningServer) -> None:
    def values() -> dict[str, float]:
        lines = server.ask("GET", "/metrics").body.decode().splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}

    before = values()
    images = [b64(noise(10)), b64(noise(11)), b64(BROKEN)]
    server.post_json("/v1/score", {"images": images, "task": "all"})
    server.post_json("/v1/score", {"images": [b64(BROKEN)]})
    server.ask("GET", "/nowhere")
    after = values()

    def more(name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    assert more('qalign_requests_total{code="200",endpoint="/v1/score"}') == 1
    assert more('qalign_requests_total{code="422",endpoint="/v1/score"}') == 1
    assert more('qalign_requests_total{code="404",endpoint="unknown"}') == 1
    assert more('qalign_request_duration_seconds_count{endpoint="/v1/score"}') == 2
    assert more('qalign_images_total{status="ok"}') == 2
    assert more('qalign_images_total{status="bad"}') == 2
    assert more('qalign_rejected_total{reason="422"}') == 1
    assert more('qalign_batch_size_sum{model="two"}') == 2
    assert more('qalign_decode_duration_seconds_count{model="two"}') == 4
    assert more('qalign_queue_duration_seconds_count{model="two"}') == 4
    assert more('qalign_inference_duration_seconds_count{model="two"}') >= 1
    assert more('qalign_score_count{model="two",task="aesthetics"}') == 2
    assert after['qalign_queue_size{model="two"}'] == 0
    assert after["qalign_inflight"] == 1  # the one that asks
    (info,) = [name for name in after if name.startswith("qalign_model_info") and 'model="two"' in name]
    assert 'precision="int8"' in info
    assert after[info] == 1
    endpoints = {name.split('endpoint="')[1].split('"')[0] for name in after if "qalign_requests_total" in name}
    assert {each for each in endpoints if not each.startswith("/")} == {"unknown"}
    assert not [name for name in after if "nowhere" in name or SECRET in name]


def test_head_is_get_without_a_body(server: RunningServer) -> None:
    for path in ("/", "/health", "/metrics", "/v1/models", "/page/main.js"):
        whole, head = server.ask("GET", path), server.ask("HEAD", path)
        assert head.status == whole.status == 200
        assert head.body == b""
        assert head.headers["content-type"] == whole.headers["content-type"]
    close = b"Host: x\r\nConnection: close\r\n\r\n"
    assert raw(server, b"HEAD /health HTTP/1.1\r\n" + close).endswith(b"\r\n\r\n")


def test_a_dry_run_says_what_would_be_served(model: Path) -> None:
    options = ("--name", f"two={model}", "--name", "mini=mini", "--queue", "7", "--cache", "3", "--api-key", "k")
    as_json = run("serve", "--dry-run", "--json", *options)
    assert as_json.returncode == 0
    facts = json.loads(as_json.stdout)
    assert {"model two", "model mini", "address", "workers", "batch", "queue", "limits", "memory"} <= facts.keys()
    assert facts["model two"]["precision"] == "int8"
    assert "7 pictures" in facts["queue"]
    assert facts["keys"] == 1
    for_people = run("serve", "--dry-run", *options)
    assert for_people.returncode == 0
    assert "7 pictures" in for_people.stdout
    for text in (as_json.stdout, for_people.stdout):
        assert "'k'" not in text
        assert "Traceback" not in text


def test_options_that_cannot_be_served(tmp_path: Path, server: RunningServer) -> None:
    def refused(*options: object, code: int = 1) -> str:
        done = run("serve", *options)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout == ""
        if code == 1:
            assert len(done.stderr.splitlines()) == 1, done.stderr
        return done.stderr

    def port(*options: object, code: int = 1) -> str:
        return refused("--port", free_port(), *options, code=code)

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "Address already in use" in refused("--port", taken.getsockname()[1])
    assert "Address already in use" in refused("--port", server.port)  # Linux would share it between two of ours
    assert "cannot listen at" in port("--host", "203.0.113.1")
    assert "cannot listen at" in port("--host", "no such host")
    assert "nowhere" in port("/nowhere")
    assert "Traceback" not in port("--name", "odd", code=2)
    assert "differ" in port("--name", "a=mini", "--name", "a=mini", code=2)
    (tmp_path / "odd.pem").write_text("odd")
    assert "nothing.pem" in port("--tls-certificate", tmp_path / "nothing.pem", "--tls-key", tmp_path / "nothing.pem")
    assert "odd.pem" in port("--tls-certificate", tmp_path / "odd.pem", "--tls-key", tmp_path / "odd.pem")
    port("--tls-key", tmp_path / "odd.pem", code=2)
    port("--queue", 0, code=2)
    port("--api-key", "", code=2)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """For 127.0.0.1, made by itself; and its key."""
    folder = tmp_path_factory.mktemp("tls")
    pem, key = folder / "certificate.pem", folder / "key.pem"
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    kind = ["-newkey", "rsa:2048", "-nodes", "-days", "2"]
    subprocess.run(
        ["openssl", "req", "-x509", *kind, *names, "-keyout", key, "-out", pem], check=True, capture_output=True
    )
    return pem, key


def test_https(certificate: tuple[Path, Path], kernels: Path) -> None:
    pem, key = certificate
    with running_server("--tls-certificate", str(pem), "--tls-key", str(key), ready=False) as running:
        trusted = ssl.create_default_context(cafile=str(pem))
        address = f"https://127.0.0.1:{running.port}/v2/health/ready"
        answered = wait_for_answer(address, trusted)
        assert json.loads(answered)["ready"] is True
        with pytest.raises(OSError, match="certificate verify failed"):
            urllib.request.urlopen(address, context=ssl.create_default_context(), timeout=20)
        assert b"HTTP/1.1 200" not in raw_or_nothing(running, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert wait_for_answer(address, trusted)


def wait_for_answer(address: str, context: ssl.SSLContext) -> bytes:
    end = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(address, context=context, timeout=20) as response:
                return bytes(response.read())
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def raw_or_nothing(server: RunningServer, data: bytes) -> bytes:
    try:
        return raw(server, data)
    except OSError:
        return b""
