"""transformers' own `pipeline`: the five levels and the rating of `Scorer.score`, for every form of input."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qalign_fast import ImageError, Score, Scorer
from qalign_fast.adapters import image_quality_pipeline
from qalign_fast.adapters.auto_model import AutoModel
from qalign_fast.adapters.image_quality_pipeline import TASK, register
from qalign_fast.errors import TaskError
from qalign_fast.serve.urls import UrlGuard
from support.command_line import python
from support.goldens import ROOT, Golden

transformers = pytest.importorskip("transformers")
SAMPLES = [str(path) for path in sorted((ROOT / "samples").glob("coffee*.jpg"))]


def rows_of(score: Score) -> list[dict[str, Any]]:
    best_first = sorted(score.probabilities.items(), key=lambda level: -level[1])
    return [{"label": level, "score": p, "rating": score.value} for level, p in best_first]


@pytest.fixture(scope="module")
def scorer(goldens: dict[str, Golden]) -> Scorer:
    return Scorer.load(goldens["narrow-112"].artifact)


@pytest.fixture(scope="module")
def pipe(goldens: dict[str, Golden]) -> Any:
    register()
    register()  # a second time, transformers would warn of overwriting
    return transformers.pipeline(TASK, model=AutoModel.from_pretrained(goldens["narrow-112"].artifact))


@pytest.fixture(scope="module")
def expected(scorer: Scorer) -> list[list[dict[str, Any]]]:
    return [rows_of(score) for score in scorer.score(SAMPLES)]


def near(found: Any, expected: Any) -> bool:
    """The levels in the same order, and numbers but for what a batch's size changes in float32."""
    assert [row["label"] for row in found] == [row["label"] for row in expected]
    for name in ("score", "rating"):
        assert [row[name] for row in found] == pytest.approx([row[name] for row in expected], abs=1e-5)
    return True


def test_one_picture_in_any_form(pipe: Any, expected: list[Any]) -> None:
    path = SAMPLES[0]
    for given in (path, Path(path), Image.open(path), Path(path).read_bytes(), {"bytes": Path(path).read_bytes()}):
        assert near(pipe(given), expected[0])


def test_rows_are_what_users_of_image_classification_read(pipe: Any, expected: list[Any]) -> None:
    best, *others = pipe(SAMPLES[0])
    assert best["score"] >= max(row["score"] for row in others)
    assert sum(row["score"] for row in (best, *others)) == pytest.approx(1, abs=1e-5)
    assert pipe(SAMPLES[0], top_k=1) == [best]


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_a_list_gives_a_list_in_order(pipe: Any, expected: list[Any], batch_size: int) -> None:
    found = pipe([*SAMPLES, Image.open(SAMPLES[0])], batch_size=batch_size)
    assert isinstance(found, list) and len(found) == len(SAMPLES) + 1
    assert all(map(near, found, [*expected, expected[0]]))


def test_a_generator_streams(pipe: Any, expected: list[Any]) -> None:
    taken = []

    def pictures() -> Iterator[str]:
        for i in range(1000):
            taken.append(i)
            yield SAMPLES[i % len(SAMPLES)]

    stream = pipe(pictures(), batch_size=2)
    assert near(next(stream), expected[0]) and near(next(stream), expected[1])
    assert len(taken) < 30  # a few batches ahead, and not all
    stream.close()


def test_a_torch_data_set_streams(pipe: Any, expected: list[Any]) -> None:
    datasets = pytest.importorskip("datasets")
    from transformers.pipelines.pt_utils import KeyDataset

    data = datasets.Dataset.from_dict({"image": SAMPLES}).cast_column("image", datasets.Image())
    found = pipe(KeyDataset(data, "image"), batch_size=2, num_workers=2)
    assert not isinstance(found, list)
    assert all(map(near, found, expected))


def test_the_task_is_asked_for_at_either_place(pipe: Any, scorer: Scorer) -> None:
    expected = rows_of(scorer.score(SAMPLES[0], "aesthetics"))
    other = transformers.pipeline(TASK, model=pipe.model, task_="aesthetics", batch_size=4)
    assert near(pipe(SAMPLES[0], task_="aesthetics"), expected)
    assert near(other(SAMPLES[0]), expected) and near(other([SAMPLES[0]])[0], expected)
    with pytest.raises(TaskError):
        pipe(SAMPLES[0], task_="sharpness")


def test_a_bad_picture_is_an_error_that_names_it(pipe: Any) -> None:
    for given in ("missing.jpg", [SAMPLES[0], "missing.jpg"]):
        with pytest.raises(ImageError, match=r"missing\.jpg"):
            pipe(given)


def test_the_device_is_the_models(pipe: Any) -> None:
    assert pipe.device == pipe.model.device
    assert transformers.pipeline(TASK, model=pipe.model, device="cpu").device.type == "cpu"
    assert "QAlignModel" in repr(pipe)


def test_urls_are_fetched_from_named_hosts_only(pipe: Any, expected: list[Any], monkeypatch: Any) -> None:
    """A public name that leads to this machine stands for the internet."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(ROOT / "samples"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        connect = partial(socket.create_connection, ("127.0.0.1", server.server_port))
        guard = partial(UrlGuard, resolve=lambda *_: ["93.184.215.14"], connect=lambda *_: connect())
        monkeypatch.setattr(image_quality_pipeline, "UrlGuard", guard)
        url = f"http://example.org/{Path(SAMPLES[0]).name}"
        assert near(pipe(url, url_hosts="example.org", timeout=5), expected[0])
        assert near(pipe([url], url_hosts=["example.org"])[0], expected[0])
        with pytest.raises(ImageError, match=r"^http://example.org/coffee.jpg: .* url_hosts="):
            pipe(url)
        with pytest.raises(ImageError, match=r"'example\.org' is not allowed"):
            pipe(url, url_hosts=["example.com"])
        server.shutdown()


@pytest.mark.parametrize(
    ("module", "install"), [("torch", "'qalign-fast[torch]'"), ("transformers", "'transformers>=5'")]
)
def test_what_is_not_installed_is_said_in_one_line(module: str, install: str) -> None:
    code = f"""
import sys
from qalign_fast.errors import MissingExtraError
sys.modules[{module!r}] = None
try:
    import qalign_fast.adapters.image_quality_pipeline
except MissingExtraError as error:
    print(error)
"""
    assert python(code).startswith(f"this needs {module}: pip install {install} (")
