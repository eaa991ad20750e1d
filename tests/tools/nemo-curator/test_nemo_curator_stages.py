"""NeMo Curator's stages, in this process and in a pipeline on Ray, held against `Scorer.score`."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import av
import numpy as np
import pytest
from nemo_curator.backends.ray_actor_pool import RayActorPoolExecutor
from nemo_curator.pipeline import Pipeline
from nemo_curator.stages.base import ProcessingStage
from nemo_curator.stages.resources import Resources
from nemo_curator.tasks import EmptyTask, ImageBatch, ImageObject
from nemo_curator.tasks.video import Clip, Video, VideoTask
from PIL import Image

from qalign_fast import Scorer
from qalign_fast.adapters.nemo_curator_clips import ClipQAlignFilterStage
from qalign_fast.adapters.nemo_curator_stages import ImageQAlignFilterStage
from qalign_fast.errors import ArtifactError, OptionError, TaskError
from support.documents import ROOT
from support.local_ray import local_ray

SAMPLES = sorted((ROOT / "samples").glob("coffee*.jpg"))
CLOSE = {"rel": 0, "abs": 1e-5}  # a sum's order depends on threads and on batches


@cache
def scorer() -> Scorer:
    return Scorer.load()


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def expected(threshold: float) -> dict[str, dict[str, Any]]:
    """By name, the metadata of the samples that pass."""
    found = {path.name: scorer().score(pixels(path)) for path in SAMPLES}
    return {
        name: {
            "qalign_quality_score": pytest.approx(score.value, **CLOSE),
            "qalign_quality_score01": pytest.approx(score.unit, **CLOSE),
            "qalign_quality_level": score.level,
        }
        for name, score in found.items()
        if score.unit >= threshold
    }


@dataclass
class ReadPhotos(ProcessingStage[EmptyTask, ImageBatch]):
    """A user's source: batches of two pictures."""

    folder: str
    name: str = "read_photos"

    def process(self, task: EmptyTask) -> list[ImageBatch]:
        paths = sorted(Path(self.folder).glob("coffee*.jpg"))
        images = [ImageObject(str(path), path.name, image_data=np.asarray(Image.open(path))) for path in paths]
        return [ImageBatch(dataset_name="photos", data=images[i : i + 2]) for i in range(0, len(images), 2)]


def test_a_pipeline_on_ray_gives_the_scores_of_scorer() -> None:
    stages = [ReadPhotos(str(ROOT / "samples")), ImageQAlignFilterStage(score_threshold=0.35)]
    here = {"PYTHONPATH": f"{Path(__file__).parent}:{ROOT / 'tests'}"}  # for ReadPhotos, in the workers
    with local_ray(2, runtime_env={"env_vars": here}):
        batches = Pipeline("photos", stages=stages).run(RayActorPoolExecutor(show_progress=False))
    assert len(batches) == 3
    found = {image.image_id: image.metadata for batch in batches for image in batch.data}
    assert found == expected(0.35)
    assert 0 < len(found) < len(SAMPLES)


def ready(stage: Any) -> Any:
    stage.setup_on_node()
    stage.setup()
    return stage


def test_pictures_without_pixels_are_read_from_their_paths_and_bad_ones_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "cut.jpg").write_bytes(SAMPLES[0].read_bytes()[:2000])
    paths = [SAMPLES[0], tmp_path / "cut.jpg", ""]
    found = {}
    for threshold in (0.0, None):
        batch = ImageBatch(dataset_name="photos", data=[ImageObject(str(path)) for path in paths])
        out = ready(ImageQAlignFilterStage(score_threshold=threshold)).process(batch)
        found[threshold] = [image.metadata for image in out.data]
    assert found[0.0] == [expected(0)[SAMPLES[0].name]]
    assert [list(metadata) for metadata in found[None][1:]] == [["qalign_quality_error"]] * 2
    assert found[None][2] == {"qalign_quality_error": "a picture without image_data and image_path"}


def test_what_a_batch_has_beside_its_pictures_stays() -> None:
    image = ImageObject(str(SAMPLES[0]), metadata={"caption": "a cup"})
    batch = ImageBatch(dataset_name="photos", data=[image], _metadata={"shard": 3})
    out = ready(ImageQAlignFilterStage(score_threshold=1)).process(batch)
    assert (out.data, out.dataset_name, out._metadata) == ([], "photos", {"shard": 3})
    assert image.metadata["caption"] == "a cup"


def clip_of(path: Path) -> Clip:
    """Two seconds of a picture that wanders, as the bytes of a file."""
    picture = np.asarray(Image.open(path).convert("RGB").resize((192, 192)))
    with av.open(file := io.BytesIO(), "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 192
        stream.pix_fmt, stream.bit_rate = "yuv420p", 8_000_000
        for i in range(10):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(picture, 9 * i, 1), format="rgb24")))
        container.mux(stream.encode())
    return Clip(uuid4(), str(path), (0.0, 2.0), file.getvalue())


def test_clips_are_scored_by_the_prompt_for_clips() -> None:
    clips = [clip_of(ROOT / f"samples/{name}.jpg") for name in ("coffee", "coffee_blurred")]
    units = [scorer().score_video(clip.buffer, fps=2).unit for clip in clips]
    assert units[0] > 0.6 > units[1]
    bad = [Clip(uuid4(), "cut.mp4", (0.0, 2.0), clips[0].buffer[:300]), Clip(uuid4(), "empty.mp4", (0.0, 2.0))]
    task = VideoTask(dataset_name="clips", data=Video(ROOT / "samples", clips=[*clips, *bad]))
    video = ready(ClipQAlignFilterStage(score_threshold=0.6, fps=2)).process(task).data
    assert (video.clips, video.filtered_clips) == ([clips[0]], [clips[1], *bad])
    assert video.clip_stats.num_filtered_by_aesthetic == 3
    assert [clip.aesthetic_score for clip in clips] == pytest.approx(units, **CLOSE)
    assert [(clip.aesthetic_score, list(clip.errors)) for clip in bad] == [(None, ["qalign"])] * 2


def test_a_worker_has_as_many_threads_as_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    load = Scorer.load
    monkeypatch.setattr(Scorer, "load", lambda model, **given: asked.append(given) or load(model))
    stage = ImageQAlignFilterStage()
    for cores in (0.5, 4.0):
        stage.with_(resources=Resources(cpus=cores)).setup()
    assert [(given["device"], given["threads"]) for given in asked] == [("cpu", 1), ("cpu", 4)]


def test_mistakes_are_told() -> None:
    with pytest.raises(OptionError, match=r"score_threshold is 3\.5; expected 0 to 1"):
        ImageQAlignFilterStage(score_threshold=3.5)
    with pytest.raises(ArtifactError, match="not/a/model"):
        ImageQAlignFilterStage("not/a/model").setup_on_node()
    with pytest.raises(TaskError, match="it has: quality"):
        ClipQAlignFilterStage(task="sharpness").setup()
