"""data-juicer's operators inside data-juicer, held against `Scorer.score`."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from data_juicer.config import init_configs
from data_juicer.core import DefaultExecutor
from data_juicer.ops.base_op import OPERATORS
from data_juicer.utils.mm_utils import extract_key_frames, extract_video_frames_uniformly, load_video
from multiprocess import current_process
from PIL import Image

from qalign_fast import Scorer
from qalign_fast.adapters import data_juicer_scoring
from qalign_fast.adapters.data_juicer_operators import ImageQAlignFilter, VideoQAlignFilter, VideoQAlignMapper
from qalign_fast.errors import ArtifactError, OptionError, TaskError
from qalign_kernels.cores import cores
from support.documents import ROOT

YAML = re.compile(r"```yaml\n(# (\S+\.yaml).*?)```", re.DOTALL)
PAGE = (ROOT / "docs/with_curation.md").read_text("utf-8")
STATS, META = "__dj__stats__", "__dj__meta__"


@cache
def scorer() -> Scorer:
    return Scorer.load()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the page's configs run in: pictures and clips, good and bad, a list of each, a model."""
    for picture in (ROOT / "samples").glob("coffee*.jpg"):
        shutil.copy(picture, tmp_path)
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "coffee.jpg").read_bytes()[:2000])
    write_clip(tmp_path / "coffee.mp4", tmp_path / "coffee.jpg")
    write_clip(tmp_path / "blurred.mp4", tmp_path / "coffee_blurred.jpg")
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "coffee.mp4").read_bytes()[:300])
    write_lines(tmp_path / "pictures.jsonl", "images", PICTURES)
    write_lines(tmp_path / "clips.jsonl", "videos", CLIPS)
    (tmp_path / "one-align-int8").symlink_to(ROOT / "qalign_fast/mini")
    for _, name in YAML.findall(PAGE):
        (tmp_path / name).write_text(config(name))
    monkeypatch.chdir(tmp_path)
    return tmp_path


PICTURES = [
    [],
    ["coffee.jpg"],
    ["coffee_jpeg8.jpg"],
    ["coffee_noisy.jpg", "coffee_blurred.jpg"],
    ["cut.jpg"],
    ["coffee.jpg", "not_there.jpg"],
]
CLIPS = [[], ["coffee.mp4"], ["blurred.mp4", "coffee.mp4"], ["blurred.mp4"], ["cut.mp4"], ["not_there.mp4"]]


def config(name: str) -> str:
    """A config as the page shows it."""
    [text] = [text for text, found in YAML.findall(PAGE) if found == name]
    return text


def write_lines(path: Path, key: str, media: list[list[str]]) -> None:
    path.write_text("".join(json.dumps({"text": "", key: names}) + "\n" for names in media))


def write_clip(path: Path, picture: Path) -> None:
    """Two seconds of a picture that wanders."""
    pixels = np.asarray(Image.open(picture).convert("RGB").resize((192, 192)))
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=5, options={"g": "4"})
        stream.width = stream.height = 192
        stream.pix_fmt, stream.bit_rate = "yuv420p", 8_000_000
        for i in range(10):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(pixels, 9 * i, 1), format="rgb24")))
        container.mux(stream.encode())


def run(*arguments: str) -> list[dict[str, Any]]:
    """The exported rows of a run, as `dj-process` makes it."""
    settings = init_configs([*arguments, "--keep_stats_in_res_ds", "true", "--export_path", "run/rows.jsonl"])
    DefaultExecutor(settings).run()
    return rows(Path("run/rows.jsonl"))


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def names(row: dict[str, Any], key: str = "images") -> list[str]:
    return [Path(path).name for path in row[key]]


def same(found: list[float | None], expected: list[float | None]) -> bool:
    """Whether they are equal but for the last digits: a sum's order depends on threads. None is NaN, in JSON."""
    plain = [[math.nan if one is None else one for one in numbers] for numbers in (found, expected)]
    return plain[0] == pytest.approx(plain[1], rel=0, abs=4e-6, nan_ok=True)


def unit(name: str) -> float | None:
    """None for a bad picture, as in the exported JSON."""
    return None if name in ("cut.jpg", "not_there.jpg") else scorer().score(name).unit


@pytest.mark.usefixtures("folder")
def test_the_pages_config_for_pictures_gives_the_scores_of_scorer() -> None:
    subprocess.run([Path(sys.executable).with_name("dj-process"), "--config", "pictures.yaml"], check=True)
    found = rows(Path("kept/pictures.jsonl"))
    expected = [media for media in PICTURES if not media or any((unit(name) or 0) >= 0.4 for name in media)]
    assert [names(row) for row in found] == expected == [PICTURES[i] for i in (0, 1, 3, 5)]
    for row in found:
        units = [unit(name) for name in names(row)]
        assert same(row[STATS]["image_qalign_quality_score01"], units)
        assert same(row[META]["image_qalign_quality_score"], [None if one is None else 1 + 4 * one for one in units])
        levels = ["" if one is None else scorer().score(name).level for name, one in zip(names(row), units)]
        assert row[META]["image_qalign_quality_level"] == levels
        assert [bool(text) for text in row[META]["image_qalign_quality_error"]] == [one is None for one in units]
    assert "not_there.jpg: No such file" in found[-1][META]["image_qalign_quality_error"][1]


@pytest.mark.usefixtures("folder")
def test_the_pages_config_for_clips_gives_the_scores_of_scorer() -> None:
    found = run("--config", "clips.yaml")
    good = {name: scorer().score_video(name) for name in ("coffee.mp4", "blurred.mp4")}
    assert good["coffee.mp4"].unit > 0.6 > good["blurred.mp4"].unit  # 0.6: the page's min_score
    assert [names(row, "videos") for row in found] == CLIPS[:3]
    for row in found:
        of_row = [good[name] for name in names(row, "videos")]
        assert same(row[STATS]["video_qalign_quality_score01"], [one.unit for one in of_row])
        assert row[META]["video_qalign_quality_level"] == [one.level for one in of_row]


@pytest.mark.usefixtures("folder")
def test_one_process_and_a_file_of_custom_operators_give_the_same() -> None:
    Path("qalign_operators.py").write_text("import qalign_fast.adapters.data_juicer_operators\n")
    Path("custom.yaml").write_text(config("pictures.yaml") + "custom_operator_paths: [qalign_operators.py]\n")
    for row in (found := run("--config", "custom.yaml", "--np", "1")):
        units = [unit(name) for name in names(row)]
        assert same(row[STATS]["image_qalign_quality_score01"], units)
    assert [names(row) for row in found] == [PICTURES[i] for i in (0, 1, 3, 5)]
    module = "qalign_fast.adapters.data_juicer_operators"  # and no copy of it, which a spawned process would not find
    assert OPERATORS.get("image_qalign_filter").__module__ == module


def sample(key: str, *media: list[Any], **more: Any) -> dict[str, Any]:
    """A batch, as data-juicer gives it to an operator."""
    return {key: list(media), STATS: [{} for _ in media], META: [{} for _ in media]} | more


@pytest.mark.usefixtures("folder")
def test_any_and_all_of_a_samples_pictures() -> None:
    batch = sample("images", *PICTURES)
    kept = {}
    for way in ("any", "all"):
        operator = ImageQAlignFilter(min_score=0.4, any_or_all=way)
        kept[way] = list(operator.process_batched(operator.compute_stats_batched(batch)))
    assert kept == {"any": [True, True, False, True, False, True], "all": [True, True, False, False, False, False]}


@pytest.mark.usefixtures("folder")
def test_a_bad_picture_passes_no_range_not_even_a_reversed_one() -> None:
    operator = ImageQAlignFilter(min_score=0.4, reversed_range=True)
    batch = operator.compute_stats_batched(sample("images", ["cut.jpg"], ["coffee.jpg"], ["coffee_jpeg8.jpg"]))
    assert math.isnan(batch[STATS][0]["image_qalign_quality_score01"][0])
    assert list(operator.process_batched(batch)) == [False, False, True]
    assert not operator.process_single({STATS: {"image_qalign_quality_score01": [None]}})  # NaN, from JSON


def test_stats_that_are_there_are_not_computed_again() -> None:
    operator = ImageQAlignFilter()
    batch = sample("images", ["no such picture"]) | {STATS: [{"image_qalign_quality_score01": [0.75]}]}
    assert operator.compute_stats_batched(batch)[STATS] == [{"image_qalign_quality_score01": [0.75]}]
    assert list(operator.process_batched(batch)) == [True]


@pytest.mark.usefixtures("folder")
def test_a_samples_bytes_are_taken_before_its_paths() -> None:
    batch = sample("images", ["a", "coffee.jpg"], image_bytes=[[Path("coffee_jpeg8.jpg").read_bytes(), None]])
    [stats] = ImageQAlignFilter().compute_stats_batched(batch)[STATS]
    assert stats["image_qalign_quality_score01"] == pytest.approx([unit("coffee_jpeg8.jpg"), unit("coffee.jpg")])


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("reduce", ["avg", "max", "min"])
@pytest.mark.parametrize("way", ["uniform", "all_keyframes"])
def test_frames_are_data_juicers_and_are_scored_as_pictures(way: str, reduce: str) -> None:
    with load_video("coffee.mp4") as clip:
        frames = extract_video_frames_uniformly(clip, 3) if way == "uniform" else extract_key_frames(clip)
        units = [score.unit for score in scorer().score([frame.to_image() for frame in frames])]
    assert len(units) == 3
    operator = VideoQAlignFilter(frame_sampling_method=way, reduce_mode=reduce)
    batch = operator.compute_stats_batched(sample("videos", ["cut.mp4"], ["not_there.mp4", "coffee.mp4"]))
    [[broken], [missing, found]] = [stats["video_qalign_quality_score01"] for stats in batch[STATS]]
    assert math.isnan(broken) and math.isnan(missing)
    assert found == pytest.approx({"avg": sum(units) / 3, "max": max(units), "min": min(units)}[reduce])


@pytest.mark.usefixtures("folder")
def test_a_clips_frames_a_second_reach_the_reader() -> None:
    [meta] = VideoQAlignMapper(fps=5, max_frames=4).process_batched(sample("videos", ["coffee.mp4"]))[META]
    score = scorer().score_video("coffee.mp4", fps=5, max_frames=4)
    assert meta["video_qalign_quality_score"] == pytest.approx([score.value])


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"task": "sharpness"}, TaskError, "it has: quality"),
        ({"model": "not/a/model"}, ArtifactError, "not/a/model"),
        ({"any_or_all": "some"}, OptionError, "'some'; expected 'any' or 'all'"),
        ({"frame_sampling_method": "first"}, OptionError, "expected one of clip, uniform, all_keyframes"),
        ({"reduce_mode": "median", "frame_sampling_method": "uniform"}, OptionError, "avg, max, min"),
        ({"reduce_mode": "min"}, OptionError, "for frame_sampling_method uniform and all_keyframes; with clip"),
        ({"frame_num": 3, "frame_sampling_method": "all_keyframes"}, OptionError, "frame_num is for"),
        ({"fps": 0}, OptionError, "fps is 0; expected more than 0"),
    ],
)
def test_mistakes_are_told_before_any_sample_is_read(options: dict[str, Any], error: type, text: str) -> None:
    """Later they would cost samples: data-juicer drops a batch whose operator raises."""
    with pytest.raises(error, match=re.escape(text)):
        VideoQAlignFilter(**options)


def test_the_cache_tells_versions_and_tasks_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    before = ImageQAlignFilter()._fingerprint_bytes()
    assert ImageQAlignFilter()._fingerprint_bytes() == before
    monkeypatch.setattr(data_juicer_scoring, "__version__", "0.0.0")
    assert ImageQAlignFilter()._fingerprint_bytes() != before


def test_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    operator = ImageQAlignFilter(num_proc=2, auto_op_parallelism=False)
    assert operator._usable_threads() is None  # all of them, in the one process
    monkeypatch.setattr(current_process(), "_config", {**current_process()._config})
    monkeypatch.setattr(type(current_process()), "name", "Worker-1", raising=False)
    assert operator._usable_threads() == max(1, cores() // 2)
    assert ImageQAlignFilter(threads=3)._usable_threads() == 3
