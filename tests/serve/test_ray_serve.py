"""The server as a deployment of a local Ray: what Ray is told, what replicas answer, how a dead one is replaced.

Ray's own processes listen at ports that it picks, and ask one another for a token of this run.
"""

from __future__ import annotations

import importlib.util
import io
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qalign_fast import Scorer
from qalign_fast.errors import ArtifactError, MissingExtraError, OptionError
from qalign_fast.pixels.limits import PictureLimits
from qalign_fast.records import make_row
from qalign_fast.serve import ray_serve
from qalign_fast.serve.settings import Settings
from support.command_line import python, run
from support.goldens import ROOT
from support.local_ray import local_ray as local_ray_of
from support.pictures import random_picture
from support.servers import Answer, RunningServer, free_port

if importlib.util.find_spec("ray") is None:
    pytest.skip("Ray is not installed: the extra `ray` has it", allow_module_level=True)

SAMPLES = sorted((ROOT / "samples").glob("coffee*.jpg"))
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray's own models
HALF = {"num_cpus": 0.5}  # of the cores that Ray counts: three replicas have to fit on two
NAME = "qalign-fast"


def deployment(**options: Any) -> Any:
    """What Ray is told."""
    return ray_serve.app(options)._bound_deployment


def test_ray_waits_only_with_what_is_more_than_the_queues_take() -> None:
    """A replica gets more requests than its queue has room for: so it is the queue that refuses, with 429."""
    found = deployment(queue=100)
    assert found.max_ongoing_requests > 100
    assert found.max_queued_requests > 100
    found = deployment(max_ongoing_requests="3", max_queued_requests="1", num_replicas="2", grace="7")
    assert (found.max_ongoing_requests, found.max_queued_requests, found.num_replicas) == (3, 1, 2)
    assert found._deployment_config.graceful_shutdown_timeout_s == 7


def test_a_replica_has_a_gpu_where_the_device_is_one() -> None:
    assert deployment(device="cuda").ray_actor_options["num_gpus"] == 1
    assert deployment(device="cuda", num_gpus="0.5").ray_actor_options["num_gpus"] == 0.5
    assert not deployment().ray_actor_options.get("num_gpus")


def test_any_option_of_rays_is_passed_on() -> None:
    found = deployment(health_check_period_s=1, autoscaling_config={"min_replicas": 1, "max_replicas": 4})
    assert found._deployment_config.health_check_period_s == 1
    assert found._deployment_config.autoscaling_config.max_replicas == 4


def settings_of(monkeypatch: pytest.MonkeyPatch, application: Any) -> Settings:
    """What a replica of this application is made with."""
    from ray import cloudpickle

    sent = cloudpickle.dumps(application._bound_deployment.func_or_class)
    assert len(sent) < 10_000  # no model is in it
    found: list[Settings] = []
    with monkeypatch.context() as patch:
        patch.setattr(ray_serve, "make_replica", found.append)  # it is sent by its name
        with suppress(Exception):  # it goes on without an application
            cloudpickle.loads(sent).__init__(SimpleNamespace()).send(None)
    [settings] = found
    return settings


def test_options_are_the_servers_own_as_values_or_as_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {
        "model": "a b",
        "name": "c=d",
        "max_batch": "4",
        "timeout": "1.5",
        "no_verify": "true",
        "formats": "heic,jxl",
    }
    texts |= {"allow_url_host": "one.example *.two.example", "max_pixels": "9", "exif_rotate": "1", "max_body": "77"}
    values: dict[str, Any] = {"model": ["a", "b"], "name": ["c=d"], "max_batch": 4, "timeout": 1.5, "no_verify": True}
    values |= {"formats": ["heic", "jxl"], "allow_url_host": ["one.example", "*.two.example"], "max_pixels": 9}
    values |= {"exif_rotate": True, "max_body": 77}
    expected = Settings(
        models=(("a", "a"), ("b", "b"), ("c", "d")),
        max_batch=4,
        timeout=1.5,
        verify=False,
        url_hosts=("one.example", "*.two.example"),
        max_body=77,
        limits=PictureLimits(max_bytes=77, max_pixels=9, exif_rotate=True, formats=("heic", "jxl")),
    )
    for application in (ray_serve.app(texts), ray_serve.deployment(**values), ray_serve.deployment(expected)):
        assert settings_of(monkeypatch, application) == expected


def test_a_replica_has_the_threads_that_ray_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    of = partial(settings_of, monkeypatch)
    assert of(ray_serve.app({"num_cpus": "3"})).threads == 3
    assert of(ray_serve.app(HALF)).threads == 1
    assert of(ray_serve.app({"num_cpus": "3", "threads": "2"})).threads == 2
    assert of(ray_serve.app({})).threads is None  # every core


def test_every_option_is_one_of_the_command() -> None:
    text = run("serve", "--help").stdout
    assert [name for name in ray_serve._KINDS if name != "model" and f"--{name.replace('_', '-')}" not in text] == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_bach": 4}, "option 'max_bach' is not known; there are: model, name"),
        ({"max_batch": "many"}, "option max_batch: invalid literal"),
        ({"tone_map": "perhaps"}, "option tone_map: 'perhaps' is neither true nor false"),
        ({"max_batch": 0}, "max_batch is 0"),
        ({"workers": 2}, "option 'workers' is not known"),
    ],
)
def test_an_option_that_cannot_be_is_told_before_ray_is_asked(options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        ray_serve.app(options)


def test_what_is_rays_is_not_taken_from_settings() -> None:
    with pytest.raises(OptionError, match="workers and TLS are Ray's"):
        ray_serve.deployment(Settings(workers=2))
    with pytest.raises(OptionError, match="none beside settings"):
        ray_serve.deployment(Settings(), max_batch=4)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'qalign-fast\[ray\]'"):
        ray_serve.deployment()
    python("import sys, qalign_fast.serve.ray_serve; assert 'ray' not in sys.modules")


@pytest.fixture(scope="module")
def local_ray() -> Iterator[RunningServer]:
    """A Ray of two cores, and its HTTP proxy; with two replicas of the embedded model at /."""
    server = RunningServer(free_port(), process=None)
    with local_ray_of(2):
        from ray import serve

        try:
            serve.start(http_options={"host": "127.0.0.1", "port": server.port})
            serve.run(ray_serve.app({"num_replicas": "2", "health_check_period_s": 1, **HALF}))
            yield server
        finally:
            serve.shutdown()


def jpegs(count: int, seed: int) -> list[bytes]:
    """Pictures that are all different: equal ones would be computed once."""
    rng = np.random.default_rng(seed)
    out = [io.BytesIO() for _ in range(count)]
    for file in out:
        random_picture(rng, 320, 240).save(file, "JPEG")
    return [file.getvalue() for file in out]


def multipart(pictures: list[bytes]) -> tuple[bytes, dict[str, str]]:
    parts = [
        b'--edge\r\nContent-Disposition: form-data; name="files"; filename="%d.jpg"\r\n\r\n%b\r\n' % (i, picture)
        for i, picture in enumerate(pictures)
    ]
    return b"".join(parts) + b"--edge--\r\n", {"content-type": "multipart/form-data; boundary=edge"}


def post(server: RunningServer, picture: bytes, source: str = "p.jpg", **headers: str) -> Answer:
    return server.ask("POST", f"/v1/score?source={source}", picture, {"content-type": "image/jpeg", **headers})


def rows_of_scorer(pictures: dict[str, bytes]) -> dict[str, Any]:
    with Scorer.load() as scorer:
        found = zip(pictures, scorer.score(list(pictures.values())), strict=True)
        return {name: make_row(name, "quality", score) for name, score in found}


def test_scores_are_the_scorers(local_ray: RunningServer) -> None:
    pictures = {path.name: path.read_bytes() for path in SAMPLES}
    expected = rows_of_scorer(pictures)
    for name, picture in pictures.items():
        answer = post(local_ray, picture, name)
        assert (answer.status, answer.json()) == (200, {"model": "mini", "rows": [expected[name]]})


def test_the_other_routes_are_there(local_ray: RunningServer) -> None:
    assert [model["id"] for model in local_ray.ask("GET", "/v1/models").json()["data"]] == ["mini"]
    for path in ("/v2/health/live", "/v2/health/ready", "/health", "/ping", "/", "/openapi.json", "/metrics", "/v2"):
        assert local_ray.ask("GET", path).status == 200, path
    missing = local_ray.ask("GET", "/nowhere")
    assert (missing.status, missing.json()["error"]) == (404, "no route /nowhere")


def test_rows_of_many_pictures_come_in_order_with_one_that_is_bad(local_ray: RunningServer) -> None:
    body, kind = multipart([*jpegs(3, seed=1), b"not a picture"])
    answer = local_ray.ask("POST", "/v1/score", body, kind)
    assert answer.status == 200
    rows = answer.json()["rows"]
    assert [row["source"] for row in rows] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert [row["error"] is None for row in rows] == [True, True, True, False]
    lines = local_ray.ask("POST", "/v1/score", body, {**kind, "accept": "application/x-ndjson"})
    assert lines.headers["content-type"] == "application/x-ndjson"
    assert len(lines.body.splitlines()) == 4


def test_a_bad_picture_alone_is_422(local_ray: RunningServer) -> None:
    answer = post(local_ray, b"not a picture", "broken.jpg")
    assert answer.status == 422
    assert answer.json()["rows"][0]["source"] == "broken.jpg"


def test_a_request_keeps_its_id_and_has_one(local_ray: RunningServer) -> None:
    """Ray's proxy adds the header, and so do we where there is no Ray."""
    answer = post(local_ray, SAMPLES[0].read_bytes(), **{"x-request-id": "mine"})
    assert answer.headers["x-request-id"] == "mine"
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", local_ray.port, timeout=60)
    connection.request("GET", "/health")
    assert len(connection.getresponse().headers.get_all("x-request-id", [])) == 1
    connection.close()


def test_32_requests_at_a_time_get_what_each_asked_for(local_ray: RunningServer) -> None:
    pictures = {f"{i}.jpg": picture for i, picture in enumerate(jpegs(32, seed=2))}
    expected = rows_of_scorer(pictures)
    with ThreadPoolExecutor(32) as threads:
        answers = list(threads.map(lambda name: post(local_ray, pictures[name], name), pictures))
    assert {answer.status for answer in answers} == {200}
    assert {row["source"]: row for answer in answers for row in answer.json()["rows"]} == expected


def flood(server: RunningServer, path: str, requests: int, pictures: int) -> list[Answer]:
    bodies = [multipart(jpegs(pictures, seed=100 + i)) for i in range(requests)]
    with ThreadPoolExecutor(requests) as threads:
        return list(threads.map(lambda body: server.ask("POST", path, *body), bodies))


def test_what_is_too_much_is_refused_by_our_queue_and_then_by_ray(local_ray: RunningServer) -> None:
    """Eight pictures fill the queue: of two requests at a time one has to wait, and Ray lets two more wait."""
    from ray import serve

    options = {"queue": 8, "max_ongoing_requests": 2, "max_queued_requests": 2, **HALF}
    serve.run(ray_serve.app(options), name="small", route_prefix="/small")
    answers = flood(local_ray, "/small/v1/score", requests=16, pictures=8)
    counts = Counter(answer.status for answer in answers)
    assert set(counts) <= {200, 429, 503}, counts
    assert counts[200]
    assert counts[503], counts  # Ray's
    refused = [answer for answer in answers if answer.status == 429]
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert post(local_ray, SAMPLES[0].read_bytes()).status == 200  # the other application has noticed nothing
    serve.delete("small")


def test_our_queue_answers_429_where_ray_gives_it_more_than_it_takes(local_ray: RunningServer) -> None:
    from ray import serve

    serve.run(ray_serve.app({"queue": 8, **HALF}), name="tiny", route_prefix="/tiny")
    answers = flood(local_ray, "/tiny/v1/score", requests=16, pictures=8)
    counts = Counter(answer.status for answer in answers)
    assert set(counts) == {200, 429}, counts
    serve.delete("tiny")


def test_a_model_that_cannot_be_loaded_fails_the_deployment_with_our_line(local_ray: RunningServer) -> None:
    from ray import serve

    with pytest.raises(RuntimeError, match="Deploying application bad failed"):
        serve.run(
            ray_serve.app({"model": "/nowhere", "max_constructor_retry_count": 1, **HALF}),
            name="bad",
            route_prefix="/bad",
        )
    with pytest.raises(ArtifactError) as ours:
        Scorer.load("/nowhere")
    [status] = serve.status().applications["bad"].deployments.values()
    assert f"ArtifactError: {ours.value}" in status.message
    serve.delete("bad")


def replicas() -> set[int]:
    """The processes of the replicas, of this test's Ray alone."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (path / "cmdline").read_bytes().startswith(b"ray::ServeReplica:default:") and is_ours(int(path.name)):
                found.add(int(path.name))
    return found


def is_ours(pid: int) -> bool:
    while pid > 1:
        if pid == os.getpid():
            return True
        pid = int(Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[1])
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="it looks for Ray's processes in /proc")
def test_a_killed_replica_is_replaced(local_ray: RunningServer) -> None:
    before = replicas()
    assert len(before) == 2
    killed = min(before)
    os.kill(killed, signal.SIGKILL)
    end = time.monotonic() + 40
    while len(now := replicas()) < 2 or killed in now:
        assert time.monotonic() < end, now
        assert post(local_ray, SAMPLES[0].read_bytes()).status in (200, 500, 503)  # 500: it was sent to the dead one
        time.sleep(0.1)
    from ray import serve

    while serve.status().applications["default"].status != "RUNNING":
        assert time.monotonic() < end
        time.sleep(0.1)
    for _ in range(8):
        assert post(local_ray, SAMPLES[0].read_bytes()).status == 200
