"""Predictions of the ML backend, held to the SDK's own validation and to `Scorer.score` of the same files."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import model as backend
import pytest
from label_studio_sdk.label_interface import LabelInterface

from qalign_fast import Scorer
from qalign_fast.adapters.label_studio import find_targets
from qalign_fast.errors import OptionError
from qalign_fast.levels import Score
from support.clips import constant, write_clip
from support.documents import ROOT

IMAGE = '<Image name="img" value="$image"/>'
NUMBER = '<Number name="mos" toName="img" min="1" max="5" step="0.01"/>'
RATING = '<Rating name="stars" toName="img" maxRating="10"/>'
WORDS = "".join(f'<Choice value="{word}"/>' for word in ("Excellent", "Good", "Fair", "Poor", "Bad"))
CHOICES = f'<Choices name="level" toName="img">{WORDS}</Choices>'


def config(*tags: str) -> str:
    return f"<View>{''.join(tags)}</View>"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of the samples, over HTTP."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=ROOT / "samples"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def score() -> Score:
    return backend.SCORER.score(ROOT / "samples/coffee_noisy.jpg")


def predictions(label_config: str, *addresses: object, field: str = "image") -> list[dict[str, Any]]:
    """As the server asks, each of them valid for the label config."""
    project = backend.QAlign(project_id="1", label_config=label_config)
    tasks = [{"id": i, "data": {field: address}} for i, address in enumerate(addresses)]
    found = project.predict(tasks).model_dump()["predictions"]
    assert [LabelInterface(label_config).validate_prediction(one, return_errors=True) for one in found] == [[]] * len(
        tasks
    )
    return found


def values(prediction: dict[str, Any]) -> dict[str, Any]:
    return {region["from_name"]: region["value"][region["type"]] for region in prediction["result"]}


def test_each_tag_gets_its_form_of_the_score(address: str, score: Score) -> None:
    [found] = predictions(config(IMAGE, NUMBER, RATING, CHOICES), f"{address}/coffee_noisy.jpg")
    assert values(found) == {
        "mos": round(score.value, 4),
        "stars": 1 + round((score.value - 1) / 4 * 9),
        "level": [score.level.capitalize()],
    }
    assert found["score"] == pytest.approx(max(score.probabilities.values()), abs=1e-6)
    assert found["model_version"] == backend.VERSION


def test_five_stars_are_the_five_levels_values(score: Score) -> None:
    label_config = config(IMAGE, '<Rating name="stars" toName="img"/>')
    [target] = find_targets(LabelInterface(label_config), backend.SCORER)
    stars = [target.region(replace(score, value=value))["value"]["rating"] for value in (1.0, 1.4, 2.6, 4.4, 5.0)]
    assert stars == [1, 1, 3, 4, 5]


def test_local_files_are_read_where_they_lie(score: Score) -> None:
    [found] = predictions(config(IMAGE, NUMBER), "/data/local-files/?d=coffee_noisy.jpg")
    assert values(found) == {"mos": round(score.value, 4)}


def test_a_bad_picture_is_a_prediction_without_results(address: str, score: Score, tmp_path: Path) -> None:
    """Missing, no picture, without an address, no address, outside the root: the others keep their places."""
    good = f"{address}/coffee_noisy.jpg"
    bad = [f"{address}/missing.jpg", "/data/local-files/?d=../README.md", None, "nonsense", "/data/upload/1/gone.jpg"]
    found = predictions(config(IMAGE, NUMBER), *bad[:2], good, *bad[2:])
    expected = [{}] * 2 + [{"mos": round(score.value, 4)}] + [{}] * 3
    assert list(map(values, found)) == [pytest.approx(one, abs=0.01) for one in expected]
    assert [one["score"] == 0 for one in found] == [True, True, False, True, True, True]


def test_a_text_behind_a_picture_s_address_is_no_500(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    project = backend.QAlign(project_id="1", label_config=config(IMAGE, NUMBER))
    project.get_local_path = lambda url, task_id=None: str(tmp_path / url)  # type: ignore[method-assign]
    found = project.predict([{"id": 7, "data": {"image": "text.jpg"}}]).predictions
    assert [one.result for one in found] == [[]]
    assert "task 7: not scored" in caplog.text


def test_videos_are_scored_as_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = write_clip(tmp_path / "clip.mp4", constant(30, 10), rate=10)
    monkeypatch.setattr(backend.QAlign, "get_local_path", lambda self, url, task_id=None: url)
    label_config = config('<Video name="clip" value="$film"/>', '<Number name="mos" toName="clip"/>')
    [found] = predictions(label_config, str(clip), field="film")
    assert values(found) == {"mos": round(backend.SCORER.score_video(clip).value, 4)}


def test_two_pictures_of_a_task_have_their_own_tags(address: str, score: Score) -> None:
    label_config = config(
        *(f'<Image name="{name}" value="${name}"/><Rating name="r_{name}" toName="{name}"/>' for name in "ab")
    )
    project = backend.QAlign(project_id="1", label_config=label_config)
    data = {"a": f"{address}/coffee_noisy.jpg", "b": f"{address}/gone.jpg"}
    [found] = project.predict([{"id": 1, "data": data}]).model_dump()["predictions"]
    assert values(found) == {"r_a": round(score.value)}
    assert LabelInterface(label_config).validate_prediction(found)


def test_the_tag_that_is_named_after_a_task_is_filled_in() -> None:
    """And of a kind without such a name the first; tags for regions and with other choices or ranges are people's."""
    people = '<Number name="people" toName="img"/>'
    other = '<Choices name="light" toName="img"><Choice value="day"/><Choice value="night"/></Choices>'
    region = '<Rating name="part" toName="img" perRegion="true"/>'
    few = '<Number name="few" toName="img" max="3"/>'
    tags = [
        people,
        NUMBER.replace("mos", "quality"),
        other,
        region,
        few,
        CHOICES,
        '<DateTime name="day" toName="img" min="2000-01-01"/>',
    ]
    found = find_targets(LabelInterface(config(IMAGE, *tags)), backend.SCORER)
    assert [(target.name, target.task) for target in found] == [("quality", "quality"), ("level", "quality")]
    found = find_targets(LabelInterface(config(IMAGE, few, NUMBER, people)), backend.SCORER)
    assert [target.name for target in found] == ["mos"]


@pytest.mark.parametrize(
    "tags",
    [
        (IMAGE, '<Choices name="light" toName="img"><Choice value="day"/></Choices>'),
        (IMAGE, '<Number name="few" toName="img" max="3"/>'),
        ('<Text name="t" value="$t"/>', '<Rating name="stars" toName="t"/>'),
        ('<Image name="img" valueList="$images"/>', NUMBER),
    ],
)
def test_a_config_without_a_tag_for_a_score_is_refused_on_connecting(tags: tuple[str, ...]) -> None:
    with pytest.raises(OptionError, match=r"no tag that a score can go to; .* room for 1 to 5"):
        backend.QAlign(project_id="1", label_config=config(*tags))


def test_a_request_s_object_loads_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scorer, "load", None)
    project = backend.QAlign(project_id="2", label_config=config(IMAGE, NUMBER))
    assert project.get("model_version") == backend.VERSION
