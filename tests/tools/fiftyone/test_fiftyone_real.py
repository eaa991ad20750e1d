"""Scores in FiftyOne, with its database: what a sample's field holds is what `Scorer.score` gives for its file."""

from __future__ import annotations

import json
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from shutil import which
from typing import Any

import fiftyone as fo
import fiftyone.operators as foo
import fiftyone.plugins as fop
import fiftyone.zoo as foz
import numpy as np
import pytest
from fiftyone import ViewField as F
from PIL import Image

from qalign_fast import Scorer
from qalign_fast.adapters.fiftyone_model import QAlignModel
from qalign_fast.adapters.fiftyone_samples import score_samples
from qalign_fast.errors import OptionError, TaskError
from support.clips import constant, write_clip
from support.documents import ROOT

SAMPLES = sorted((ROOT / "samples").glob("coffee*.jpg"))
SOURCE = ROOT / "integrations/fiftyone"
OPERATOR = "@qalign-fast/qalign/score_with_qalign"


@pytest.fixture(scope="module")
def scorer() -> Iterator[Scorer]:
    with Scorer.load() as found:
        yield found


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Photographs, and two that FiftyOne reads in its own way: one that is turned by its EXIF tag, one with alpha."""
    folder = tmp_path_factory.mktemp("pictures")
    turned = Image.open(SAMPLES[0]).crop((0, 0, 300, 120))
    turned.getexif()[0x0112] = 6
    turned.save(folder / "turned.jpg", exif=turned.getexif())
    pixels = np.random.default_rng(0).integers(0, 256, (90, 200, 4), np.uint8)
    Image.fromarray(pixels).save(folder / "alpha.png")
    return [*map(str, SAMPLES), str(folder / "turned.jpg"), str(folder / "alpha.png")]


@pytest.fixture(scope="module")
def oracle(scorer: Scorer, pictures: list[str]) -> dict[str, float]:
    return {path: scorer.score(path).value for path in pictures}


@pytest.fixture
def broken(tmp_path: Path) -> str:
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    return str(tmp_path / "broken.jpg")


@pytest.fixture
def video(tmp_path: Path) -> str:
    return str(write_clip(tmp_path / "clip.mp4", constant(30, 10), rate=10))


def make_dataset(paths: list[str]) -> Any:
    dataset = fo.Dataset()
    dataset.add_samples([fo.Sample(filepath=path) for path in paths])
    return dataset


def in_field(samples: Any, field: str = "qalign") -> dict[str, float | None]:
    return dict(zip(samples.values("filepath"), samples.values(f"{field}.value"), strict=True))


def near(oracle: dict[str, float]) -> Any:
    """Without the C++ kernels a score depends a little on the batch: 0.0025 was seen. The pictures are 0.2 apart."""
    return pytest.approx(oracle, abs=0.01)


def test_samples_have_the_scores_of_their_files(scorer: Scorer, pictures: list[str], oracle: dict[str, float]) -> None:
    dataset = make_dataset(pictures)
    assert score_samples(dataset, scorer, batch_size=1) == {}
    assert in_field(dataset) == oracle
    score_samples(dataset, scorer, "in_batches")
    assert in_field(dataset, "in_batches") == near(oracle)
    score = scorer.score(pictures[0])
    label = dataset.first().qalign
    assert isinstance(label, fo.Regression)
    assert (label.level, label.confidence) == (score.level, max(score.probabilities.values()))
    assert dataset.count(F("qalign.level")) == len(pictures)


def test_a_file_that_is_no_picture_stops_nothing(scorer: Scorer, broken: str, oracle: dict[str, float]) -> None:
    good = [*oracle]
    paths = [*good[:2], broken, *good[2:]]
    dataset = make_dataset(paths)
    failed = score_samples(dataset, scorer, batch_size=2)
    assert in_field(dataset) == near(oracle | {broken: None})
    assert [*failed] == [dataset.match(F("filepath") == broken).first().id]
    assert "broken.jpg" in failed[dataset.values("id")[2]]


def test_a_view_is_scored_and_no_more(scorer: Scorer, pictures: list[str], oracle: dict[str, float]) -> None:
    dataset = make_dataset(pictures)
    seen: list[int] = []
    score_samples(dataset[1:3], scorer, "rating", progress=lambda bar: seen.append(bar.iteration))
    assert in_field(dataset, "rating") == near(dict.fromkeys(oracle) | {path: oracle[path] for path in pictures[1:3]})
    assert seen[-1] == 2


def test_videos_have_the_scores_of_their_files(scorer: Scorer, video: str) -> None:
    dataset = make_dataset([video])
    assert score_samples(dataset, scorer) == {}
    assert in_field(dataset) == {video: scorer.score_video(video).value}


def test_what_is_no_whole_file_is_refused(scorer: Scorer, pictures: list[str], video: str) -> None:
    dataset = make_dataset(pictures[:1])
    sample = dataset.first()
    sample["boxes"] = fo.Detections(detections=[fo.Detection(bounding_box=[0, 0, 0.5, 0.5])])
    sample.save()
    with pytest.raises(OptionError, match="view of patches"):
        score_samples(dataset.to_patches("boxes"), scorer)
    with pytest.raises(TaskError, match="sharpness"):
        score_samples(dataset, scorer, task="sharpness")
    clip = make_dataset([video])
    sample = clip.first()
    sample["events"] = fo.TemporalDetection(label="x", support=[1, 10])
    sample.save()
    clips = clip.to_clips("events")
    with pytest.raises(OptionError, match="view of clips"):
        score_samples(clips, scorer)
    with pytest.raises(OptionError, match="a clip of a video"):
        QAlignModel(scorer, media_type="video").predict(None, sample=clips.first())
    with pytest.raises(OptionError, match="'3d'"):
        QAlignModel(scorer, media_type="3d")  # type: ignore[arg-type]
    groups = fo.Dataset()
    groups.add_group_field("group", default="left")
    groups.add_sample(fo.Sample(filepath=pictures[0], group=fo.Group().element("left")))
    with pytest.raises(OptionError, match="'group'"):
        score_samples(groups, scorer)


@pytest.mark.parametrize("batch_size", [None, 3])
def test_apply_model_gives_the_same(
    scorer: Scorer, pictures: list[str], oracle: dict[str, float], batch_size: int | None
) -> None:
    dataset = make_dataset(pictures)
    dataset.apply_model(QAlignModel(scorer), label_field="qalign", batch_size=batch_size, skip_failures=False)
    assert in_field(dataset) == (oracle if batch_size is None else near(oracle))
    assert [name for name in dataset.get_field_schema() if "qalign" in name] == ["qalign"]


def test_apply_model_leaves_a_bad_file_out(scorer: Scorer, broken: str, oracle: dict[str, float]) -> None:
    dataset = make_dataset([*oracle, broken])
    dataset.apply_model(QAlignModel(scorer), label_field="qalign")
    assert in_field(dataset) == oracle | {broken: None}


def test_a_batch_keeps_its_labels_if_a_file_turns_bad(scorer: Scorer, broken: str, pictures: list[str]) -> None:
    """FiftyOne reads a file before the model does."""
    samples = [fo.Sample(filepath=path) for path in (pictures[0], broken, pictures[1])]
    first, none, last = QAlignModel(scorer).predict_all([None] * 3, samples=samples)
    assert none is None
    assert [first.value, last.value] == pytest.approx([scorer.score(path).value for path in pictures[:2]], abs=0.01)


def test_arrays_and_frames_are_scored_as_they_are(scorer: Scorer, video: str) -> None:
    """As apply_model gives the frames of a video: arrays, beside frames that have no file."""
    frames = [np.asarray(Image.open(path)) for path in SAMPLES[:2]]
    expected = [scorer.score(Image.open(path)).value for path in SAMPLES[:2]]
    model = QAlignModel(scorer)
    assert [label.value for label in model.predict_all(frames)] == pytest.approx(expected, abs=0.01)
    assert model.predict(frames[0], sample=fo.Frame()).value == expected[0]
    assert [label.value for label in model.predict_all(frames, samples=[fo.Frame(), fo.Frame()])] == [
        label.value for label in model.predict_all(frames)
    ]


def test_a_video_model_gives_the_score_of_the_file(scorer: Scorer, video: str) -> None:
    """Called as apply_model calls it, and without a sample."""
    model = QAlignModel(scorer, media_type="video")
    assert model.predict(None, sample=make_dataset([video]).first()).value == scorer.score_video(video).value
    frames = [np.full((64, 64, 3), shade, np.uint8) for shade in (10, 200)]
    assert model.predict(iter(frames)).value == scorer.score_video(frames).value


@pytest.mark.skipif(not (which("ffmpeg") and which("ffprobe")), reason="FiftyOne reads videos with ffmpeg and ffprobe")
def test_apply_model_takes_videos_and_their_frames(scorer: Scorer, video: str) -> None:
    dataset = make_dataset([video])
    dataset.apply_model(QAlignModel(scorer, media_type="video"), label_field="qalign", skip_failures=False)
    assert in_field(dataset) == {video: scorer.score_video(video).value}
    dataset.apply_model(QAlignModel(scorer), label_field="frames.qalign", batch_size=8, skip_failures=False)
    grey = [scorer.score(np.full((64, 64, 3), 4 + 2 * i, np.uint8)).value for i in range(30)]
    assert dataset.values("frames.qalign.value")[0] == pytest.approx(grey, abs=0.1)  # the codec loses a little


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of this repository as an archive, as a host of repositories gives it."""
    folder = tmp_path_factory.mktemp("host")
    with zipfile.ZipFile(folder / "qalign.zip", "w") as file:
        for path in (*SOURCE.glob("*.*"), ROOT / "README.md"):
            file.write(path, Path("qalign-fast-main") / path.relative_to(ROOT))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/qalign.zip"
    server.shutdown()


def test_an_archive_of_the_repository_is_a_source_of_models(
    archive: str, pictures: list[str], oracle: dict[str, float]
) -> None:
    foz.register_zoo_model_source(archive)
    assert foz.list_zoo_models(source=archive) == ["qalign", "qalign-video"]
    model = foz.load_zoo_model("qalign", threads=2)
    dataset = make_dataset(pictures)
    dataset.apply_model(model, label_field="qalign", batch_size=4)
    assert in_field(dataset) == near(oracle)
    assert foz.load_zoo_model("qalign-video", task="quality").media_type == "video"
    assert Path(foz.find_zoo_model("qalign")).is_file()


def test_a_zoo_model_asks_for_its_options(archive: str) -> None:
    foz.register_zoo_model_source(archive, overwrite=True)
    model, params = foz.get_zoo_model("qalign"), {"model": "", "task": ""}
    assert [*model.resolve_input(None).type.properties] == ["model", "task"]
    model.parse_parameters(None, params)
    assert params == {"model": None, "task": "quality"}


def test_the_source_has_what_fiftyone_reads_and_nothing_pickled() -> None:
    manifest = json.loads((SOURCE / "manifest.json").read_text("utf-8"))
    assert manifest["name"]  # without it FiftyOne passes over the folder and says nothing
    assert {path.suffix for path in SOURCE.iterdir() if path.is_file()} <= {".py", ".json", ".yml", ".md"}


@pytest.fixture(scope="module")
def plugin(archive: str) -> None:
    fop.download_plugin(archive)


@pytest.mark.usefixtures("plugin")
def test_the_operator_scores_and_tags(pictures: list[str], oracle: dict[str, float], broken: str) -> None:
    dataset = make_dataset([*pictures, broken])
    threshold = sorted(oracle.values())[2] - 0.05
    asked = {"field": "rating", "task": "quality", "threshold": threshold, "tag": "blurred"}
    result = foo.execute_operator(OPERATOR, dataset=dataset, params=asked).result
    assert in_field(dataset, "rating") == near(oracle | {broken: None})
    assert set(dataset.match_tags("blurred").values("filepath")) == {p for p in oracle if oracle[p] < threshold}
    assert (result["scored"], result["tagged"], result["failed"]) == (len(pictures), 2, 1)
    assert "broken.jpg" in result["errors"][0]


@pytest.mark.usefixtures("plugin")
def test_the_operator_is_delegated(pictures: list[str], oracle: dict[str, float]) -> None:
    dataset = make_dataset(pictures)
    dataset.persistent = True
    foo.execute_operator(OPERATOR, dataset=dataset, params={"field": "qalign"}, request_delegation=True)
    assert "qalign" not in dataset.get_field_schema()
    service = foo.delegated.DelegatedOperationService()
    [done] = service.execute_queued_operations(operator=OPERATOR)
    dataset.reload()
    assert in_field(dataset) == near(oracle)
    assert done.error is None


@pytest.mark.usefixtures("plugin")
def test_the_form_of_the_operator_asks_what_it_reads() -> None:
    form = foo.get_operator(OPERATOR).resolve_input(foo.ExecutionContext({"dataset_name": make_dataset([]).name}))
    assert [*form.type.properties] == ["field", "model", "task", "threshold", "tag"]
